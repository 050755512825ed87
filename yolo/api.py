# SPDX-License-Identifier: Apache-2.0
"""`YOLO`: load a model, then train, validate and predict with it. It knows no task by name."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo.cfg.load import read_options, resolve
from yolo.cfg.networks import find_network
from yolo.engine.events import Callback, Callbacks
from yolo.engine.fetch import find_weights, is_weights
from yolo.errors import CheckpointError, ConfigError
from yolo.tasks.spec import TASKS, TaskSpec, homes_of_option, task_of_network

LOGGER = logging.getLogger(__name__)

if TYPE_CHECKING:
    import torch

    from yolo.engine.checkpoint import Checkpoint
    from yolo.engine.predictor import Predictor
    from yolo.engine.results import Results
    from yolo.engine.trainer import Trainer
    from yolo.nn.model import BaseModel

_INHERITED = ("imgsz", "data", "single_cls", "classes", "channels_last", "cache_dir")
"""Training options that later calls on the same model start from."""


class YOLO:
    """A model with everything one does with it.

    Args:
        model: a network YAML ("yolov8n.yaml", or your own file), a checkpoint (".pt", ours or of
            Ultralytics 8.x; ".safetensors"), or a checkpoint's http(s) address with `sha256`.
        task: the task's name, where the model doesn't say.
        verbose: print the table of layers.
        plugins: your own Python files to import first, for blocks and tasks that they register.
        sha256: what the checkpoint's content must have; a download needs it.

    Raises:
        MissingFileError: if the file isn't there.
        ModelError, CheckpointError: if it can't be used.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        task: str | None = None,
        verbose: bool = False,
        plugins: str | Path | tuple[str | Path, ...] = (),
        sha256: str | None = None,
    ) -> None:
        if plugins:
            from yolo.plugins import load_plugins

            load_plugins(plugins)
        if not isinstance(model, (str, Path)):
            found = "nothing" if model is None else type(model).__name__
            raise ConfigError(
                f"YOLO needs a file, as in YOLO('yolov8n.yaml') or YOLO('best.pt'); found {found}"
            )
        self.callbacks_: Callbacks = Callbacks()
        self.overrides: dict[str, Any] = {"model": str(model)}
        self.ckpt: dict[str, Any] = {}
        self.ckpt_path: str | None = None
        self.cfg: str | None = None
        self.model_name = str(model)
        self.metrics: Any = None
        self.trainer: Trainer | None = None
        self.predictor: Predictor | None = None
        self.trained = False
        self._backend: Any = None
        self._fused = False
        if is_weights(model):
            self._load_checkpoint(find_weights(model, sha256), task)
        else:
            self._build(model, task)
        if verbose:
            self.info()

    # ------------------------------------------------------------------ loading

    def _build(self, name: str | Path, task: str | None) -> None:
        network = find_network(name)
        self.cfg = str(name)
        self.spec: TaskSpec = task_of_network(network.yaml, str(network.path), task)
        self.model: BaseModel = self.spec.model(name)

    def _load_checkpoint(self, path: Path, task: str | None) -> None:
        from yolo.engine.checkpoint import load_checkpoint
        from yolo.engine.network import load_model

        saved = load_checkpoint(path)
        self.spec = _task_of(saved, path, task)
        self.model = load_model(saved, self.spec, str(path))
        self.ckpt_path = str(path)
        self.ckpt = {k: v for k, v in vars(saved).items() if k not in {"weights", "state"}}
        self.trained = True
        self.overrides["model"] = str(path)
        self.overrides |= {k: saved.config[k] for k in _INHERITED if k in saved.config}

    def load(self, weights: str | Path, partial: bool = False) -> YOLO:
        """Take over the weights and class names of a checkpoint.

        Args:
            weights: the file.
            partial: where it doesn't fit, take what fits (rows of classes by the classes' names),
                and list the rest in the log.

        Raises:
            MissingFileError, CheckpointError: if the file can't be read, or doesn't fit.
        """
        from yolo.engine.checkpoint import load_checkpoint
        from yolo.engine.network import listed, misfits, take_weights

        saved = load_checkpoint(weights)
        found = misfits(self.model.state_dict(), saved.weights)
        if (found or saved.task != self.task) and not partial:
            raise CheckpointError(
                f"{weights}: the weights, for {saved.task!r} with {len(saved.names)} classes, "
                f"don't fit this network, for {self.task!r} with {self.model.nc}: "
                f"{listed(found) or 'another task'}. To take what fits: load(..., partial=True)"
            )
        names = saved.names if found else None
        LOGGER.info(take_weights(self.model, saved.weights, str(weights), names))
        if not found:
            self.model.names = dict(saved.names)
        self.trained = True
        return self

    def save(self, filename: str | Path = "saved_model.pt") -> None:
        """Write the model as a checkpoint that `YOLO(filename)` reads."""
        from yolo.engine.checkpoint import Checkpoint, plain, save_checkpoint
        from yolo.engine.runtime import versions

        self._refuse_fused("saved")
        weights = {k: v.detach().cpu() for k, v in self.model.state_dict().items()}
        content = Checkpoint(
            task=self.task,
            names=dict(self.model.names),
            network=plain(self.model.yaml),
            weights=weights,
            versions=versions(),
        )
        save_checkpoint(Path(filename), content)

    def reset_weights(self) -> YOLO:
        """Give the model fresh weights."""
        names = self.model.names
        self.model = self.spec.model(self.model.yaml)
        self.model.names = names
        self.trained = self._fused = False
        return self

    # ------------------------------------------------------------------ the three loops

    def train(self, trainer: type[Trainer] | None = None, **options: Any) -> Any:
        """Train, and hold the best weights afterwards.

        Args:
            trainer: a subclass of the task's trainer.
            **options: `data`, `epochs`, ... (`yolo cfg` lists all).

        Returns:
            The metrics object of the best weights, with `.save_dir` and `.results_dict`.

        Raises:
            YoloError: for options, data or files that can't be used.
        """
        self._refuse_fused("trained")
        saved = self._run_to_resume(options)
        config = self._train_config(saved, options)
        if config.data is None:
            raise ConfigError(
                "train needs data=: a dataset YAML, a COCO JSON or 'shapes' (embedded), as in "
                "YOLO('yolov8n.yaml').train(data='shapes')"
            )
        network, weights = self.model.yaml, None
        if saved:
            network = saved.network
        elif self.trained and config.pretrained is not False:
            weights = self.model.state_dict()
        runner = (trainer or self.spec.trainer)(
            config, self.spec, network, weights, self.callbacks_.copy(), saved=saved
        )
        self.trainer = runner
        metrics = runner.train()
        self._take_over(runner)
        self.metrics = metrics
        return metrics

    def _take_over(self, runner: Trainer) -> None:
        """Hold what a finished training produced."""
        if runner.args.save:
            self._load_checkpoint(runner.best, None)
            self.overrides["data"] = runner.args.data  # Python objects are in no file
            return
        self.model = runner.final_model.cpu()
        self.trained = True
        self.overrides |= {k: getattr(runner.args, k) for k in _INHERITED}

    def _run_to_resume(self, options: Mapping[str, Any]) -> Checkpoint | None:
        """Read the run that `resume=` names; None without one."""
        asked = options.get("resume", False)
        if not asked:
            return None
        path = self.ckpt_path if asked is True else asked
        if path is None:
            raise ConfigError(
                "resume=True needs a model loaded from the last.pt of a run, as in "
                "YOLO('runs/detect/train/weights/last.pt').train(resume=True)"
            )
        from yolo.engine.resume import open_run

        return open_run(path)

    def _train_config(self, saved: Checkpoint | None, options: Mapping[str, Any]) -> Any:
        """Resolve the options of a training; a resumed one keeps what can't change."""
        if saved is None:
            return self._resolve("train", self._options_for("train"), options)
        from yolo.engine.resume import settle

        base = dict(saved.config)
        transforms = base.pop("augmentations", None)
        if transforms and "augmentations" not in options:
            raise ConfigError(
                f"resume: the run has transforms of your own ({', '.join(transforms)}); give them "
                "again, as augmentations=[...]"
            )
        before = self._resolve("train", base, {})
        return settle(saved, before, self._resolve("train", base, options), options)

    def val(self, validator: type | None = None, **options: Any) -> Any:
        """Score the model on a dataset.

        Returns:
            The metrics object (`.box.map` is COCO's mAP50-95), also kept in `.metrics`.

        Raises:
            YoloError: for options, data or files that can't be used.
        """
        config = self._resolve("val", self._options_for("val"), options)
        if config.data is None:
            raise ConfigError("val needs data=: a dataset YAML, a COCO JSON or 'shapes'")
        import copy

        from yolo.engine.folders import run_folder
        from yolo.engine.progress import Progress
        from yolo.engine.runtime import select_device

        device = select_device(config.device)
        model = self.model if device == self.device else copy.deepcopy(self.model).to(device)
        writes = config.plots or config.save_json or config.save_txt
        place = (config.project, config.name, self.task, "val", config.exist_ok)
        runner = (validator or self.spec.validator)(
            config,
            self.spec,
            self.callbacks_.copy(),
            device,
            run_folder(*place) if writes else ".",
            Progress(config.verbose),
        )
        loader = runner.build_loader(model)
        try:
            self.metrics = runner.run(model, loader)
        finally:
            loader.close()
        return self.metrics

    def predict(
        self,
        source: Any = None,
        stream: bool = False,
        predictor: type[Predictor] | None = None,
        **options: Any,
    ) -> list[Results] | Iterator[Results]:
        """Find objects in images.

        Args:
            source: file, folder, glob, list, array, PIL image, tensor, video, generator.
            stream: return a generator, so that memory stays flat over long sources.
            predictor: a subclass of the task's predictor.
            **options: `conf`, `imgsz`, `save`, ... (`yolo cfg` lists all).

        Returns:
            One Results an image.

        Raises:
            YoloError: for options or sources that can't be used.
        """
        config = self._resolve("predict", self._options_for("predict"), options)
        runner = (predictor or self.spec.predictor)(
            config, self.spec, self._torch_backend(config), self.callbacks_.copy()
        )
        self.predictor = runner
        return runner(config.source if source is None else source, stream=stream or config.stream)

    __call__ = predict

    def _torch_backend(self, config: Any) -> Any:
        from yolo.backends.torch import TorchBackend
        from yolo.engine.runtime import autocast_dtype, select_device

        device = select_device(config.device)
        amp = "fp16" if config.half and device.type == "cuda" else config.amp
        dtype = autocast_dtype(amp if isinstance(amp, str) else False, device)
        self._backend = TorchBackend.reuse(
            self._backend, self.model, device, dtype, config.channels_last
        )
        return self._backend

    # ------------------------------------------------------------------ options

    def _options_for(self, mode: str) -> dict[str, Any]:
        known = getattr(self.spec, f"{mode}_config").model_fields
        return {k: v for k, v in self.overrides.items() if k in known}

    def _resolve(self, mode: str, base: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        schema = getattr(self.spec, f"{mode}_config")
        given = dict(options)
        layers: list[Mapping[str, Any]] = [self.spec.defaults_for(mode), base]
        options_file = given.pop("cfg", None)
        if options_file:
            layers.append(read_options(options_file, given))
        config = resolve(schema, *layers, given, elsewhere=homes_of_option)
        if given.get("plugins"):  # what a checkpoint says is never imported
            from yolo.plugins import load_plugins

            load_plugins(config.plugins)
        if config.task not in {None, self.task}:
            raise ConfigError(f"task={config.task!r}: this model is for {self.task!r}")
        return config

    # ------------------------------------------------------------------ what it is

    @property
    def task(self) -> str:
        """Name of the model's task."""
        return self.spec.name

    @property
    def names(self) -> dict[int, str]:
        """Class names by id."""
        return dict(self.model.names)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    @property
    def task_map(self) -> dict[str, dict[str, type]]:
        """Each task's model, trainer, validator and predictor."""
        parts = ("model", "trainer", "validator", "predictor")
        return {name: {p: getattr(spec, p) for p in parts} for name, spec in TASKS.items()}

    def info(self, detailed: bool = False, verbose: bool = True) -> tuple[int, int, int, float]:
        """Return (layers, parameters, gradients, GFLOPs), and log the table of layers."""
        return self.model.info(detailed=detailed, verbose=verbose)

    def fuse(self) -> YOLO:
        """Fold BatchNorm into the convolutions, for inference; not to be saved or trained then."""
        self.model.fuse()
        self._fused = True
        return self

    def _refuse_fused(self, what: str) -> None:
        if self._fused:
            raise ConfigError(f"a fused model can't be {what}: load the file again, without fuse()")

    def to(self, device: Any) -> YOLO:
        """Move the weights."""
        from yolo.engine.runtime import select_device

        self.model.to(select_device(device))
        return self

    def cpu(self) -> YOLO:
        """Move the weights to the CPU."""
        return self.to("cpu")

    def cuda(self) -> YOLO:
        """Move the weights to the first CUDA device."""
        return self.to("cuda")

    def __getattr__(self, name: str) -> Any:
        """Look further in the inner module (`stride`, `yaml`, `nc`, `parameters()`, ...)."""
        model = self.__dict__.get("model")
        if model is None or name.startswith("__"):
            raise AttributeError(f"'YOLO' has no attribute {name!r}")
        return getattr(model, name)

    def __repr__(self) -> str:
        return f"YOLO({self.model_name!r}, task={self.task!r}, {len(self.model.names)} classes)"

    # ------------------------------------------------------------------ callbacks

    @property
    def callbacks(self) -> dict[str, list[Callback]]:
        """Callbacks by event name."""
        return self.callbacks_.by_event

    def add_callback(self, event: str, callback: Callback) -> None:
        """Call `callback` with the trainer, validator or predictor whenever `event` happens.

        Raises:
            ConfigError: if there is no such event.
        """
        self.callbacks_.add(event, callback)

    def clear_callback(self, event: str) -> None:
        """Remove every callback of `event`."""
        self.callbacks_.clear(event)

    def reset_callbacks(self) -> None:
        """Remove all callbacks."""
        self.callbacks_.reset()


def _task_of(saved: Checkpoint, path: Path, asked: str | None) -> TaskSpec:
    """Return a checkpoint's task.

    Raises:
        CheckpointError: if it isn't known, or isn't the one that was asked for.
    """
    if not saved.task:
        return task_of_network(saved.network, str(path), asked)
    if asked is not None and asked != saved.task:
        raise CheckpointError(f"{path}: holds a model for {saved.task!r}, not {asked!r}")
    if saved.task not in TASKS:
        raise CheckpointError(
            f"{path}: holds a model for {saved.task!r}; known tasks: {', '.join(TASKS)}. A task of "
            "your own must be imported first (plugins=)"
        )
    return TASKS[saved.task]
