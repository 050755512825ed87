# SPDX-License-Identifier: Apache-2.0
"""Starts the ranks of this machine by torch's launcher, and hands back what rank 0 returns."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import parent_process
from multiprocessing.reduction import ForkingPickler
from typing import Any

from yolo.engine.runtime import listed_devices
from yolo.errors import ConfigError, YoloError
from yolo.nn.assign import ASSIGNERS, ROTATED_ASSIGNERS
from yolo.nn.box_losses import BOX_LOSSES
from yolo.nn.class_losses import CLASS_LOSSES
from yolo.nn.layer import LAYERS
from yolo.plugins import load_plugins, loaded_plugins

LOGGER = logging.getLogger(__name__)


class RankError(YoloError):
    """A rank has failed; the message is its own."""


def ranks_to_start(ranks: int | None, device: Any) -> int:
    """Return how many processes a training asks for: 1 where a launcher has started this one.

    Raises:
        ConfigError: if both options are given and disagree.
    """
    if "LOCAL_RANK" in os.environ:
        return 1
    devices = len(listed_devices(device))
    if ranks and devices > 1 and ranks != devices:
        raise ConfigError(f"expected a rank a device, found ranks={ranks} and device={device!r}")
    return ranks or max(devices, 1)


def launch(
    call: Callable[..., Any], options: Mapping[str, Any], ranks: int, modules: Iterable[str] = ()
) -> Any:
    """Call `call(**options)` in `ranks` new processes; return what the first one's call returns.

    The processes import what registers layers, losses and assigners in this one; the call and its
    options are sent to them as Python's own `multiprocessing` does.

    Args:
        call: a function, or a method of something that can be sent.
        options: its arguments by keyword.
        ranks: number of processes.
        modules: what they import besides.

    Raises:
        ConfigError: if something can't be sent.
        RankError: if a rank fails, with its message.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    parts: list[Any] = [entry.cls for entry in LAYERS.values()]
    for registry in (BOX_LOSSES, CLASS_LOSSES, ASSIGNERS, ROTATED_ASSIGNERS):
        parts += registry.values()
    names = {*modules, *(part.__module__ for part in parts)} - {"__main__"}
    sent = (sorted(names), loaded_plugins(), call, dict(options))
    try:
        ForkingPickler.dumps(sent)
    except Exception as error:
        raise ConfigError(
            f"ranks={ranks}: not everything can be sent to other processes ({error}); define "
            "callbacks, trainers and datasets at the top of a module, or start the script with "
            f"`torchrun --nproc-per-node={ranks}`"
        ) from error
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=ranks, run_id=uuid.uuid4().hex, max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="spawn",
        monitor_interval=0.1,
    )  # fmt: skip
    try:
        return elastic_launch(config, _run)(*sent)[0]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise RankError(
            f"rank {rank} of {ranks} failed: {_last_line(failure.message)}; the others were ended"
        ) from error


def _run(
    modules: list[str], plugins: tuple[str, ...], call: Callable[..., Any], options: dict[str, Any]
) -> Any:
    """Work as a rank, for as long as the process that started it lives."""
    threading.Thread(target=_leave_after, args=(parent_process(),), daemon=True).start()
    load_plugins(plugins)
    for module in modules:
        importlib.import_module(module)
    if os.environ["RANK"] == "0" and not logging.getLogger("yolo").handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logging.getLogger("yolo").addHandler(handler)
        logging.getLogger("yolo").setLevel(logging.INFO)
    result = call(**options)
    return result if os.environ["RANK"] == "0" else None


def _leave_after(launcher: Any) -> None:
    """End this process with its launcher: the other ranks wait for half an hour for one another."""
    launcher.join()
    os._exit(1)


def _last_line(message: str) -> str:
    """Return what an exception says, from the launcher's report of it."""
    lines = [line for line in str(message).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it ended without a message"
