# SPDX-License-Identifier: Apache-2.0
"""A training started in several processes from one call."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import nano
import rank_parts
from yolo import YOLO
from yolo.engine.launch import RankError, ranks_to_start
from yolo.errors import ConfigError


@pytest.mark.processes
def test_one_call_trains_in_two_processes(data, tmp_path):
    """With a callback, a trainer and a block of the user's own in each."""
    text = nano.NETWORK.replace("head:", "  - [-1, 1, Half, []]\nhead:").replace("[3, 4]", "[3, 5]")
    model = YOLO(nano.write_network(tmp_path, text))
    model.add_callback("on_train_epoch_end", rank_parts.note)
    options = nano.options(tmp_path, "run", epochs=2, ranks=2)
    metrics = model.train(trainer=rank_parts.Trainer, data=str(data), **options)
    for word in ("callback", "forward0", "forward7"):
        assert {path.name for path in tmp_path.glob(f"{word}-*")} == {f"{word}-0", f"{word}-1"}
    assert model.ckpt_path == str(tmp_path / "run" / "weights" / "best.pt")
    again = model.val(data=str(data), imgsz=64, plots=False, device="cpu")
    assert again.results_dict == pytest.approx(metrics.results_dict, abs=1e-6)
    rows = (tmp_path / "run" / "results.csv").read_text().splitlines()
    assert len(rows) == 3


@pytest.mark.processes
@pytest.mark.slow
def test_a_failing_rank_is_named(network, data, tmp_path):
    model = YOLO(network)
    model.add_callback("on_train_batch_end", rank_parts.fail)
    with pytest.raises(RankError, match=r"rank 1 of 2 failed: .*the second rank gave up"):
        model.train(data=str(data), **nano.options(tmp_path, "run", ranks=2))


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")
def test_ranks_end_with_the_process_that_started_them(network, data, tmp_path):
    command = [sys.executable, "-m", "yolo", "train", f"model={network}", f"data={data}"]
    options = nano.options(tmp_path, "run", epochs=1000, ranks=2)
    child = subprocess.Popen([*command, *(f"{k}={v}" for k, v in options.items())])
    last = tmp_path / "run" / "weights" / "last.pt"
    deadline = time.monotonic() + 120
    while not last.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    listed = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    ranks = [Path("/proc", pid) for pid in listed]
    child.kill()
    child.wait()
    assert len(ranks) >= 2
    deadline = time.monotonic() + 30
    while any(path.exists() for path in ranks) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [path.name for path in ranks if path.exists()]


def test_what_cannot_be_sent_is_said_first(network, data, tmp_path):
    model = YOLO(network)
    model.add_callback("on_train_start", lambda trainer: None)
    with pytest.raises(ConfigError, match=r"not everything can be sent.*torchrun"):
        model.train(data=str(data), **nano.options(tmp_path, "run", ranks=2))
    with pytest.raises(ConfigError, match="save=False"):
        YOLO(network).train(data=str(data), **nano.options(tmp_path, "run", ranks=2, save=False))


@pytest.mark.parametrize(
    ("ranks", "device", "expected"),
    [
        (None, None, 1),
        (None, "cpu", 1),
        (2, "cpu", 2),
        (None, [0, 1], 2),
        (None, "0,1,2", 3),
        (2, "0,1", 2),
        (None, 3, 1),
    ],
)
def test_how_many(ranks, device, expected, monkeypatch):
    assert ranks_to_start(ranks, device) == expected
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert ranks_to_start(ranks, device) == 1


def test_ranks_and_devices_agree():
    with pytest.raises(ConfigError, match="expected a rank a device"):
        ranks_to_start(3, [0, 1])
