# SPDX-License-Identifier: Apache-2.0
"""Batches: padding, ignored regions, normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from yolo.data.batch import Batch, build_targets, normalize
from yolo.data.letterbox import letterbox
from yolo.data.sample import Instances, Sample


def sample(classes, boxes, **kinds):
    return Sample(np.zeros((8, 8, 3), np.uint8), Instances.from_boxes(classes, boxes, **kinds))


def test_padding():
    targets = build_targets(
        [sample([3], [[0, 1, 2, 3]]), sample([], []), sample([1, 2], [[0, 0, 1, 1], [4, 4, 5, 6]])],
        (8, 8),
    )
    assert targets.mask.tolist() == [[True, False], [False, False], [True, True]]
    assert targets.classes.tolist() == [[3, 0], [0, 0], [1, 2]]
    assert targets.classes.dtype == torch.int64
    assert targets.boxes.dtype == torch.float32
    assert targets.boxes[2, 1].tolist() == [4, 4, 5, 6]
    assert targets.boxes[1].abs().sum() == 0
    assert targets.ignore is None
    assert targets.size == (8, 8)


def test_no_objects_and_no_images():
    assert build_targets([sample([], [])], (8, 8)).boxes.shape == (1, 0, 4)
    assert build_targets([], (8, 8)).boxes.shape == (0, 0, 4)


def test_ignored_regions_are_no_objects():
    crowd = np.array([True, False, True])
    targets = build_targets(
        [sample([0, 1, 2], [[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]], ignore=crowd)] * 2
        + [sample([0], [[1, 1, 2, 2]])],
        (8, 8),
    )
    assert targets.classes.tolist() == [[1], [1], [0]]
    assert targets.ignore[0].tolist() == [[0, 0, 1, 1], [4, 4, 5, 5]]
    assert targets.ignore[2].abs().sum() == 0


def test_extras():
    def count(samples, size):
        return {"number": torch.tensor([len(s.instances) * size[1] for s in samples])}

    targets = build_targets([sample([3], [[0, 1, 2, 3]]), sample([], [])], (8, 9), count)
    assert targets.extras["number"].tolist() == [9, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_normalize(kind, dtype):
    top = np.iinfo(kind).max
    images = np.zeros((2, 4, 6, 3), kind)
    images[1, 2, 3] = [top, top // 2, 0]
    out = normalize(torch.from_numpy(images), dtype)
    assert out.shape == (2, 3, 4, 6)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out[1, :, 2, 3].tolist() == pytest.approx([1, 0.5, 0], abs=4e-3)


@pytest.mark.golden
def test_the_tensor_of_a_letterboxed_image(golden):
    data = golden("preprocess.npz")
    image, _ = letterbox(data["letterbox0/img_bgr"], (64, 96))
    out = normalize(torch.from_numpy(image[None, ..., ::-1].copy()))[0]
    assert np.abs(out.numpy() - data["letterbox0/tensor_auto32"]).max() <= 1.01 / 255


def test_moving_keeps_the_rest():
    targets = build_targets([sample([3], [[0, 1, 2, 3]])], (8, 8))
    batch = Batch(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), targets, [4], ["a"], [(9, 9)], [])
    moved = batch.to("meta")
    assert moved.images.is_meta
    assert moved.targets.boxes.is_meta
    assert (len(moved), moved.indices, moved.paths) == (1, [4], ["a"])
    assert not batch.images.is_meta
