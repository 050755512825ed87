# SPDX-License-Identifier: Apache-2.0
"""What a training run leaves behind: results.csv, args.yaml, pictures, and lines in the log."""

from __future__ import annotations

import csv
import io
import logging
import os
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolo.cfg.load import write_yaml
from yolo.data.class_folders import CLASSES
from yolo.engine import charts, sheet
from yolo.engine.resume import options_of
from yolo.engine.table import loss_column

if TYPE_CHECKING:
    from yolo.data.loader import Batch
    from yolo.engine.trainer import Trainer

LOGGER = logging.getLogger(__name__)


def epoch_row(trainer: Trainer) -> dict[str, float]:
    """Return the finished epoch's line of results.csv; epochs count from 1 there."""
    losses = trainer.label_loss_items(trainer.tloss.tolist())
    return {
        "epoch": trainer.epoch + 1,
        "time": round(trainer.seconds(), 3),
        **losses,
        **{key: float(value) for key, value in trainer.metrics.items() if key != "fitness"},
        **trainer.lr,
    }


def write_results(trainer: Trainer) -> None:
    """Write results.csv anew; epochs without validation leave their metrics empty."""
    columns: dict[str, None] = {}
    for row in sorted(trainer.history, key=len, reverse=True):
        columns.update(dict.fromkeys(row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(trainer.history)
    replace_text(trainer.csv, text.getvalue())


def replace_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_options(trainer: Trainer) -> None:
    """Write args.yaml: the options as resolved, which reproduce the run alone."""
    write_yaml(
        trainer.save_dir / "args.yaml", options_of(trainer) | {"save_dir": str(trainer.save_dir)}
    )


def log_start(trainer: Trainer) -> None:
    """Say what is about to happen."""
    line = trainer.progress.line
    done = f", resumed at epoch {trainer.epoch + 1}" if trainer.resumed_from else ""
    line(
        f"training {trainer.model.yaml.get('name', 'network')} for {trainer.spec.name} on "
        f"{trainer.device}: {len(trainer.train_loader.index)} images, {trainer.epochs} epochs, "
        f"batch {trainer.batch_size}, imgsz {trainer.imgsz}{done}"
    )
    chosen = trainer.resolved
    why = " (chosen by optimizer=auto)" if trainer.args.optimizer == "auto" else ""
    line(
        f"optimizer {chosen['optimizer']}, lr0 {chosen['lr0']:g}, "
        f"momentum {chosen['momentum']:g}{why}; results go to {trainer.save_dir}"
    )
    if trainer.args.layer_lr is not None:
        sizes: Counter[float] = Counter()
        for group in trainer.optimizer.param_groups:
            sizes[group.get("factor", 1.0)] += len(group["params"])
        shares = (f"{size} at {factor:g}" for factor, size in sorted(sizes.items()) if size)
        line(f"layer_lr: weights at a share of these rates: {', '.join(shares)}")


def log_epoch(trainer: Trainer, row: dict[str, float]) -> None:
    """Show the finished epoch as one line."""
    losses = "  ".join(f"{n} {row[loss_column('train', n)]:.4f}" for n in trainer.loss_names)
    scores = "  ".join(
        f"{key.split('/')[-1]} {value:.4f}"
        for key, value in trainer.metrics.items()
        if key.startswith("metrics/")
    )
    skipped = f"  skipped {trainer.guard.skipped}" if trainer.guard.skipped else ""
    width = len(str(trainer.epochs))
    trainer.progress.line(
        f"epoch {trainer.epoch + 1:>{width}}/{trainer.epochs}  {losses}  {scores}  "
        f"{trainer.epoch_time:.1f}s{skipped}"
    )


def log_early_stop(trainer: Trainer) -> None:
    """Say that no epoch was better for too long."""
    best = trainer.stopper
    trainer.progress.line(
        f"stopped early: no better {best.monitor} in the last {best.patience} epochs; best was "
        f"epoch {best.epoch + 1}"
    )


def log_interrupt(trainer: Trainer, name: str) -> None:
    """Say where a signal ended the run, and how it goes on."""
    if not trainer.started or not trainer.args.save:
        why = "save=False" if trainer.started else "no step was done"
        LOGGER.warning("stopped by %s; %s, so there is nothing to resume", name, why)
        return
    LOGGER.warning(
        "stopped by %s in epoch %d/%d after %d of %d batches; all is saved. Go on with:\n"
        "  yolo train resume=True model=%s",
        name, min(trainer.epoch + 1, trainer.epochs), trainer.epochs, trainer.batch_i,
        len(trainer.train_loader), shlex.quote(str(trainer.last)),
    )  # fmt: skip


def log_end(trainer: Trainer, metrics: Any) -> None:
    """Show the result and where it lies."""
    scores = "  ".join(
        f"{key.split('/')[-1]} {value:.4f}"
        for key, value in metrics.results_dict.items()
        if key.startswith("metrics/")
    )
    best = trainer.stopper.epoch + 1
    trainer.progress.line(
        f"{len(trainer.history)} epochs in {trainer.seconds() / 60:.1f} min; "
        f"{f'best epoch {best}' if best else 'no epoch was scored'}: {scores}"
    )
    trainer.progress.line(
        f"weights, curves and pictures: {trainer.save_dir} (weights/best.pt, weights/last.pt)"
    )


def picture_batch(trainer: Trainer, batch: Batch) -> None:
    """Draw a training batch as train_batch<N>.jpg."""
    sheet.save_batch(
        trainer.save_dir / f"train_batch{trainer.iteration}.jpg",
        batch.to("cpu").images.numpy(),
        [trainer.validator.label_marks(batch, i) for i in range(len(batch))],
        trainer.model.names,
        batch.paths,
    )


def draw_results(trainer: Trainer) -> None:
    """Draw the run's curves and the label statistics."""
    if trainer.plots:
        charts.plot_results(trainer.csv, trainer.save_dir / "results.png")


def picture_labels(trainer: Trainer) -> None:
    """Draw what the training labels look like, as labels.jpg."""
    if trainer.plots:
        index = trainer.train_loader.index
        classes = np.asarray(index.arrays["classes"])
        file = trainer.save_dir / "labels.jpg"
        if CLASSES in trainer.spec.label_format().kinds:
            charts.plot_labels(classes, None, trainer.model.names, file)
            return
        boxes = np.asarray(index.arrays["boxes"])
        counts = np.diff(np.asarray(index.offsets))
        sizes = np.repeat(np.asarray(index.shapes)[:, ::-1], counts, axis=0)
        shares = np.concatenate(
            [(boxes[:, :2] + boxes[:, 2:]) / 2 / sizes, (boxes[:, 2:] - boxes[:, :2]) / sizes], 1
        )
        charts.plot_labels(classes, shares, trainer.model.names, file)
