# SPDX-License-Identifier: Apache-2.0
"""One model, many uses: in threads, beside other images, elsewhere, in long and nested streams."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch

import exports
from yolo import TASKS, YOLO
from yolo.data.scene import scene
from yolo.errors import ConfigError

OPTIONS = {"imgsz": 64, "conf": 0.01, "max_det": 20, "verbose": False}


@pytest.fixture(scope="module", params=list(TASKS))
def file(request, tmp_path_factory):
    """A checkpoint of a tiny network of each task that finds something everywhere."""
    return exports.checkpoint(tmp_path_factory.mktemp("steady"), TASKS[request.param])


@pytest.fixture
def model(file):
    return YOLO(file)


def pictures(count):
    """Draw different images, of different shapes."""
    sizes = [(64, 64), (90, 120), (130, 70), (64, 64), (64, 200)]
    return [scene(0, "val", i, sizes[i % 5]).image for i in range(count)]


def find(model, image):
    (result,) = model.predict(image, **OPTIONS)
    return exports.parts(result)


def assert_equal(found, wanted):
    """Compare the parts of results bit for bit."""
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def assert_differ(found):
    """Most images have something of their own in them, or their comparison would say little."""
    kinds = {next(iter(parts.values())).tobytes() for parts in found}
    assert len(kinds) > 0.8 * len(found)


@pytest.mark.parametrize("count", [16, pytest.param(200, marks=pytest.mark.slow)])
def test_eight_threads_find_what_one_finds(model, count, record_property):
    """From the first call on, which prepares the network for all of them."""
    record_property("images", count)
    images = pictures(count)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda image: find(model, image), images))
    finally:
        sys.setswitchinterval(interval)
    assert_equal(together, [find(model, image) for image in images])
    assert_differ(together)


def test_neighbours_change_nothing(model):
    image, *others = (scene(0, "val", i, (64, 64)).image for i in range(7))
    wide = scene(0, "val", 9, (64, 200)).image
    beside = [others[:2], others[2:4], others[4:], [wide, others[0]], [others[0] * 0, others[0]]]
    batches = [model.predict([image, *pair], batch=3, **OPTIONS) for pair in beside]
    found = [exports.parts(results[0]) for results in batches]
    assert_equal(found[:3] + found[4:], [found[0]] * 4)
    # Sums may be rounded otherwise where a batch of another size is computed.
    for parts in (found[3], find(model, image)):
        for name, value in parts.items():
            np.testing.assert_allclose(value, found[0][name], rtol=1e-4, atol=1e-3)


def test_model_and_predictor_can_be_sent(model):
    image = pictures(1)[0]
    wanted = find(model, image)
    twin = pickle.loads(pickle.dumps(model))
    (result,) = pickle.loads(pickle.dumps(model.predictor))(image)
    assert_equal([find(twin, image), exports.parts(result)], [wanted] * 2)


@pytest.mark.slow
def test_model_and_predictor_work_in_a_process_that_knows_nothing(model):
    image = pictures(1)[0]
    wanted = find(model, image)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (one,) = pool.apply(model.predict, (image,), OPTIONS)
        (other,) = pool.apply(model.predictor, (image,))
        assert_equal([exports.parts(one), exports.parts(other)], [wanted] * 2)


def test_calls_inside_open_streams_and_a_bad_device_disturb_nothing(model):
    images = pictures(6)
    alone = [find(model, image) for image in images]
    forth, back = (model.predict(i, stream=True, **OPTIONS) for i in (images, images[::-1]))
    found = [exports.parts(next(forth))]
    assert_equal([find(model, images[3])], [alone[3]])
    with pytest.raises(ConfigError, match="device="):
        model.predict(images[0], device=str(torch.cuda.device_count()), **OPTIONS)
    returned = []
    for there, here in zip(forth, back, strict=False):
        found.append(exports.parts(there))
        returned.append(exports.parts(here))
    assert_equal(found, alone)
    assert_equal(returned, alone[:0:-1])


def write_video(path, count):
    """Write frames of moving blocks."""
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (160, 96))
    blocks = np.random.default_rng(0).integers(0, 255, (50, 6, 10, 3), dtype=np.uint8)
    for i in range(count):
        video.write(np.roll(blocks[i % 50].repeat(16, 0).repeat(16, 1), i, 1))
    video.release()
    return path


def memory_over(model, video):
    """Predict on a video; return how many frames and objects it has, and bytes held on the way."""
    seen, found, held = 0, 0, []
    for result in model.predict(video, stream=True, **OPTIONS):
        seen, found = seen + 1, found + len(result)
        if seen % 100 == 0:
            with open("/proc/self/statm") as file:
                held.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    return seen, found, held


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_stays_over_a_long_stream(tmp_path, count, record_property):
    model = YOLO(exports.checkpoint(tmp_path, TASKS["detect"]))
    seen, found, held = memory_over(model, write_video(tmp_path / "long.avi", count))
    assert seen == count
    record_property("frames", count)
    assert found > count
    assert max(held) - held[0] < 50 * 2**20
