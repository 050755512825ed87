# SPDX-License-Identifier: Apache-2.0
"""The latest images: of one process, or of all workers, whoever of them is killed."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import time

import numpy as np
import pytest

from yolo.data.recent import Recent, SharedRecent

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no record locks")

SHAPES = np.array([[8, 6], [4, 6], [8, 2], [5, 5], [1, 1], [8, 6]])


def image(i, level=0):
    """Return image i: one value everywhere, so that a mixture of two shows."""
    return np.full((*SHAPES[i], 3), 10 * i + level, np.uint8)


def test_what_was_not_asked_for_the_longest_goes():
    recent = Recent(3 * 144)
    for i in (0, 5):
        recent.put(i, image(i))
    assert recent.get(0) is not None
    recent.put(3, image(3))
    recent.put(1, image(1))
    assert [i for i in range(6) if recent.get(i) is not None] == [0, 1, 3]
    assert pickle.loads(pickle.dumps(recent)).get(0) is None
    recent.close()
    assert recent.get(0) is None


def test_a_ring_keeps_the_latest_once():
    ring = SharedRecent.make(SHAPES, 3)
    assert ring.get(0) is None
    for i in (0, 1, 1, 2, 3):
        ring.put(i, image(i))
    assert [i for i in range(6) if ring.get(i) is not None] == [1, 2, 3]
    for i in (1, 2, 3):
        np.testing.assert_array_equal(ring.get(i), image(i))
        assert not ring.get(i).flags.writeable
    other = pickle.loads(pickle.dumps(ring))
    other.put(4, image(4))
    np.testing.assert_array_equal(ring.get(4), image(4))
    assert ring.get(1) is None
    other.close()
    ring.close()


def _use(ring, seed, results):
    rng, wrong, found = np.random.default_rng(seed), 0, 0
    for i in rng.integers(0, len(SHAPES), 3000).tolist():
        got = ring.get(i)
        if got is None:
            ring.put(i, image(i))
        else:
            found += 1
            wrong += not np.array_equal(got, image(i))
    results.put((wrong, found))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_nobody_gets_a_half_written_image(start):
    ring = SharedRecent.make(SHAPES, 3)
    context = multiprocessing.get_context(start)
    results = context.Queue()
    users = [context.Process(target=_use, args=(ring, n, results)) for n in range(3)]
    for user in users:
        user.start()
    counts = [results.get(timeout=120) for _ in users]
    for user in users:
        user.join(60)
    assert [wrong for wrong, _ in counts] == [0, 0, 0]
    assert all(found > 100 for _, found in counts)
    ring.close()


def _write_for_ever(ring, ready):
    while True:
        for i in range(len(SHAPES)):
            ring.put(i, image(i))
            ready.set()


def test_a_killed_process_leaves_no_lock():
    ring = SharedRecent.make(SHAPES, 2)
    context = multiprocessing.get_context("fork")
    for _ in range(10):
        ready = context.Event()
        writer = context.Process(target=_write_for_ever, args=(ring, ready))
        writer.start()
        assert ready.wait(60)
        time.sleep(0.01)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join(60)
        for i in range(len(SHAPES)):
            got = ring.get(i)
            assert got is None or np.array_equal(got, image(i))
            ring.put(i, image(i))
            np.testing.assert_array_equal(ring.get(i), image(i))
    ring.close()
