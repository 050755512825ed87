# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests: stored numbers, small sets, and a guard against hidden acts."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import guard
import nano
from guard import GUARD

GOLDEN = Path(__file__).parent / "golden"

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests report nothing home, however they import it

# The networks here are too small to share among threads; for this process and those it starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# No test has a home, nor have the processes that it starts.
for name in [name for name in os.environ if name.startswith("XDG_") or name == "MPLCONFIGDIR"]:
    del os.environ[name]
os.environ["HOME"] = guard.UNWRITABLE

# The first time, matplotlib runs fc-list; without a home it makes a temporary folder and names it
# in a variable of the environment, for those processes too. urllib3 opens a socket to see whether
# there is IPv6. That is their own doing: now, not later.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
importlib.import_module("matplotlib.font_manager")
logging.getLogger("matplotlib").setLevel(logging.NOTSET)
with contextlib.suppress(ImportError):
    importlib.import_module("urllib3")

guard.install()


@lru_cache(maxsize=4)
def _load(name: str) -> Any:
    path = GOLDEN / name
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    with np.load(path, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    """Load a file of reference numbers by name: a dict of arrays, or parsed JSON."""
    return _load


@pytest.fixture
def own_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test register layers without leaving them behind."""
    from yolo.nn.layer import LAYERS
    from yolo.tasks.spec import TASKS

    for task in TASKS.values():
        _ = task.model  # imported now, or their layers would be gone after the test
    monkeypatch.setattr(LAYERS, "_parts", dict(LAYERS._parts))


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let losses and assigners work as on a device whose values mustn't be asked for."""
    from yolo.nn import assign

    monkeypatch.setattr(assign, "HOST", set())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Guard a test and its fixtures of every scope."""
    GUARD.on, GUARD.free = True, item.get_closest_marker("processes") is not None
    try:
        return (yield)
    finally:
        GUARD.on = False


@pytest.fixture(autouse=True)
def _nothing_hidden() -> Iterator[None]:
    """Fail a test that tried what it may not, though nobody noticed."""
    yield
    tried, GUARD.tried = GUARD.tried, []
    assert not tried, "; ".join(tried)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A dataset of 14 training and 6 validation images, for trainings of a second or two."""
    from yolo.data.shapes import write_shapes

    file = write_shapes(tmp_path_factory.mktemp("data") / "set", train=14, val=6, size=96)
    with GUARD.read_only(file.parent):
        yield file


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The description of the smallest network."""
    return nano.write_network(tmp_path_factory.mktemp("network"))


@pytest.fixture
def train(network: Path, data: Path, tmp_path: Path) -> Callable[..., Any]:
    """Train into tmp_path/<name>; gives the facade, with the trainer in it."""
    return partial(nano.train, tmp_path, network=network, data=data)
