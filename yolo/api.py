# SPDX-License-Identifier: Apache-2.0
"""`YOLO`: load a model, then train, validate and predict with it. It knows no task by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo.backends import is_exported
from yolo.cfg.networks import find_network
from yolo.engine.events import Callback, Callbacks
from yolo.engine.fetch import find_weights, is_weights
from yolo.errors import ConfigError, ModelError
from yolo.exported import ExportedFile
from yolo.options import INHERITED, resolve_call, training_options
from yolo.tasks.spec import TASKS, TaskSpec, task_of_network
from yolo.weights import open_checkpoint, take_over, write_checkpoint

if TYPE_CHECKING:
    import torch

    from yolo.engine.predictor import Predictor
    from yolo.engine.results import Results
    from yolo.engine.tracking import Follower
    from yolo.engine.trainer import Trainer
    from yolo.tuning import TuneResult

NOT_OFFERED = {
    "benchmark": "run `python -m benchmarks.export_parity` in a checkout",
    "embed": "use model.model(images, capture=[row]) and average over height and width",
}
"""Familiar methods, and what to use instead."""


class YOLO:
    """A model with everything one does with it.

    Args:
        model: a network YAML ("yolov8n.yaml", or your own file), a checkpoint (".pt", ours or of
            Ultralytics 8.x; ".safetensors"), a checkpoint's http(s) address with `sha256`, or an
            exported file (".onnx", ".torchscript", ".pt2", "..._openvino_model", ".engine").
        task: the task's name, where the model doesn't say.
        verbose: print the table of layers.
        plugins: your own Python files to import first, for blocks and tasks that they register.
        sha256: what the checkpoint's content must have; a download needs it.
        names: class names of an exported file that doesn't say them.
        kpt_shape: (keypoints, numbers of each), the same.

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
        names: Any = None,
        kpt_shape: tuple[int, int] | None = None,
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
        self._follower: Follower | None = None
        self._fused = False
        self._exported: ExportedFile | None = None
        if is_exported(model):
            self._exported = ExportedFile(model, task=task, names=names, kpt_shape=kpt_shape)
            self.spec: TaskSpec = self._exported.spec
            self.model: Any = str(model)
            self.overrides["imgsz"] = self._exported.backend.imgsz
        elif is_weights(model):
            self._load_checkpoint(find_weights(model, sha256), task)
        else:
            self._build(model, task)
        if verbose and not self._exported:
            self.info()

    # ------------------------------------------------------------------ loading

    def _build(self, name: str | Path, task: str | None) -> None:
        network = find_network(name)
        self.cfg = str(name)
        self.spec = task_of_network(network.yaml, str(network.path), task)
        self.model = self.spec.model(name)

    def _load_checkpoint(self, path: Path, task: str | None) -> None:
        saved, self.spec, self.model = open_checkpoint(path, task)
        self.ckpt_path = str(path)
        self.ckpt = {k: v for k, v in vars(saved).items() if k not in {"weights", "state"}}
        self.trained = True
        self.overrides["model"] = str(path)
        self.overrides |= {k: saved.config[k] for k in INHERITED if k in saved.config}

    def load(self, weights: str | Path, partial: bool = False) -> YOLO:
        """Take over the weights and class names of a checkpoint.

        Args:
            weights: the file.
            partial: where it doesn't fit, take what fits (rows of classes by the classes' names),
                and list the rest in the log.

        Raises:
            MissingFileError, CheckpointError: if the file can't be read, or doesn't fit.
        """
        self._need_network("loaded with weights")
        take_over(self.model, self.task, weights, partial)
        self.trained = True
        return self

    def save(self, filename: str | Path = "saved_model.pt") -> None:
        """Write the model as a checkpoint that `YOLO(filename)` reads."""
        self._need_network("saved", fused=False)
        write_checkpoint(self.model, self.task, filename)

    def reset_weights(self) -> YOLO:
        """Give the model fresh weights."""
        self._need_network("given fresh weights")
        names = self.model.names
        self.model = self.spec.model(self.model.yaml)
        self.model.names = names
        self.trained = self._fused = False
        return self

    def set_classes(self, names: Sequence[str] | Mapping[int, str], embeddings: Any = None) -> YOLO:
        """Give a World network other words to look for; see docs/world.md.

        Args:
            names: the words.
            embeddings: (N, E) numbers, a .npy, .npz or .safetensors file, a text encoder; None
                where the words are among the network's own.

        Raises:
            YoloError: if the classes are fixed, or the embeddings can't be used.
        """
        self._need_network("given other classes")
        if not hasattr(self.model, "set_classes"):
            raise ModelError(f"the classes of a network for {self.task!r} are fixed")
        self.model.set_classes(names, embeddings)
        return self

    def add_classes(self, names: Sequence[str] | Mapping[int, str]) -> YOLO:
        """Add classes to a trained network: what it says of its own stays as it is, bit for bit.

        The new ones come last and start with no opinion; train them on data that name all classes.

        Args:
            names: of the new classes.

        Raises:
            ModelError: if a name is known already, or the head can't take more classes.
        """
        self._need_network("given more classes", fused=False)
        from yolo.engine.network import with_classes

        self.model = with_classes(self.model, names)
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
        self._need_network("trained", fused=False)
        config, saved = training_options(self.spec, self.overrides, options, self.ckpt_path)
        if config.data is None:
            raise ConfigError(
                "train needs data=: a dataset YAML, a COCO JSON or 'shapes' (embedded), as in "
                "YOLO('yolov8n.yaml').train(data='shapes')"
            )
        from yolo.engine.launch import launch, ranks_to_start

        ranks = ranks_to_start(config.ranks, config.device)
        if ranks > 1 and not config.save:
            raise ConfigError(f"save=False: the {ranks} ranks hand over their result as best.pt")
        if ranks > 1:
            known = {self.spec.model.__module__, self.spec.trainer.__module__}
            self.metrics = launch(self.train, {"trainer": trainer, **options}, ranks, known)
            self._load_checkpoint(self.metrics.save_dir / "weights" / "best.pt", None)
            return self.metrics
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
        if runner.args.save and runner.best.is_file():  # the files of another node aren't here
            self._load_checkpoint(runner.best, None)
            self.overrides["data"] = runner.args.data  # Python objects are in no file
            return
        self.model = runner.final_model.cpu()
        self.trained = True
        self.overrides |= {k: getattr(runner.args, k) for k in INHERITED}

    def val(self, validator: type | None = None, **options: Any) -> Any:
        """Score the model on a dataset.

        Returns:
            The metrics object (`.box.map` is COCO's mAP50-95), also kept in `.metrics`.

        Raises:
            YoloError: for options, data or files that can't be used.
        """
        config = resolve_call(self.spec, "val", self.overrides, options)
        if config.data is None:
            raise ConfigError("val needs data=: a dataset YAML, a COCO JSON or 'shapes'")
        import copy

        from yolo.engine.folders import run_folder
        from yolo.engine.progress import Progress
        from yolo.engine.runtime import select_device

        device = select_device("cpu" if self._exported else config.device)
        if self._exported:
            config, model = self._exported.for_validation(config)
        elif device == self.device:
            model = self.model
        else:
            model = copy.deepcopy(self.model).to(device)
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

    def tune(
        self,
        space: Mapping[str, Sequence[Any]] | str | Path | None = None,
        iterations: int = 100,
        storage: str | None = None,
        resume: str | Path | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> TuneResult:
        """Search for the training options of the highest fitness; the model stays as it is.

        Args:
            space: option -> (low, high), (low, high, "log") or a list of choices, or a YAML file
                of that; `yolo.tuning.SPACE` where nothing is given.
            iterations: trials in all, earlier calls of a resumed search included. Hopeless ones
                are cut short.
            storage: where Optuna keeps the study: a file in the folder, or a server's URL, through
                which several machines search together (each gives the same `name`).
            resume: the folder of a search to go on with.
            timeout: seconds after which no further trial begins.
            **options: of every training: `data`, `epochs`, ...; `optimizer` is AdamW unless given.

        Raises:
            ConfigError: for options or ranges that can't be used, or without the package optuna.
        """
        self._need_network("tuned", fused=False)
        from yolo.tuning import tune

        return tune(self, space, iterations, storage, resume, timeout, options)

    def export(self, **options: Any) -> str:
        """Write the model for another runtime, and prove that the file computes what it does.

        Args:
            **options: `format`, `imgsz`, `dynamic`, `half`, `nms`, ... (`yolo cfg export` lists
                all).

        Returns:
            Path of the file or folder: beside the weights, or in the current folder.

        Raises:
            ExportError: if the file can't be made, or doesn't agree with the model; nothing stays
                under its name then.
            YoloError: for options that can't be used, or a package that is missing.
        """
        self._need_network("exported")
        from yolo.export.exporter import Exporter

        base = {k: v for k, v in self.overrides.items() if k == "imgsz"}
        config = resolve_call(self.spec, "export", base, options)
        stem = Path(self.ckpt_path or Path(self.model_name).name).with_suffix("")
        return str(Exporter(config, self.spec, self.model, stem, self.callbacks_.copy()).run())

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
        for name in ("tracker", "persist"):
            if name in options:
                raise ConfigError(f"option {name!r} belongs to track, not to predict")
        config = resolve_call(self.spec, "predict", self.overrides, options)
        runner = self._make_predictor(config, predictor)
        return runner(config.source if source is None else source, stream=stream or config.stream)

    __call__ = predict

    def track(
        self,
        source: Any = None,
        stream: bool = False,
        persist: bool = False,
        tracker: Any = None,
        predictor: type[Predictor] | None = None,
        **options: Any,
    ) -> list[Results] | Iterator[Results]:
        """Find objects in the frames of a video, and follow them: `boxes.id` (`obb.id`) is filled.

        Each video of the source begins afresh, still images are one sequence. Streams that take
        turns need a `Tracker` each.

        Args:
            source: as for `predict`.
            stream: return a generator, so that memory stays flat over long videos.
            persist: go on with the tracker of the call before, for frames given one by one.
            tracker: botsort (the default), bytetrack, ocsort, sort or cbiou; a YAML file with
                `tracker_type` and settings; or a `yolo.Tracker` of your own, which remembers until
                its `reset()`.
            predictor: a subclass of the task's predictor.
            **options: as for `predict`; `conf` is 0.1 unless given.

        Returns:
            One Results an image, with the objects that are tracked.

        Raises:
            YoloError: for options or sources that can't be used, or without the package
                `trackers`.
        """
        from yolo.engine.tracking import CONF, Follower

        options |= {"persist": persist} | ({} if tracker is None else {"tracker": tracker})
        config = resolve_call(self.spec, "predict", {"conf": CONF, **self.overrides}, options)
        self._follower = Follower.for_call(config, self._follower)
        runner = self._make_predictor(config, predictor)
        runner.writer.mode = "track"
        # Before the user's callbacks, which see tracked results.
        runner.callbacks.by_event["on_predict_postprocess_end"].insert(0, self._follower)
        return runner(config.source if source is None else source, stream=stream or config.stream)

    def _make_predictor(self, config: Any, predictor: type[Predictor] | None) -> Predictor:
        made: Predictor = (predictor or self.spec.predictor)(
            config, self.spec, self._run_on(config), self.callbacks_.copy()
        )
        self.predictor = made
        return made

    def _run_on(self, config: Any) -> Any:
        if self._exported:
            return self._exported.for_call(config)
        from yolo.backends.torch import TorchBackend
        from yolo.engine.runtime import autocast_dtype, select_device

        device = select_device(config.device)
        amp = "fp16" if config.half and device.type == "cuda" else config.amp
        dtype = autocast_dtype(amp if isinstance(amp, str) else False, device)
        self._backend = TorchBackend.reuse(
            self._backend, self.model, device, dtype, config.channels_last
        )
        return self._backend

    # ------------------------------------------------------------------ what it is

    @property
    def task(self) -> str:
        """Name of the model's task."""
        return self.spec.name

    @property
    def names(self) -> dict[int, str]:
        """Class names by id."""
        return dict(self._exported.backend.names if self._exported else self.model.names)

    @property
    def device(self) -> torch.device | None:
        """Where the model's weights are; None of an exported file."""
        return None if self._exported else next(self.model.parameters()).device

    @property
    def task_map(self) -> dict[str, dict[str, type]]:
        """Each task's model, trainer, validator and predictor."""
        parts = ("model", "trainer", "validator", "predictor")
        return {name: {p: getattr(spec, p) for p in parts} for name, spec in TASKS.items()}

    def info(self, detailed: bool = False, verbose: bool = True) -> tuple[int, int, int, float]:
        """Return (layers, parameters, gradients, GFLOPs), and log the table of layers."""
        self._need_network("looked into")
        return self.model.info(detailed=detailed, verbose=verbose)

    def fuse(self) -> YOLO:
        """Fold BatchNorm into the convolutions, for inference; not to be saved or trained then."""
        self._need_network("fused")
        self.model.fuse()
        self._fused = True
        return self

    def _need_network(self, what: str, fused: bool = True) -> None:
        if self._exported:
            raise ConfigError(
                f"an exported file can't be {what}, {self.model_name} can only predict and be "
                "validated: load the checkpoint that it was made from"
            )
        if self._fused and not fused:
            raise ConfigError(f"a fused model can't be {what}: load the file again, without fuse()")

    def to(self, device: Any) -> YOLO:
        """Move the weights."""
        from yolo.engine.runtime import select_device

        self._need_network("moved; give device= to predict and val")
        self.model.to(select_device(device))
        return self

    def cpu(self) -> YOLO:
        """Move the weights to the CPU."""
        return self.to("cpu")

    def cuda(self) -> YOLO:
        """Move the weights to the first CUDA device."""
        return self.to("cuda")

    def eval(self) -> YOLO:
        """Put the network into evaluation mode; predict and val do so by themselves."""
        self._need_network("put into a mode")
        self.model.eval()
        return self

    def __getattr__(self, name: str) -> Any:
        """Look further in the inner module (`stride`, `yaml`, `nc`, `parameters()`, ...)."""
        if name in NOT_OFFERED:
            raise AttributeError(f"YOLO.{name} isn't offered: {NOT_OFFERED[name]}")
        model = self.__dict__.get("model")
        if model is None or name.startswith("__"):
            raise AttributeError(f"'YOLO' has no attribute {name!r}")
        return getattr(self._exported.backend if self._exported else model, name)

    def __repr__(self) -> str:
        return f"YOLO({self.model_name!r}, task={self.task!r}, {len(self.names)} classes)"

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


YOLOWorld = YOLO
"""The familiar name where a network takes words; which class reads a file makes no difference."""
