# SPDX-License-Identifier: Apache-2.0
"""Runs are reproducible: same seed, any workers, killed at any moment and resumed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import nano
from yolo import YOLO
from yolo.cli import main
from yolo.engine.checkpoint import load_checkpoint
from yolo.errors import CheckpointError, ConfigError

ROOT = Path(__file__).parents[1]


def train(network, data, project, name, **changes):
    YOLO(network).train(data=str(data), **nano.options(project, name, **changes))
    return load_checkpoint(project / name / "weights" / "last.pt")


def assert_identical(a, b, skip=("elapsed", "save_dir", "generators")):
    """Compare two checkpoints bit for bit, but for times and places."""
    assert a.weights.keys() == b.weights.keys()
    for key, value in a.weights.items():
        assert torch.equal(value, b.weights[key]), key
    assert set(a.state) == set(b.state)
    for key in set(a.state) - set(skip):
        assert_same(a.state[key], b.state[key], key)
    times = {"time"}
    for row, other in zip(a.history, b.history, strict=True):
        assert {k: v for k, v in row.items() if k not in times} == {
            k: v for k, v in other.items() if k not in times
        }


def assert_same(a, b, where):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


OPTIONS = {"nbs": 12, "epochs": 3}
"""With 14 images in batches of 4, accumulation windows cross the ends of epochs."""


@pytest.fixture(scope="module")
def whole(network, data, tmp_path_factory):
    """The checkpoint that a run with OPTIONS ends with if nothing disturbs it."""
    return train(network, data, tmp_path_factory.mktemp("whole"), "run", **OPTIONS)


def test_workers_do_not_change_the_weights(network, data, tmp_path):
    alone = train(network, data, tmp_path, "w0", workers=0, mixup=0.5, epochs=2)
    helped = train(network, data, tmp_path, "w2", workers=2, mixup=0.5, epochs=2)
    assert_identical(alone, helped)


def test_another_seed_changes_the_weights(network, data, tmp_path):
    a = train(network, data, tmp_path, "a", epochs=1)
    b = train(network, data, tmp_path, "b", epochs=1, seed=1)
    assert any(not torch.equal(v, b.weights[k]) for k, v in a.weights.items())


class Killed(BaseException):
    """Stands for the end of the process: nothing in the library may catch it."""


@pytest.mark.parametrize(
    "step",
    [4, 11, pytest.param(1, marks=pytest.mark.slow), pytest.param(7, marks=pytest.mark.slow)],
)
def test_resumed_after_a_stop_at_any_step_is_identical(whole, network, data, tmp_path, step):
    model = YOLO(network)
    model.add_callback("on_train_batch_end", kill_when(lambda trainer: trainer.iteration == step))
    with pytest.raises(Killed):
        model.train(data=str(data), **nano.options(tmp_path, "cut", save_every=3, **OPTIONS))
    last = tmp_path / "cut" / "weights" / "last.pt"
    YOLO(last).train(resume=True)
    assert_identical(whole, load_checkpoint(last))


@pytest.mark.processes
def test_sigkill_and_resume_is_identical(whole, network, data, tmp_path):
    """A real process, a real SIGKILL, at whatever moment it finds."""
    code = (
        "import sys; import nano; from yolo import YOLO; from pathlib import Path\n"
        "n, d, p = sys.argv[1:]\n"
        f"YOLO(n).train(data=d, **nano.options(Path(p), 'cut', **{OPTIONS}))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(network), str(data), str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        stderr=subprocess.PIPE,
    )
    last = tmp_path / "cut" / "weights" / "last.pt"
    deadline = time.monotonic() + 120
    while not last.is_file() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.15)
    child.send_signal(signal.SIGKILL)
    _, errors = child.communicate()
    assert last.is_file(), errors.decode()
    if not load_checkpoint(last).state["finished"]:
        YOLO(last).train(resume=True)
    assert_identical(whole, load_checkpoint(last))


@pytest.mark.parametrize(
    ("number", "event", "place"),
    [
        (signal.SIGINT, "on_train_batch_start", (0, 1)),
        pytest.param(signal.SIGTERM, "on_train_batch_end", (1, 4), marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "on_val_batch_start", (1, 4), marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "on_train_epoch_end", (0, 4), marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_the_run_goes_on(
    whole, network, data, tmp_path, caplog, number, event, place
):
    """Gradients are under way when the run stops, and no other checkpoint is near."""
    options = {"workers": 2, **OPTIONS}
    model = YOLO(network)
    running = []

    def interrupt(subject):
        (trainer,) = running
        if (trainer.epoch, trainer.batch_i) == place:
            signal.raise_signal(number)

    model.add_callback("on_train_start", running.append)
    model.add_callback(event, interrupt)
    around = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as end:
        model.train(data=str(data), **nano.options(tmp_path, "cut", **options))
    assert end.value.code == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    signal.signal(signal.SIGINT, around)
    last = tmp_path / "cut" / "weights" / "last.pt"
    assert f"yolo train resume=True model={last}" in caplog.text
    model = YOLO(last)
    model.train(resume=True)
    assert_identical(whole, load_checkpoint(last))


def test_a_finished_run_needs_more_epochs(network, data, tmp_path):
    train(network, data, tmp_path, "run", epochs=2)
    last = tmp_path / "run" / "weights" / "last.pt"
    with pytest.raises(CheckpointError, match="ended after 2 epochs"):
        YOLO(last).train(resume=True)
    YOLO(last).train(resume=True, epochs=3)
    assert len(load_checkpoint(last).history) == 3
    lines = (tmp_path / "run" / "results.csv").read_text().splitlines()
    assert len(lines) == 4


@pytest.mark.parametrize("event", ["on_model_save", "on_val_end"])
def test_killed_while_the_end_is_written(whole, network, data, tmp_path, event):
    """Between last.pt of the last epoch and results.csv; in the last validation."""
    model = YOLO(network)
    model.add_callback(event, kill_when(lambda subject: len(history_of(tmp_path)) == 3))
    with pytest.raises(Killed):
        model.train(data=str(data), **nano.options(tmp_path, "cut", **OPTIONS))
    last = tmp_path / "cut" / "weights" / "last.pt"
    metrics = YOLO(last).train(resume=True)
    assert_identical(whole, load_checkpoint(last))
    assert metrics.box.map >= 0
    assert len((tmp_path / "cut" / "results.csv").read_text().splitlines()) == 4
    with pytest.raises(CheckpointError, match="ended after 3 epochs"):
        YOLO(last).train(resume=True)


def kill_when(reached):
    def kill(subject):
        if reached(subject):
            raise Killed

    return kill


def history_of(project):
    last = project / "cut" / "weights" / "last.pt"
    return load_checkpoint(last).history if last.is_file() else []


def test_a_run_is_resumed_where_it_is_now_and_by_the_command(whole, network, data, tmp_path):
    """The same call again with resume=, from another folder; twice."""
    model = YOLO(network)
    model.add_callback("on_fit_epoch_end", kill_when(lambda trainer: trainer.epoch == 1))
    given = {"optimizer": "auto", **nano.options(tmp_path, "cut", **OPTIONS)}
    with pytest.raises(Killed):
        model.train(data=str(data), **given)
    moved = (tmp_path / "cut").rename(tmp_path / "moved")
    model = YOLO(moved / "weights" / "last.pt")
    model.add_callback("on_train_batch_end", kill_when(lambda trainer: trainer.iteration == 10))
    with pytest.raises(Killed):
        model.train(data=str(data), resume=True, save_every=1, **given)
    assert main(["train", f"resume={moved / 'weights' / 'last.pt'}"]) == 0
    assert_identical(whole, load_checkpoint(moved / "weights" / "last.pt"))
    assert not (tmp_path / "cut").exists()


def test_other_threads_or_versions_are_said(network, data, tmp_path, monkeypatch, caplog):
    train(network, data, tmp_path, "run", epochs=1)
    last = tmp_path / "run" / "weights" / "last.pt"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    YOLO(last).train(resume=True, epochs=2)
    assert re.search(r"differ in the last bits: \d+ torch threads then, 77 now", caplog.text)


def test_what_cannot_be_resumed_says_why(network, data, tmp_path):
    train(network, data, tmp_path, "run", epochs=2)
    weights = tmp_path / "run" / "weights"
    with pytest.raises(CheckpointError, match="weights alone"):
        YOLO(weights / "best.pt").train(resume=True)
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        YOLO(network).train(resume=str(weights / "nothing.pt"))
    with pytest.raises(ConfigError, match=r"lr0 can't change within a run"):
        YOLO(weights / "last.pt").train(resume=True, epochs=9, lr0=0.5)
    with pytest.raises(ConfigError, match="save, seed can't change"):
        YOLO(weights / "last.pt").train(resume=True, epochs=9, seed=4, save=False)
    text = Path(data).read_text(encoding="utf-8")
    other = tmp_path / "more_classes.yaml"
    text = f"path: {Path(data).parent}\n{text.rstrip()}\n  5: another\n"
    other.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"of 5 classes, doesn't fit.* for 6: model.5.cv3.0"):
        YOLO(weights / "last.pt").train(resume=True, epochs=9, data=str(other))
    with pytest.raises(ConfigError, match="resume=True needs a model loaded from"):
        YOLO(network).train(resume=True)
