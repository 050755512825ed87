# SPDX-License-Identifier: Apache-2.0
"""The line of workers: jobs in order, mistakes as one line, makers that travel."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from painted import MemoryStore, painted
from yolo.data.loader import TrainLoader, ValMaker
from yolo.data.recipe import Augment
from yolo.data.workers import Job, Line, _start_method, _start_worker
from yolo.errors import DataError, UnknownNameError

SIZE = (64, 64)


@pytest.fixture(scope="module")
def store():
    made = [painted(np.random.default_rng(i), (40, 60), [i % 6]) for i in range(5)]
    store = MemoryStore([m[0] for m in made], [m[1] for m in made], SIZE)
    store.dtype, store.corrupt = np.dtype(np.uint8), set()
    return store


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_order_of_the_jobs(store, workers):
    line = Line(ValMaker(store, None), workers, pin_memory=False)
    for places in ([[3], [0, 4], [1], [2]], [[2, 1]]):
        batches = list(line.run([Job(0, listed, SIZE) for listed in places]))
        assert [batch.indices for batch in batches] == places
    line.close()


class Failing(ValMaker):
    def make(self, job):
        raise UnknownNameError("expected a name")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_user_s_mistake_keeps_its_kind_and_its_one_line(store, workers):
    line = Line(Failing(store, None), workers, pin_memory=False)
    with pytest.raises(UnknownNameError) as caught:
        list(line.run([Job(0, [0], SIZE)]))
    assert str(caught.value) == "expected a name"
    line.close()


def test_a_maker_survives_spawn(store):
    loader = TrainLoader(store.index, store, Augment(), batch=2, size=SIZE)
    copy = pickle.loads(pickle.dumps(loader._line.maker))
    job = loader._job(2, 1, True)
    one, two = copy.make(job), loader._line.maker.make(job)
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.targets.boxes, two.targets.boxes)


def test_the_start_method_is_the_user_s(monkeypatch):
    assert _start_method() in multiprocessing.get_all_start_methods()
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
    assert _start_method() == "spawn"


def test_classes_that_the_dataset_lacks_are_refused(store, monkeypatch):
    monkeypatch.setattr(store.index, "num_classes", 2)
    with pytest.raises(DataError, match=r"made/4.png: expected class ids from 0 to 1, found 4"):
        ValMaker(store, None).make(Job(0, [4], SIZE))


@pytest.fixture
def soon():
    """End a test that waits for what never comes."""

    def give_up(*_):
        raise TimeoutError("the batch never came")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("soon")
def test_batches_arrive_wherever_temporary_files_go(store, tmp_path, monkeypatch):
    """A socket's path may have 107 characters; what can't be sent would be waited for for ever."""
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)
    line = Line(ValMaker(store, None), 1, pin_memory=False)
    try:
        assert [batch.indices for batch in line.run([Job(0, [0, 1], SIZE)])] == [[0, 1]]
    finally:
        line.close()


class Unsendable(ValMaker):
    def make(self, job):
        batch = super().make(job)
        if 3 in job.places:
            batch.paths = [lambda: "no pickle"]
        return batch


@pytest.mark.usefixtures("soon")
def test_a_batch_that_cannot_be_sent_is_an_error_not_a_wait(store):
    line = Line(Unsendable(store, None), 2, pin_memory=False)
    batches = line.run([Job(0, [place], SIZE) for place in (0, 1, 3, 2)])
    try:
        assert [next(batches).indices for _ in range(2)] == [[0], [1]]
        with pytest.raises(DataError, match=r"^a batch can't be sent .*lambda.*workers=0$"):
            next(batches)
        again = line.run([Job(0, [4], SIZE)])
        assert [batch.indices for batch in again] == [[4]]
    finally:
        line.close()


@pytest.mark.parametrize("parent", ["alive", "gone"])
def test_a_worker_whose_parent_was_killed_before_it_began_ends(parent):
    """Who adopts it would be taken for its parent, and never die."""
    known = os.getpid() if parent == "alive" else os.getpid() + 1
    worker = multiprocessing.get_context("fork").Process(target=_start_worker, args=(known, 0))
    worker.start()
    worker.join(60)
    assert worker.exitcode == (0 if parent == "alive" else 1)


KILLED = """
import multiprocessing, os, signal, sys
import numpy as np
from painted import MemoryStore, painted
from yolo.data.loader import ValMaker
from yolo.data.workers import Job, Line

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    image, labels = painted(np.random.default_rng(0), (40, 60), [0])
    store = MemoryStore([image], [labels], (64, 64))
    store.dtype, store.corrupt = np.dtype(np.uint8), set()
    line = Line(ValMaker(store, None), 2, pin_memory=False)
    next_batch = line.run([Job(0, [0], (64, 64))] * 9)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, 0.5)  # the workers are still importing torch
    next(next_batch)
"""


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="processes are listed by /proc")
def test_spawned_workers_end_with_a_parent_that_was_killed_at_once(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    folders = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[1])])
    environment = os.environ | {"PYTHONPATH": folders, "MARK": str(tmp_path)}
    done = subprocess.run([sys.executable, str(script)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL

    def alive():
        mark = f"MARK={tmp_path}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes():
                    yield folder.name

    end = time.monotonic() + 60
    while list(alive()) and time.monotonic() < end:
        time.sleep(0.2)
    assert not list(alive())
