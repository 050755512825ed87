# SPDX-License-Identifier: Apache-2.0
"""Weights into a model and out of it: open a checkpoint, take one over, write one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo.errors import CheckpointError
from yolo.tasks.spec import TASKS, TaskSpec, task_of_network

if TYPE_CHECKING:
    from yolo.engine.checkpoint import Checkpoint

LOGGER = logging.getLogger(__name__)


def open_checkpoint(path: Path, asked: str | None) -> tuple[Checkpoint, TaskSpec, Any]:
    """Read a checkpoint, ours or a foreign one, and build its network.

    Args:
        path: the file.
        asked: the task that the user named.

    Returns:
        The checkpoint, its task, the network with its weights.

    Raises:
        CheckpointError: if it can't be used, or isn't for `asked`.
    """
    from yolo.engine.checkpoint import load_checkpoint
    from yolo.engine.network import load_model

    saved = load_checkpoint(path)
    spec = _task_of(saved, path, asked)
    return saved, spec, load_model(saved, spec, str(path))


def _task_of(saved: Checkpoint, path: Path, asked: str | None) -> TaskSpec:
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


def take_over(model: Any, task: str, weights: str | Path, partial: bool) -> None:
    """Copy a checkpoint's weights and class names into a network.

    Args:
        model: the network.
        task: its task.
        weights: the file.
        partial: take what fits; else everything must.

    Raises:
        MissingFileError, CheckpointError: if the file can't be read, or doesn't fit.
    """
    from yolo.engine.checkpoint import load_checkpoint
    from yolo.engine.network import listed, misfits, take_weights

    saved = load_checkpoint(weights)
    found = misfits(model.state_dict(), saved.weights)
    if (found or saved.task != task) and not partial:
        raise CheckpointError(
            f"{weights}: the weights, for {saved.task!r} with {len(saved.names)} classes, "
            f"don't fit this network, for {task!r} with {model.nc}: "
            f"{listed(found) or 'another task'}. To take what fits: load(..., partial=True)"
        )
    names = saved.names if found else None
    LOGGER.info(take_weights(model, saved.weights, str(weights), names))
    if not found and "words" in saved.network:
        model.set_classes(saved.names, saved.network["words"])
    elif not found:
        model.names = dict(saved.names)


def write_checkpoint(model: Any, task: str, path: str | Path) -> None:
    """Write a network as a checkpoint without training state."""
    from yolo.engine.checkpoint import Checkpoint, plain, save_checkpoint
    from yolo.engine.runtime import versions

    content = Checkpoint(
        task=task,
        names=dict(model.names),
        network=plain(model.yaml),
        weights={k: v.detach().cpu() for k, v in model.state_dict().items()},
        versions=versions(),
    )
    save_checkpoint(Path(path), content)
