# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in a run: losses that aren't finite, a full disk, too little memory."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch

import nano
from yolo import YOLO
from yolo.data.shapes import write_shapes
from yolo.engine.checkpoint import load_checkpoint
from yolo.engine.late import DivergedError
from yolo.errors import CheckpointError, ConfigError, DataError
from yolo.tasks.detect.train import DetectionTrainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data") / "set", train=12, val=4, size=96)


@pytest.fixture
def model(tmp_path):
    return YOLO(nano.write_network(tmp_path))


def spoiled(*steps):
    """Return a trainer whose images aren't numbers at some steps, counted from 1."""

    class Spoiled(DetectionTrainer):
        def preprocess_batch(self, batch):
            images, targets = super().preprocess_batch(batch)
            return (images * torch.nan if self.iteration + 1 in steps else images), targets

    return Spoiled


def all_finite(state):
    return all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())


def test_one_bad_step_is_skipped_counted_and_survived(model, data, tmp_path, caplog):
    caplog.set_level(logging.INFO, "yolo")
    options = nano.options(tmp_path, "run", epochs=3, nbs=4, verbose=True)
    before = {}

    def note(trainer):
        if trainer.iteration in {4, 5}:
            parameters = trainer.model.named_parameters()
            before[trainer.iteration] = {k: p.detach().clone() for k, p in parameters}

    model.add_callback("on_train_batch_end", note)
    model.train(spoiled(5), data=str(data), **options)
    assert all(torch.equal(v, before[5][k]) for k, v in before[4].items())
    saved = load_checkpoint(model.trainer.last)
    assert all_finite(saved.weights)
    assert all_finite(saved.state["model"])  # BatchNorm's statistics have seen the bad batch
    assert saved.state["guard"].tolist() == [1, 0, 1]
    losses = [row["train/box_loss"] for row in saved.history]
    assert np.isfinite(losses).all()
    assert min(losses) > 0
    lines = [line for line in caplog.text.splitlines() if "  skipped 1" in line]
    assert len(lines) == 2  # the epoch of the step, and the one after
    assert model.metrics.box.map >= 0


def test_a_bad_batch_spoils_its_whole_window(model, data, tmp_path):
    options = nano.options(tmp_path, "run", epochs=4, nbs=12, warmup_epochs=0)
    model.train(spoiled(4), data=str(data), **options)
    trainer = model.trainer
    assert trainer.ema.updates == 4
    assert trainer.guard.skipped == 1


def test_three_bad_steps_in_a_row_end_the_run_with_the_last_good_checkpoint(model, data, tmp_path):
    options = nano.options(tmp_path, "run", epochs=4, nbs=4)
    with pytest.raises(DivergedError, match=r"not finite in 3 steps in a row.*Lower lr0"):
        model.train(spoiled(5, 6, 7, 8, 9), data=str(data), **options)
    last = tmp_path / "run" / "weights" / "last.pt"
    saved = load_checkpoint(last)
    assert len(saved.history) == 2  # the third epoch holds the third bad step
    assert all_finite(saved.weights)
    assert all_finite(saved.state["model"])
    YOLO(last).predict(np.zeros((64, 64, 3), np.uint8), verbose=False)


def test_bad_steps_that_are_apart_end_nothing(model, data, tmp_path):
    options = nano.options(tmp_path, "run", epochs=3, nbs=4)
    model.train(spoiled(2, 3, 5, 6, 8, 9), data=str(data), **options)
    assert model.trainer.guard.skipped == 6
    assert len(model.trainer.history) == 3


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_full_disk_leaves_the_checkpoint_before(model, data, tmp_path, monkeypatch, broken):
    intact, calls = getattr(os, broken), []
    last = tmp_path / "run" / "weights" / "last.pt"

    def full(*args, **kwargs):
        target = str(args[-1]) if broken == "replace" else os.readlink(f"/proc/self/fd/{args[0]}")
        calls.append("last.pt" in target)
        if sum(calls) == 3 and calls[-1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return intact(*args, **kwargs)

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(CheckpointError, match=r"last\.pt: can't be written \(No space left"):
        model.train(data=str(data), **nano.options(tmp_path, "run", epochs=4))
    monkeypatch.undo()
    assert len(load_checkpoint(last).history) == 1
    assert not list(last.parent.glob("*.tmp"))
    assert not list(last.parent.glob(".*"))
    YOLO(last).train(resume=True)
    assert len(load_checkpoint(last).history) == 4


def test_too_little_gpu_memory_says_what_to_do(model, data, tmp_path):
    class Large(DetectionTrainer):
        def forward(self, batch):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ConfigError, match=r"batch=4 at imgsz=\(64, 64\) doesn't fit.*batch=-1"):
        model.train(Large, data=str(data), **nano.options(tmp_path, "run"))


def test_batch_that_fits_needs_a_gpu(model, data, tmp_path, caplog):
    caplog.set_level(logging.INFO, "yolo")
    model.train(data=str(data), **nano.options(tmp_path, "run", batch=-1, epochs=1, verbose=True))
    assert "batch=-1 needs a CUDA device to measure; using batch=16" in caplog.text
    assert model.trainer.batch_size == 16


def test_teardown_comes_after_an_error_and_workers_end(model, data, tmp_path):
    seen = []

    def fail(trainer):
        raise RuntimeError("mine")

    model.add_callback("on_train_batch_end", fail)
    model.add_callback("teardown", lambda trainer: seen.append(trainer.iteration))
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="mine"):
        model.train(data=str(data), **nano.options(tmp_path, "run", workers=1))
    assert seen == [1]
    assert model.trainer.train_loader._line._loader is None
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_that_never_began_leaves_no_folder(model, tmp_path):
    with pytest.raises(FileNotFoundError):
        model.train(data=str(tmp_path / "no.yaml"), **nano.options(tmp_path, "run"))
    assert not (tmp_path / "run").exists()


def test_nor_does_one_that_has_drawn_its_images(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"epochs": 1, "imgsz": 64, "workers": 0, "plots": False, "verbose": False}
    with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
        model.train(data="shapes", pretrained="gone.pt", **options)
    assert not (tmp_path / "runs").exists()


def test_a_worker_that_dies_ends_the_run_soon_with_one_line(model, data, tmp_path):
    def kill(trainer):
        if trainer.iteration == 2:
            _, *victims = multiprocessing.active_children()
            os.kill(victims[0].pid, signal.SIGKILL)
            time.sleep(0.5)

    model.add_callback("on_train_batch_end", kill)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"^a process that loads images has died .*; where memory"):
        model.train(data=str(data), **nano.options(tmp_path, "run", workers=2, epochs=9))
    assert time.monotonic() - start < 30
    assert not multiprocessing.active_children()
    last = tmp_path / "run" / "weights" / "last.pt"
    YOLO(last).train(resume=True, epochs=1)
    assert len(load_checkpoint(last).history) == 1
