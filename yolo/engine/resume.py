# SPDX-License-Identifier: Apache-2.0
"""Going on with a run: what is kept of its state, how it is put back, and what may change.

Everything that decides the next step is in `snapshot`, so that a killed run goes on bit for bit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from yolo.data.datasets import recordable
from yolo.engine.checkpoint import Checkpoint, load_checkpoint, plain
from yolo.engine.folders import run_path
from yolo.engine.network import listed, misfits
from yolo.engine.runtime import generator_states, restore_generators, versions
from yolo.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from yolo.cfg.schema import TrainConfig
    from yolo.engine.trainer import Trainer

LOGGER = logging.getLogger(__name__)

MAY_CHANGE = frozenset(
    {
        "epochs", "imgsz", "batch", "device", "close_mosaic", "augmentations", "augment_on",
        "save_period", "save_every", "workers", "cache", "cache_dir", "patience", "time", "freeze",
        "val", "val_every", "plots", "verbose", "profile", "compile", "channels_last", "plugins",
        "resume", "model", "data", "task", "exist_ok", "teacher",
    }
)  # fmt: skip
"""Options that may differ when a run is resumed."""

EXTENDS = ("epochs", "patience", "time")
"""Options that let a run go on that had ended."""

_COUNTERS = ("epoch", "batch_i", "iteration", "accumulated", "finished", "stop")


def options_of(trainer: Trainer) -> dict[str, Any]:
    """Return the run's options as resolved: what reproduces it alone, as plain data."""
    given = trainer.args
    teacher = None if given.teacher is None else Path(given.teacher).absolute()
    args = given.model_copy(update={"data": recordable(given.data), "teacher": teacher})
    options = plain(args.model_dump()) | plain(trainer.resolved)
    return options | {"task": trainer.spec.name, "batch": trainer.batch_size, "resume": False}


def snapshot(trainer: Trainer, epoch: int, *, with_state: bool) -> Checkpoint:
    """Return the checkpoint of a run whose last finished epoch is `epoch` (0-based, -1: none)."""
    return Checkpoint(
        task=trainer.spec.name,
        names=dict(trainer.model.names),
        network=plain(trainer.model.yaml),
        weights=dict(trainer.ema.ema.state_dict()),
        config=options_of(trainer),
        epoch=epoch,
        metrics=plain(trainer.metrics),
        history=plain(trainer.history),
        versions=versions(),
        state=run_state(trainer) if with_state else None,
    )


def run_state(trainer: Trainer) -> dict[str, Any]:
    """Return everything that decides how training goes on, as tensors and plain data."""
    gradients = {
        name: parameter.grad
        for name, parameter in trainer.learner.named_parameters()
        if parameter.grad is not None
    }
    return {
        **{name: getattr(trainer, name) for name in _COUNTERS},
        "model": dict(trainer.learner.state_dict()),
        "teacher": getattr(trainer.learner, "fingerprint", ""),
        "gradients": gradients if trainer.accumulated else {},
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "ema_updates": trainer.ema.updates,
        "epochs": trainer.epochs,
        "loss_sums": trainer.loss_sums,
        "guard": trainer.guard.counts,
        "window_finite": trainer.window_finite,
        "best_value": trainer.stopper.value,
        "best_epoch": trainer.stopper.epoch,
        "asked": trainer.asked,
        "generators": generator_states(),
        "threads": torch.get_num_threads(),
        "elapsed": trainer.seconds(),
        "save_dir": str(trainer.save_dir),
        "job": _job(),
    }


def _job() -> str | None:
    """Return what tells the launcher's job from all others, the same after a restart."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"process {os.getppid()}" if job == "none" else job  # the launcher starts all its ranks


def run_before_restart(config: TrainConfig, task: str) -> Path | None:
    """Return the last.pt of the run that the launcher has restarted this process for, if any.

    `torchrun --max-restarts=N` starts the user's script again; its training goes on where the last
    checkpoint is, instead of beginning a new run.
    """
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return None
    base = run_path(config.project, config.name, task, "train")
    written = sorted(base.parent.glob(f"{base.name}*/weights/last.pt"), key=os.path.getmtime)
    for path in reversed(written):
        state = load_checkpoint(path).state
        if state and state.get("job") == _job():
            LOGGER.info("restarted: going on from %s", path)
            return path
    return None


def restore(trainer: Trainer, saved: Checkpoint) -> None:
    """Put a trainer whose parts are built into the state that a checkpoint holds.

    Raises:
        CheckpointError: if it doesn't fit the network or the optimizer.
    """
    state = saved.state or {}
    found = misfits(trainer.learner.state_dict(), state.get("model", {}))
    if found:
        raise CheckpointError(
            f"resume: the checkpoint, of {len(saved.names)} classes, doesn't fit the network for "
            f"{len(trainer.model.names)}: {listed(found)}. Give the run's own data, or start a "
            "new run from these weights"
        )
    try:
        trainer.learner.load_state_dict(state["model"])
        trainer.ema.ema.load_state_dict(saved.weights)
        trainer.optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"resume: the checkpoint doesn't fit this run: {str(error).splitlines()[0]}"
        ) from error
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.ema.updates = state["ema_updates"]
    for name, parameter in trainer.learner.named_parameters():
        if name in state["gradients"]:
            parameter.grad = state["gradients"][name].to(trainer.device)
    for name in _COUNTERS:
        setattr(trainer, name, state[name])
    trainer.elapsed = state["elapsed"]
    trainer.loss_sums = state["loss_sums"].to(trainer.device)
    trainer.guard.counts = state["guard"].to(trainer.device)
    trainer.window_finite = state["window_finite"].to(trainer.device)
    trainer.stopper.value, trainer.stopper.epoch = state["best_value"], state["best_epoch"]
    trainer.history, trainer.metrics = list(saved.history), dict(saved.metrics)
    trainer.asked = state["asked"]
    if trainer.batch_i >= len(trainer.train_loader) and len(trainer.history) > trainer.epoch:
        trainer.epoch, trainer.batch_i = trainer.epoch + 1, 0
    trainer.start_epoch = trainer.epoch
    _warn_about_differences(state["threads"], saved.versions)
    restore_generators(state["generators"])


def open_run(path: str | Path) -> Checkpoint:
    """Read the checkpoint of a run that shall go on.

    Raises:
        MissingFileError, CheckpointError: if it can't be read or holds weights alone.
    """
    saved = load_checkpoint(path)
    if saved.state is None:
        raise CheckpointError(
            f"{path}: holds weights alone, so there is nothing to resume; use the run's last.pt"
        )
    weights = Path(path).absolute().parent
    if weights.name == "weights":  # the run folder may have been moved
        saved.state["save_dir"] = str(weights.parent)
    return saved


def run_folder_of(saved: Checkpoint) -> Path:
    """Return the folder of the run that is resumed.

    Raises:
        CheckpointError: if it isn't there any more.
    """
    folder = Path((saved.state or {})["save_dir"])
    if not folder.is_dir():
        raise CheckpointError(
            f"resume: the run folder {folder} isn't there any more; move it back, or start a new "
            "run from these weights"
        )
    return folder


def settle(
    saved: Checkpoint, before: TrainConfig, now: TrainConfig, given: Collection[str]
) -> TrainConfig:
    """Check what a resumed run is asked, and return its options.

    Args:
        saved: from `open_run`; a stop that `given` lifts is cleared in it.
        before: the run's options.
        now: the same with what the user gives now.
        given: names of the options that the user gives now.

    Raises:
        ConfigError: if something would change that can't.
        CheckpointError: if the run has ended.
    """
    state: dict[str, Any] = saved.state or {}
    asked = state["asked"]
    changed = {k for k in type(now).model_fields if getattr(now, k) != getattr(before, k)}
    fixed = {k for k in changed - MAY_CHANGE if k not in asked or getattr(now, k) != asked[k]}
    if fixed:
        raise ConfigError(
            f"resume: {', '.join(sorted(fixed))} can't change within a run; leave it out, or "
            "start a new run from these weights"
        )
    done = len(saved.history)
    if state["finished"]:
        if now.epochs <= done or not set(EXTENDS) & set(given):
            raise CheckpointError(
                f"resume: this run has ended after {done} epochs; ask for more with "
                f"epochs={done + 100}, or start a new run from these weights"
            )
        state["finished"] = state["stop"] = False
    # What auto chose at the start holds, whatever the options say again.
    return now.model_copy(update={name: getattr(before, name) for name in asked})


def planned_epochs(config: TrainConfig, saved: Checkpoint | None) -> int:
    """Return the length of a run; a resumed one keeps what its time budget made of it."""
    if saved is None or config.epochs != saved.config["epochs"]:
        return config.epochs
    return int((saved.state or {})["epochs"])


def _warn_about_differences(threads: int, before: Mapping[str, str]) -> None:
    """Warn of what may change the last bits: sums depend on threads and on versions."""
    now = versions()
    differences = [
        f"{name} {before[name]} then, {now[name]} now"
        for name in ("torch", "numpy")
        if name in before and before[name] != now[name]
    ]
    if threads != torch.get_num_threads():
        differences.append(f"{threads} torch threads then, {torch.get_num_threads()} now")
    if differences:
        LOGGER.warning("resume: results may differ in the last bits: %s", "; ".join(differences))
