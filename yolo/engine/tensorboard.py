# SPDX-License-Identifier: Apache-2.0
"""Training curves in TensorBoard. An extra: `pip install "plainyolo[tensorboard]"`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo.errors import MissingPackageError

if TYPE_CHECKING:
    from yolo.engine.trainer import Trainer

NO_CURVES = frozenset({"epoch", "time"})


def tensorboard_callbacks(
    log_dir: str | Path | None = None,
) -> dict[str, Callable[[Trainer], None]]:
    """Return callbacks that write every epoch's losses, metrics and learning rates.

    The names are those of the columns of results.csv. A run that is resumed goes on in the same
    curves::

        for event, callback in tensorboard_callbacks().items():
            model.add_callback(event, callback)

    Args:
        log_dir: folder of the event files; None means the run folder.

    Returns:
        Event name -> callback.

    Raises:
        MissingPackageError: if tensorboard isn't installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingPackageError(
            f'TensorBoard is missing ({error}): pip install "plainyolo[tensorboard]"'
        ) from error
    # One entry while a run goes on; the same callbacks serve several runs, one after the other.
    writers: list[Any] = []

    def start(trainer: Trainer) -> None:
        first = len(trainer.history) + 1
        writers.append(SummaryWriter(str(log_dir or trainer.save_dir), purge_step=first))

    def write(trainer: Trainer) -> None:
        row = trainer.history[-1] if trainer.history else {}
        if writers and row.get("epoch") == trainer.epoch + 1:  # not after the last epoch again
            for name in row.keys() - NO_CURVES:
                writers[0].add_scalar(name, row[name], int(row["epoch"]))

    def end(_: Trainer) -> None:
        while writers:
            writers.pop().close()

    return {"on_train_start": start, "on_fit_epoch_end": write, "teardown": end}
