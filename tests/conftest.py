# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests: stored numbers, and a guard that keeps the run offline."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nano

GOLDEN = Path(__file__).parent / "golden"

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests report nothing home, however they import it

# The networks here are too small to share among threads; for this process and those it starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


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


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection but those of local pipes."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family == getattr(socket, "AF_UNIX", None):
            return connect(self, address)
        host = address[0] if isinstance(address, tuple) else address
        if host in {"127.0.0.1", "localhost", "::1"}:
            return connect(self, address)
        raise RuntimeError(f"a test tried to connect to {address!r}")

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 14 training and 6 validation images, for trainings of a second or two."""
    from yolo.data.shapes import write_shapes

    return write_shapes(tmp_path_factory.mktemp("data") / "set", train=14, val=6, size=96)


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The description of the smallest network."""
    return nano.write_network(tmp_path_factory.mktemp("network"))


@pytest.fixture
def train(network: Path, data: Path, tmp_path: Path) -> Callable[..., Any]:
    """Train into tmp_path/<name>; gives the facade, with the trainer in it."""
    return partial(nano.train, tmp_path, network=network, data=data)
