# SPDX-License-Identifier: Apache-2.0
"""The training loop: train -> fit -> epoch -> step.

What a run is made of is built in `build.py`, what it leaves behind is written in `record.py`.
Everything that decides the next step is in `state_dict`, so that a killed run goes on bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yolo.engine import build, record
from yolo.engine.checkpoint import Checkpoint, load_checkpoint, plain, save_checkpoint
from yolo.engine.events import Callbacks
from yolo.engine.late import DivergedError, FiniteGuard, LateReader
from yolo.engine.optim import apply_rates
from yolo.engine.progress import Progress
from yolo.engine.runtime import (
    autocast_dtype,
    generator_states,
    reproducible,
    restore_generators,
    run_folder,
    select_device,
    versions,
)
from yolo.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from yolo.cfg.schema import TrainConfig
    from yolo.data.loader import Batch
    from yolo.tasks.spec import TaskSpec

MAX_GRADIENT_NORM = 10.0


class Trainer:
    """Train a network.

    A subclass changes a run by overriding a `build_*` method, `preprocess_batch`, `forward` or
    `validate`; a callback gets the trainer itself.

    Args:
        config: the resolved options, of the task's `train_config`.
        spec: the task.
        network: resolved network description to build (BaseModel.yaml).
        weights: state dict to start from, or None for fresh weights.
        callbacks: callbacks by event.
        resume: a checkpoint with training state, to go on from.
    """

    def __init__(
        self,
        config: TrainConfig,
        spec: TaskSpec,
        network: Mapping[str, Any],
        weights: Mapping[str, Tensor] | None = None,
        callbacks: Callbacks | None = None,
        resume: Checkpoint | None = None,
    ) -> None:
        self.args = config
        self.spec = spec
        self.network = network
        self.initial_weights = weights
        self.callbacks = callbacks or Callbacks()
        self.resumed_from = resume
        self.progress = Progress(config.verbose)
        self.device = select_device(config.device)
        self.epochs = config.epochs
        self.plots = config.plots
        self.epoch = self.start_epoch = 0
        self.batch_i = 0  # batches of the current epoch that are done
        self.iteration = 0  # batches of the whole run that are done
        self.accumulated = 0  # batches since the last optimizer step
        self.elapsed = 0.0  # seconds of training before this process
        self.stop = False
        self._interrupted = False
        self.history: list[dict[str, float]] = []
        self.metrics: dict[str, float] = {}
        self.loss_items: dict[str, Tensor] = {}

    # ------------------------------------------------------------------ the run

    def train(self) -> Any:
        """Run the training and return the metrics object of the best weights.

        Raises:
            YoloError: for what a user can mend: options, data, a batch that doesn't fit.
        """
        with reproducible(self.args.seed, self.args.deterministic):
            try:
                self.setup()
                self.fit()
                return self.finish()
            except torch.cuda.OutOfMemoryError as error:
                raise ConfigError(
                    f"batch={self.batch_size} at imgsz={self.imgsz} doesn't fit the memory of "
                    f"{self.device}; use a smaller batch=, or batch=-1 to find one that fits"
                ) from error
            finally:
                self.fire("teardown")
                self.close()

    def setup(self) -> None:
        """Build everything a run needs, then take over the state to resume from."""
        self.fire("on_pretrain_routine_start")
        self.save_dir = self.build_folder()
        self.wdir = self.save_dir / "weights"
        self.last, self.best = self.wdir / "last.pt", self.wdir / "best.pt"
        self.csv = self.save_dir / "results.csv"
        self.data = build.read_dataset(self.args.data, build.cache_folder(self.args, self.save_dir))
        self.model = self.build_model()
        self.imgsz = build.input_size(self.args.imgsz, self.model.stride)
        self.amp_dtype = autocast_dtype(self.args.amp, self.device)
        self.amp = self.amp_dtype is not None
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.amp_dtype is torch.float16
        )
        self.criterion = self.build_criterion()
        self.loss_names = tuple(self.criterion.names)
        self.batch_size = build.batch_size(self)
        self.train_loader = self.build_train_loader()
        self.optimizer, self.schedule, self.resolved = self.build_optimizer()
        self.accumulate = self.schedule.accumulate
        self.ema = self.build_ema()
        self.test_loader = self.build_val_loader()
        self.validator = self.build_validator()
        self.best_epoch = build.best_epoch(self)
        self.guard = FiniteGuard(self.device)
        self._window_finite = torch.ones((), dtype=torch.bool, device=self.device)
        self.loss_sums = torch.zeros(len(self.loss_names), device=self.device)
        self._shown = LateReader()
        if self.resumed_from is not None:
            self.load_state_dict(self.resumed_from)
        record.write_options(self)
        record.picture_labels(self)
        record.log_start(self)
        self.fire("on_pretrain_routine_end")

    def fit(self) -> None:
        """Run the epochs that are left."""
        self.train_time_start = self._saved_at = time.monotonic()
        self.fire("on_train_start")
        while self.epoch < self.epochs and not self.stop:
            self.train_epoch()
            if not self._interrupted:
                self.end_epoch()

    def train_epoch(self) -> None:
        """Train on what is left of the current epoch."""
        self.epoch_time_start = time.monotonic()
        self._interrupted = False
        if self.batch_i == 0:
            self.loss_sums = torch.zeros_like(self.loss_sums)
        self.fire("on_train_epoch_start")
        build.set_train_mode(self.model, self.frozen)
        batches = self.train_loader.epoch(self.epoch, start_batch=self.batch_i)
        left = len(self.train_loader) - self.batch_i
        for batch in self.progress.bar(batches, left, self.describe):
            self.fire("on_train_batch_start")
            if self.plots and self.iteration < 3 and self.resumed_from is None:
                record.picture_batch(self, batch)
            self.train_step(batch)
            self.fire("on_train_batch_end")
            if self.out_of_time() or self.stop:
                self._interrupted = self.batch_i < len(self.train_loader)
                break
            self.save_between_steps()
        self.fire("on_train_epoch_end")

    def train_step(self, batch: Batch) -> None:
        """Forward, backward, and an optimizer step once enough batches are accumulated."""
        rates = self.schedule.at(self.iteration, self.epoch)
        apply_rates(self.optimizer, rates)
        report = self.forward(batch)
        self.scaler.scale(report.total).backward()
        self.loss, self.loss_items = report.total.detach(), report.parts
        self.loss_sums += torch.stack([report.parts[name] for name in self.loss_names])
        self._window_finite &= torch.isfinite(self.loss)
        self.iteration += 1
        self.batch_i += 1
        self.accumulated += 1
        if self.accumulated >= rates.accumulate:
            self.optimizer_step()

    def forward(self, batch: Batch) -> Any:
        """Return the LossReport of a batch."""
        images, targets = self.preprocess_batch(batch)
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp):
            raw = self.model(images)
        return self.criterion(raw, targets)

    def optimizer_step(self) -> None:
        """Clip, step unless something isn't finite, and move the average."""
        self.fire("optimizer_step")
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        bad = ~self._window_finite
        if not self.scaler.is_enabled():  # the scaler deals with overflowing gradients itself
            bad = bad | ~torch.isfinite(norm)
        build.step_unless(bad, self.optimizer, self.scaler)
        skipped = self.guard.skipped
        self.guard.observe(bad)
        if self.guard.skipped > skipped:
            self.ema.repair(self.model)
        self.fire("on_before_zero_grad")
        self.optimizer.zero_grad(set_to_none=True)
        self.accumulated = 0
        self._window_finite = torch.ones((), dtype=torch.bool, device=self.device)
        self.ema.update(self.model)
        self.guard.check()

    def end_epoch(self) -> None:
        """Validate, choose the best epoch, save, and decide whether to go on."""
        due = (self.epoch + 1) % self.args.val_every == 0 and self.args.val
        last = self.epoch + 1 >= self.epochs
        seconds = time.monotonic() - self.epoch_time_start
        self.epoch_time = seconds
        self.metrics = self.validate() if due or last else {}
        row = record.epoch_row(self)
        self.fitness = self.metrics.get(self.best_epoch.monitor)
        improved = bool(self.metrics) and self.best_epoch.update(self.epoch, row)
        self.history.append(row)
        if self.best_epoch.exhausted(self.epoch):
            self.progress.line(
                f"stopped early: no better {self.best_epoch.monitor} in the last "
                f"{self.args.patience} epochs; best was epoch {self.best_epoch.epoch + 1}"
            )
            self.stop = True
        self.plan_time()
        self.save_model(improved)
        record.write_results(self)
        record.log_epoch(self, row)
        self.fire("on_fit_epoch_end")
        self.epoch, self.batch_i = self.epoch + 1, 0

    def finish(self) -> Any:
        """Validate the best weights, draw the figures, and return the metrics object."""
        model = self.ema.ema
        if self.best.is_file():
            model.load_state_dict(load_checkpoint(self.best).weights)
        metrics = self.validator.run(model, self.test_loader, final=True)
        self.metrics = dict(metrics.results_dict)
        record.draw_results(self)
        self.fire("on_fit_epoch_end")
        self.fire("on_train_end")
        metrics.save_dir = self.save_dir
        record.log_end(self, metrics)
        return metrics

    def close(self) -> None:
        """Stop the loader's workers and give caches back."""
        for name in ("train_loader", "test_loader"):
            loader = getattr(self, name, None)
            if loader is not None:
                loader.close()

    # ------------------------------------------------------------------ parts to override

    def build_folder(self) -> Any:
        """Choose and create the run folder."""
        if self.resumed_from is not None:
            folder = build.resumed_folder(self.resumed_from, self.args)
        else:
            folder = run_folder(
                self.args.project, self.args.name, self.spec.name, "train", self.args.exist_ok
            )
        (folder / "weights").mkdir(parents=True, exist_ok=True)
        return folder

    def build_model(self) -> Any:
        """Build the network for the data's classes, with weights taken over where they fit."""
        model, self.frozen = build.model(self)
        return model

    def build_criterion(self) -> nn.Module:
        """Build the loss from the spec's criterion and the options; each task knows how."""
        raise NotImplementedError(f"{type(self).__name__} must say how its criterion is built")

    def build_train_loader(self) -> Any:
        """Build the loader of training batches."""
        return build.train_loader(self)

    def build_val_loader(self) -> Any:
        """Build the loader of the images that score every epoch."""
        return build.test_loader(self)

    def build_optimizer(self) -> Any:
        """Return the optimizer, its schedule, and the options as they were resolved."""
        return build.optimizer(self)

    def build_ema(self) -> Any:
        """Build the moving average of the weights."""
        return build.ema(self)

    def build_validator(self) -> Any:
        """Build the validator that scores every epoch."""
        return build.validator(self)

    def preprocess_batch(self, batch: Batch) -> tuple[Tensor, Any]:
        """Move a batch to the device and return (images (B, C, H, W) in 0..1, targets)."""
        return build.preprocess(batch, self.device)

    def validate(self) -> dict[str, float]:
        """Score the averaged weights; return metrics and losses by column name."""
        metrics = self.validator.run(
            self.ema.ema, self.test_loader, criterion=self.criterion, final=False
        )
        return dict(metrics.results_dict) | self.validator.losses

    # ------------------------------------------------------------------ numbers for people

    def fire(self, event: str) -> None:
        """Call the callbacks of `event` with this trainer."""
        self.callbacks.fire(event, self)

    def describe(self) -> str:
        """Return the text beside the bar: epoch, and the epoch's mean losses as far as known."""
        self._shown.push(self.loss_sums)
        sums = self._shown.latest() or []
        means = (
            f"{name} {value / max(self.batch_i, 1):.3f}"
            for name, value in zip(self.loss_names, sums, strict=False)
        )
        return f"epoch {self.epoch + 1}/{self.epochs}  {'  '.join(means)}"

    @property
    def tloss(self) -> Tensor:
        """Mean loss items of the current epoch, in the order of `loss_names`."""
        return self.loss_sums / max(self.batch_i, 1)

    @property
    def lr(self) -> dict[str, float]:
        """Learning rates by group, as in the columns of results.csv."""
        return {f"lr/pg{i}": g["lr"] for i, g in enumerate(self.optimizer.param_groups)}

    @property
    def best_fitness(self) -> float | None:
        """The best value of the monitored metric so far."""
        return self.best_epoch.value

    def label_loss_items(self, items: Any = None, prefix: str = "train") -> Any:
        """Return {"train/box_loss": ...} for loss items in order, or the names alone."""
        keys = [f"{prefix}/{name}_loss" for name in self.loss_names]
        if items is None:
            return keys
        return {key: round(float(x), 5) for key, x in zip(keys, items, strict=True)}

    # ------------------------------------------------------------------ time

    def seconds(self) -> float:
        """Return how long the run has trained, earlier processes included."""
        return self.elapsed + time.monotonic() - self.train_time_start

    def out_of_time(self) -> bool:
        """Return True once the time budget is spent."""
        return self.args.time is not None and self.seconds() > self.args.time * 3600

    def plan_time(self) -> None:
        """Choose the number of epochs anew so that the run ends with its time budget."""
        if self.args.time is None:
            return
        if self.out_of_time():
            self.stop = True
            return
        mean = self.seconds() / (self.epoch + 1)
        self.epochs = max(math.floor(self.args.time * 3600 / mean), self.epoch + 1)
        self.schedule = replace(self.schedule, epochs=self.epochs)
        self.stop = self.stop or self.epoch + 1 >= self.epochs

    # ------------------------------------------------------------------ saving and resuming

    def save_between_steps(self) -> None:
        """Save inside an epoch if `save_every` says so."""
        every = self.args.save_every
        if every is None or self.batch_i == len(self.train_loader):
            return
        if isinstance(every, str):
            due = time.monotonic() - self._saved_at >= build.seconds_of(every)
        else:
            due = self.iteration % every == 0
        if due:
            save_checkpoint(self.last, self.checkpoint(self.epoch - 1, with_state=True))
            self._saved_at = time.monotonic()

    def save_model(self, improved: bool) -> None:
        """Write best.pt (first, so that last.pt never runs ahead of it), last.pt, epochN.pt."""
        if not self.args.save:
            return
        if improved:
            save_checkpoint(self.best, self.checkpoint(self.epoch, with_state=False))
        save_checkpoint(self.last, self.checkpoint(self.epoch, with_state=True))
        if self.args.save_period > 0 and (self.epoch + 1) % self.args.save_period == 0:
            path = self.wdir / f"epoch{self.epoch}.pt"
            save_checkpoint(path, self.checkpoint(self.epoch, with_state=False))
        self.fire("on_model_save")

    def checkpoint(self, epoch: int, *, with_state: bool) -> Checkpoint:
        """Return the checkpoint of the last finished `epoch` (0-based)."""
        return Checkpoint(
            task=self.spec.name,
            names=dict(self.model.names),
            network=plain(self.model.yaml),
            weights=dict(self.ema.ema.state_dict()),
            config=plain(self.args.model_dump()) | plain(self.resolved),
            epoch=epoch,
            metrics=plain(self.metrics),
            history=plain(self.history),
            versions=versions(),
            state=self.state_dict() if with_state else None,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides how training goes on, as tensors and plain data."""
        gradients = {
            name: parameter.grad
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }
        return {
            "model": dict(self.model.state_dict()),
            "gradients": gradients if self.accumulated else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema_updates": self.ema.updates,
            "epoch": self.epoch,
            "epochs": self.epochs,
            "batch_i": self.batch_i,
            "iteration": self.iteration,
            "accumulated": self.accumulated,
            "loss_sums": self.loss_sums,
            "guard": self.guard.counts,
            "window_finite": self._window_finite,
            "best_value": self.best_epoch.value,
            "best_epoch": self.best_epoch.epoch,
            "stop": self.stop,
            "elapsed": self.seconds(),
            "generators": generator_states(),
            "threads": torch.get_num_threads(),
            "save_dir": str(self.save_dir),
        }

    def load_state_dict(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: if its run has ended, or it doesn't fit this network.
        """
        state = saved.state or {}
        try:
            self.model.load_state_dict(state["model"])
            self.ema.ema.load_state_dict(saved.weights)
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"resume: the checkpoint doesn't fit this run: {str(error).splitlines()[0]}"
            ) from error
        self.scaler.load_state_dict(state["scaler"])
        self.ema.updates = state["ema_updates"]
        for name, parameter in self.model.named_parameters():
            if name in state["gradients"]:
                parameter.grad = state["gradients"][name].to(self.device)
        for key in ("epoch", "batch_i", "iteration", "accumulated", "elapsed"):
            setattr(self, key, state[key])
        self.loss_sums = state["loss_sums"].to(self.device)
        self.guard.counts = state["guard"].to(self.device)
        self._window_finite = state["window_finite"].to(self.device)
        self.best_epoch.value, self.best_epoch.epoch = state["best_value"], state["best_epoch"]
        self.history = list(saved.history)
        if self.batch_i >= len(self.train_loader):
            self.epoch, self.batch_i = self.epoch + 1, 0
        self.start_epoch = self.epoch
        build.warn_about_threads(state["threads"])
        restore_generators(state["generators"])


__all__ = ["DivergedError", "Trainer"]
