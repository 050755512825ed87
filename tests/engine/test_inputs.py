# SPDX-License-Identifier: Apache-2.0
"""Sizes of inputs, the size of a step, and batches on their way to the network."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from yolo.cfg.schema import ValConfig
from yolo.data.batch import Batch
from yolo.engine.inputs import (
    cache_folder,
    input_size,
    preprocess,
    resize_images,
    resize_targets,
    step_size,
    worker_count,
)
from yolo.engine.runtime import usable_cores
from yolo.nn.losses import Targets


@pytest.mark.parametrize(
    ("imgsz", "expected", "warns"),
    [(64, (64, 64), False), (65, (96, 96), True), ((33, 96), (64, 96), True)],
)
def test_sizes_are_rounded_up_aloud(imgsz, expected, warns, caplog):
    assert input_size(imgsz, (8, 16, 32)) == expected
    assert bool(caplog.messages) == warns


def test_workers_never_outnumber_the_cores():
    assert worker_count(ValConfig(workers=0)) == 0
    assert worker_count(ValConfig(workers=10_000)) == usable_cores()


def test_caches_lie_in_the_run_folder_or_where_asked(tmp_path):
    assert cache_folder(ValConfig(), tmp_path) == tmp_path / "cache"
    assert cache_folder(ValConfig(cache_dir=str(tmp_path / "c")), None) == tmp_path / "c"
    assert cache_folder(ValConfig(), None) is None


def test_every_size_of_a_step_is_as_likely_as_the_others():
    drawn = [step_size((640, 640), 0.5, 32, 0, i) for i in range(4200)]
    assert drawn == [step_size((640, 640), 0.5, 32, 0, i) for i in range(4200)]
    assert drawn != [step_size((640, 640), 0.5, 32, 1, i) for i in range(4200)]
    counts = Counter(drawn)
    assert counts.keys() == {(side, side) for side in range(320, 961, 32)}
    assert min(counts.values()) > 130  # of 200
    assert max(counts.values()) < 270


@given(
    h=st.integers(1, 20),
    w=st.integers(1, 20),
    share=st.floats(0, 0.99),
    stride=st.sampled_from([8, 32, 64]),
    step=st.integers(0, 10**6),
)
def test_sizes_are_multiples_in_range_and_keep_the_shape(h, w, share, stride, step):
    found = step_size((h * stride, w * stride), share, stride, 0, step)
    assert all(side % stride == 0 and side >= stride for side in found)
    longer, usual = max(found), max(h, w) * stride
    assert usual * (1 - share) <= longer <= max(usual * (1 + share), stride)
    for side, before in zip(found, (h, w), strict=True):
        assert abs(side - before * stride * longer / usual) <= max(stride / 2, stride)
    assert step_size((h * stride, w * stride), 0.0, stride, 0, step) == (h * stride, w * stride)


def targets(size=(64, 96)):
    boxes = torch.tensor([[[8.0, 16.0, 24.0, 32.0], [0.0, 0.0, 96.0, 64.0]]])
    mask = torch.tensor([[True, True]])
    return Targets(torch.zeros(1, 2, dtype=torch.int64), boxes, mask, boxes[:, :1] + 4, size)


def test_targets_follow_the_images():
    before = targets()
    after = resize_targets(before, (32, 96))
    assert after.size == (32, 96)
    assert after.boxes[0].tolist() == [[8, 8, 24, 16], [0, 0, 96, 32]]
    assert after.ignore[0].tolist() == [[12, 10, 28, 18]]
    assert before.size == (64, 96)
    assert before.boxes[0, 1].tolist() == [0, 0, 96, 64]
    assert resize_targets(Targets(*(getattr(before, k) for k in ("classes", "boxes", "mask")),
                                  size=(64, 96)), (64, 96)).ignore is None  # fmt: skip


def test_a_drawn_box_stays_on_its_pixels():
    images = torch.zeros(1, 1, 64, 64)
    images[..., 16:32, 8:40] = 1
    large = resize_images(images, (128, 96))
    assert large.shape == (1, 1, 128, 96)
    rows, columns = (large[0, 0] > 0.5).any(1), (large[0, 0] > 0.5).any(0)
    assert rows.nonzero().flatten()[[0, -1]].tolist() == [32, 63]
    assert columns.nonzero().flatten()[[0, -1]].tolist() == [12, 59]
    assert resize_images(images, (64, 64)) is images


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_preprocess_normalises_in_the_wanted_layout(layout):
    pixels = torch.randint(0, 256, (2, 32, 64, 3), dtype=torch.uint8)
    known = Targets(
        torch.zeros(2, 0, dtype=torch.int64),
        torch.zeros(2, 0, 4),
        torch.zeros(2, 0, dtype=torch.bool),
        size=(32, 64),
    )
    batch = Batch(pixels, known, [0, 1], ["a", "b"], [(32, 64)] * 2, [])
    images, found = preprocess(batch, torch.device("cpu"), layout)
    assert images.is_contiguous(memory_format=layout)
    assert torch.equal(images, pixels.permute(0, 3, 1, 2) / 255)
    assert found.size == (32, 64)
