# SPDX-License-Identifier: Apache-2.0
"""The training loop: train -> fit -> epoch -> step.

`parts.py` says what a run is made of and what a subclass may replace; what a run leaves behind is
written in `record.py`, and `resume.py` keeps what it needs to go on.
"""

from __future__ import annotations

import contextlib
import copy
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yolo.data.recipe import close_epoch
from yolo.data.workers import lost_worker_told
from yolo.engine import build, distill, inputs, network, record, resume
from yolo.engine.checkpoint import Checkpoint, load_checkpoint, plain, save_checkpoint
from yolo.engine.events import Callbacks
from yolo.engine.feed import feed
from yolo.engine.idle_terms import IdleTerms
from yolo.engine.interrupt import Interrupted, InterruptGuard, leave
from yolo.engine.late import DivergedError, FiniteGuard, LateReader
from yolo.engine.optim import apply_rates
from yolo.engine.parts import TrainerParts
from yolo.engine.profiling import StepProfiler
from yolo.engine.progress import Progress
from yolo.engine.ranks import Ranks, joined, own_device
from yolo.engine.runtime import autocast_dtype, reproducible
from yolo.engine.table import loss_column
from yolo.errors import ConfigError

if TYPE_CHECKING:
    from yolo.cfg.schema import TrainConfig
    from yolo.data.loader import Batch
    from yolo.nn.losses import LossReport
    from yolo.tasks.spec import TaskSpec

MAX_GRADIENT_NORM = 10.0


class Trainer(TrainerParts):
    """Train a network.

    A subclass changes a run by overriding `forward` or one of `TrainerParts`' methods; a callback
    gets the trainer itself.

    Args:
        config: the resolved options, of the task's `train_config`.
        spec: the task.
        network: resolved network description to build (BaseModel.yaml).
        weights: state dict to start from, or None for fresh weights. Its class names are those of
            `network`.
        callbacks: callbacks by event.
        saved: a checkpoint with training state, to go on from.
    """

    def __init__(
        self,
        config: TrainConfig,
        spec: TaskSpec,
        network: Mapping[str, Any],
        weights: Mapping[str, Tensor] | None = None,
        callbacks: Callbacks | None = None,
        saved: Checkpoint | None = None,
    ) -> None:
        self.args = config
        self.spec = spec
        self.network = network
        self.initial_weights = weights
        self.fresh = weights is None and isinstance(config.pretrained, bool)
        self.callbacks = callbacks or Callbacks()
        self.resumed_from = saved
        self.progress = Progress(config.verbose)
        self.device = own_device(config.device)
        self.ranks = Ranks()
        self.epochs = resume.planned_epochs(config, saved)
        self.batch_size: Any = config.batch
        self.imgsz: Any = config.imgsz
        self.plots = config.plots
        self.epoch = self.start_epoch = 0
        self.batch_i = 0  # batches of the current epoch that are done
        self.iteration = 0  # batches of the whole run that are done
        self.accumulated = 0  # batches since the last optimizer step
        self.elapsed = 0.0  # seconds of training before this process
        self.epoch_time = 0.0
        self.train_time_start = self.epoch_time_start = self.saved_at = time.monotonic()
        self.stop = self.started = self.finished = False
        self.interrupt = InterruptGuard()
        self.history: list[dict[str, float]] = []
        self.metrics: dict[str, float] = {}
        self.fitness: float | None = None
        self.loss: Tensor | None = None
        self.loss_items: dict[str, Tensor] = {}

    # ------------------------------------------------------------------ the run

    @lost_worker_told()
    def train(self) -> Any:
        """Run the training and return the metrics object of the best weights.

        Ctrl-C and SIGTERM end it after the current step, with a checkpoint to go on from.

        Raises:
            YoloError: for what a user can mend: options, data, a batch that doesn't fit.
            SystemExit, KeyboardInterrupt: after a signal; see `interrupt.leave`.
        """
        with (
            joined(self.device) as self.ranks,
            self.interrupt,
            reproducible(self.args.seed, self.args.deterministic),
        ):
            try:
                self.setup()
                self.fit()
                return self.finish()
            except Interrupted as interrupted:
                number = interrupted.number
                if self.started and not self.finished:
                    self.save_last(epoch=self.epoch - 1)
                record.log_interrupt(self, str(interrupted))
            except torch.cuda.OutOfMemoryError as error:
                raise ConfigError(
                    f"batch={self.batch_size} at imgsz={self.imgsz} doesn't fit the memory of "
                    f"{self.device}; use a smaller batch=, or batch=-1 to find one that fits"
                ) from error
            finally:
                self.close()
                self.fire("teardown")
        leave(number)

    def setup(self) -> None:
        """Build everything a run needs, then take over the state to resume from."""
        self.progress = Progress(self.args.verbose and self.ranks.main)
        self.plots = self.args.plots and self.ranks.main
        self.fire("on_pretrain_routine_start")
        self.save_dir = self.ranks.share(self.build_folder() if self.ranks.main else None)
        self.wdir = self.save_dir / "weights"
        self.last, self.best = self.wdir / "last.pt", self.wdir / "best.pt"
        self.csv = self.save_dir / "results.csv"
        with self.ranks.main_first():
            self.data = self.build_data()
        self.model = self.build_model()
        self.learner = self.build_learner()
        self.step_model: Any = self.ranks.wrap(self.learner, self.device, self.args.sync_bn)
        if self.args.compile and self.learner is self.model:
            self.step_model = build.compiled(self.step_model, self.args.compile)
        self.ema = self.build_ema()
        self.imgsz = inputs.input_size(self.args.imgsz, self.model.stride)
        self.amp_dtype = autocast_dtype(self.args.amp, self.device)
        self.amp = self.amp_dtype is not None
        fp16 = self.amp_dtype is torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=fp16)
        with self.ranks.main_first():
            self.task_criterion = self.build_criterion()
            self.criterion = distill.build_criterion(self, self.task_criterion)
            self.idle_terms = IdleTerms(
                self.criterion, watch=not (self.frozen or self.args.sync_bn)
            )
            self.batch_size = build.batch_size(self)
            self.train_loader = self.build_train_loader()
        self.loss_names: tuple[str, ...] = tuple(self.criterion.names)
        self.optimizer, self.scheduler, self.resolved = self.build_optimizer()
        self.asked = {name: plain(getattr(self.args, name)) for name in self.resolved}
        self.accumulate = self.scheduler.accumulate
        with self.ranks.main_first():
            self.test_loader = self.build_val_loader()
        self.validator = self.build_validator()
        self.stopper = build.best_epoch(self)
        self.guard = FiniteGuard(self.device)
        self.window_finite = torch.ones((), dtype=torch.bool, device=self.device)
        self.loss_sums = torch.zeros(len(self.loss_names) + 1, device=self.device)
        self._shown = LateReader()
        self.profiler = StepProfiler(self.save_dir, self.args.profile, self.device)
        self.profiler.watch(self.task_criterion, "match", "assigner")
        if self.resumed_from is not None:
            resume.restore(self, self.resumed_from)
        if self.ranks.main:
            self.wdir.mkdir(parents=True, exist_ok=True)
            record.write_options(self)
            record.picture_labels(self)
            record.log_start(self)
        self.fire("on_pretrain_routine_end")

    def fit(self) -> None:
        """Run the epochs that are left."""
        self.train_time_start = self.saved_at = time.monotonic()
        with self.interrupt.deferred():
            self.started = True
            self.fire("on_train_start")
            if self.resumed_from is None:
                self.save_last(epoch=-1)  # so that a run killed in its first epoch can go on, too
            while self.epoch < self.epochs and not self.stop:
                self.train_epoch()
                if self.batch_i == len(self.train_loader):
                    self.end_epoch()

    def train_epoch(self) -> None:
        """Train on what is left of the current epoch, or until something wants to stop."""
        self.epoch_time_start = time.monotonic()
        if self.batch_i == 0:
            self.loss_sums = torch.zeros_like(self.loss_sums)
        self.fire("on_train_epoch_start")
        network.set_train_mode(self.model, self.frozen)
        mixing = self.epoch < close_epoch(self.epochs, self.args.close_mosaic)
        batches = self.train_loader.epoch(self.epoch, self.batch_i, mixing)
        left = len(self.train_loader) - self.batch_i
        batches = self.profiler.batches(feed(batches, self.device))
        for batch in self.progress.bar(batches, left, self.describe):
            self.fire("on_train_batch_start")
            if self.plots and self.iteration < 3 and self.resumed_from is None:
                record.picture_batch(self, batch)
            self.profiler.before_step()
            self.train_step(batch)
            self.profiler.after_step()
            self.fire("on_train_batch_end")
            self.stop = bool(self.ranks.largest(self.stop or self.out_of_time()))
            if self.stop:
                break
            self.save_between_steps()
            self.interrupt.noted = self.ranks.largest(self.interrupt.noted or 0) or None
            self.interrupt.check()
        self.fire("on_train_epoch_end")

    def train_step(self, batch: Batch) -> None:
        """Forward, backward, and an optimizer step once enough batches are accumulated."""
        rates = self.scheduler.at(self.iteration, self.epoch)
        apply_rates(self.optimizer, rates)
        with self.ranks.joint():
            report = self.forward(batch)
            # Each rank has its share of the loss, and gradients are averaged, not added up.
            with self.profiler.stage("backward"):
                self.scaler.scale(report.total * self.ranks.world).backward()
            self.note_loss(report)
        self.iteration += 1
        self.batch_i += 1
        self.accumulated += 1
        if self.accumulated >= rates.accumulate:
            with self.profiler.stage("optimizer"):
                self.optimizer_step()

    def forward(self, batch: Batch) -> Any:
        """Return the LossReport of a batch."""
        with self.profiler.stage("data"):
            images, targets = self.preprocess_batch(batch)
        cast = torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp)
        with self.profiler.stage("forward"), cast:
            raw = self.step_model(images)
        with self.profiler.stage("loss"):
            return self.criterion(raw, targets)

    def note_loss(self, report: LossReport) -> None:
        """Add the step's loss items to the epoch's sums, unless the loss isn't finite."""
        parts = [report.total.detach(), *(report.parts[name] for name in self.loss_names)]
        self.loss, *items = self.ranks.sum(torch.stack(parts)).unbind()
        self.loss_items = dict(zip(self.loss_names, items, strict=True))
        finite = torch.isfinite(self.loss)
        row = torch.stack((*items, torch.ones_like(self.loss)))  # the last column counts the steps
        self.loss_sums += torch.where(finite, row, 0.0)
        self.window_finite &= finite

    def optimizer_step(self) -> None:
        """Clip, step unless something isn't finite, and move the average."""
        self.fire("optimizer_step")
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.learner.parameters(), MAX_GRADIENT_NORM)
        bad = ~self.window_finite
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
        self.window_finite = torch.ones_like(self.window_finite)
        with self.profiler.stage("EMA"):
            self.ema.update(self.model)
        self.guard.check()

    def end_epoch(self) -> None:
        """Validate, choose the best epoch, save, and decide whether to go on."""
        self.epoch_time = time.monotonic() - self.epoch_time_start
        self.idle_terms.end_epoch(self.ranks)
        self.plan_time()
        last = self.stop or self.epoch + 1 >= self.epochs
        due = self.args.val and (self.epoch + 1) % self.args.val_every == 0
        with self.interrupt.allowed():
            self.metrics = self.validate() if due or last else {}
        row = record.epoch_row(self)
        self.fitness = self.metrics.get(self.stopper.monitor)
        improved = bool(self.metrics) and self.stopper.update(self.epoch, row | self.metrics)
        self.history.append(row)
        if self.metrics and not last and self.stopper.exhausted(self.epoch):
            record.log_early_stop(self)
            self.stop = True
        self.stop = bool(self.ranks.largest(self.stop or self.out_of_time()))
        self.save_epoch(improved)
        if self.ranks.main:
            record.write_results(self)
            record.log_epoch(self, row)
        self.fire("on_fit_epoch_end")
        self.epoch, self.batch_i = self.epoch + 1, 0

    def finish(self) -> Any:
        """Validate the best weights, draw the figures, and return the metrics object."""
        self.final_model = self.best_model()
        metrics = self.validator.run(self.final_model, self.test_loader, final=True)
        metrics.save_dir = self.save_dir
        self.metrics = dict(metrics.results_dict)
        self.finished = True
        self.save_last(epoch=self.epoch - 1)
        if self.ranks.main:
            record.write_results(self)
            record.draw_results(self)
        self.fire("on_fit_epoch_end")
        self.fire("on_train_end")
        record.log_end(self, metrics)
        return metrics

    def best_model(self) -> Any:
        """Return a copy of the network with the best weights, or the last where none are saved."""
        model = copy.deepcopy(self.ema.ema)
        if self.args.save:
            weights = None
            if self.ranks.main:
                if self.stopper.epoch < 0 or not self.best.is_file():  # stopped before any score
                    save_checkpoint(self.best, self.checkpoint(self.epoch - 1, with_state=False))
                weights = load_checkpoint(self.best).weights
            model.load_state_dict(self.ranks.share(weights))
        for mine, fresh in zip(model.parameters(), self.model.parameters(), strict=True):
            mine.requires_grad_(fresh.requires_grad)
        return model

    def close(self) -> None:
        """Stop the loader's workers, and leave no empty folder behind."""
        for name in ("train_loader", "test_loader", "profiler"):
            part = getattr(self, name, None)
            if part is not None:
                part.close()
        if hasattr(self, "save_dir") and self.ranks.main and not self.args.exist_ok:
            if not self.started and self.resumed_from is None:
                shutil.rmtree(self.save_dir / "cache", ignore_errors=True)  # images drawn, labels
            ours = 3 if self.args.project is None else 1  # runs/<task>/<name>
            with contextlib.suppress(OSError):
                for folder in (self.save_dir, *self.save_dir.parents)[:ours]:
                    folder.rmdir()  # removes nothing that holds something

    # ------------------------------------------------------------------ numbers for people

    def fire(self, event: str) -> None:
        """Call the callbacks of `event` with this trainer."""
        self.callbacks.fire(event, self)

    def describe(self) -> str:
        """Return the text beside the bar: epoch, and the epoch's mean losses as far as known."""
        self._shown.push(self.loss_sums)
        *sums, steps = self._shown.latest() or [0.0]
        means = (
            f"{name} {value / max(steps, 1):.3f}"
            for name, value in zip(self.loss_names, sums, strict=False)
        )
        return f"epoch {self.epoch + 1}/{self.epochs}  {'  '.join(means)}"

    @property
    def tloss(self) -> Tensor:
        """Mean loss items of the current epoch's finite steps, in the order of `loss_names`."""
        return self.loss_sums[:-1] / self.loss_sums[-1]

    @property
    def lr(self) -> dict[str, float]:
        """Learning rates by group, as in the columns of results.csv; `layer_lr` has shares."""
        plain = [g for g in self.optimizer.param_groups if g.get("factor", 1.0) == 1.0]
        return {f"lr/pg{i}": group["lr"] for i, group in enumerate(plain)}

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.ranks.world

    @property
    def best_fitness(self) -> float | None:
        """The best value of the monitored metric so far."""
        return self.stopper.value

    def label_loss_items(self, items: Any = None, prefix: str = "train") -> Any:
        """Return {"train/box_loss": ...} for loss items in order, or the names alone.

        Args:
            items: numbers in the order of `loss_names`, or by name as `loss_items` has them.
            prefix: "train" or "val".
        """
        keys = [loss_column(prefix, name) for name in self.loss_names]
        if items is None:
            return keys
        values = [items[n] for n in self.loss_names] if isinstance(items, Mapping) else items
        return {key: round(float(x), 5) for key, x in zip(keys, values, strict=True)}

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
        mean = self.ranks.share(self.seconds()) / (self.epoch + 1)
        self.epochs = max(math.floor(self.args.time * 3600 / mean), self.epoch + 1)
        self.scheduler = replace(self.scheduler, epochs=self.epochs)

    # ------------------------------------------------------------------ saving

    def checkpoint(self, epoch: int, *, with_state: bool) -> Checkpoint:
        """Return the checkpoint of the last finished `epoch` (0-based)."""
        return resume.snapshot(self, epoch, with_state=with_state)

    def save_last(self, epoch: int) -> None:
        """Write last.pt, from which the run can go on; `epoch` is the last finished one."""
        if self.args.save and self.ranks.main:
            save_checkpoint(self.last, self.checkpoint(epoch, with_state=True))
            self.saved_at = time.monotonic()

    def save_between_steps(self) -> None:
        """Save inside an epoch if `save_every` says so."""
        every = self.args.save_every
        if every is None or self.batch_i == len(self.train_loader):
            return
        if isinstance(every, str):
            due = time.monotonic() - self.saved_at >= build.seconds_of(every)
        else:
            due = self.iteration % every == 0
        if due:
            self.save_last(epoch=self.epoch - 1)

    def save_epoch(self, improved: bool) -> None:
        """Write best.pt (first, so that last.pt never runs ahead of it), last.pt, epochN.pt."""
        if not self.args.save or not self.ranks.main:
            return
        weights = [self.best] if improved else []
        if self.args.save_period > 0 and (self.epoch + 1) % self.args.save_period == 0:
            weights.append(self.wdir / f"epoch{self.epoch}.pt")
        for path in weights:
            save_checkpoint(path, self.checkpoint(self.epoch, with_state=False))
        self.save_last(self.epoch)
        self.fire("on_model_save")


__all__ = ["DivergedError", "Trainer"]
