# SPDX-License-Identifier: Apache-2.0
"""From prototypes to pixels: golden masks, and any picture's pixels by one rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from yolo.data.letterbox import place
from yolo.tasks.segment import masks as segment_masks
from yolo.tasks.segment.masks import Grid, instance_masks


def whole(coefficients, proto, boxes, grid):
    out = np.zeros((len(boxes), *grid.size), np.uint8)
    found = instance_masks(coefficients, proto, np.asarray(boxes, float), grid)
    for canvas, (top, left, mask) in zip(out, found, strict=True):
        canvas[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return out


@pytest.mark.golden
def test_stored_masks(golden):
    stored = golden("geometry.npz")
    made = stored["mask/coef"], stored["mask/proto"]
    boxes, proto = stored["mask/boxes"], stored["mask/proto"]
    canvas = Grid.of_canvas((64, 96), proto.shape)
    # The classic build cuts to the box before it enlarges, which frays the edge by two pixels.
    assert np.array_equal(whole(*made, boxes, canvas), stored["mask/process_64x96_upsampled@v8.4"])
    small = Grid.of_canvas((16, 24), proto.shape)
    assert np.array_equal(whole(*made, boxes / 4, small), stored["mask/process_64x96"])
    placement, _ = place((60, 120), (64, 96))
    original = Grid.of_original(placement, (64, 96), proto.shape)
    found = whole(*made, stored["mask/native_boxes"], original)
    assert np.array_equal(found, stored["mask/native_60x120"])


@pytest.mark.golden
def test_stored_crops(golden):
    stored = golden("geometry.npz")
    full = np.ones((1, 12, 16), np.float32)
    grid = Grid.of_canvas((12, 16), full.shape)
    boxes = stored["mask/crop_boxes"]
    kept = whole(np.ones((len(boxes), 1)), full, boxes, grid)
    assert np.array_equal(stored["mask/crop_in"] * kept, stored["mask/crop_out"])


def random_scene(n=7, size=(20, 28), seed=0):
    rng = np.random.default_rng(seed)
    coefficients = rng.standard_normal((n, 4)).astype(np.float32)
    return coefficients, rng.standard_normal((4, *size)).astype(np.float32)


def test_the_grid_of_an_image_is_bilinear_interpolation_of_the_logits():
    coefficients, proto = random_scene()
    boxes = np.tile([[0, 0, 400, 400]], (7, 1))
    logits = torch.from_numpy(np.tensordot(coefficients, proto, 1))
    for size in ((80, 112), (37, 53), (160, 224)):
        expected = F.interpolate(logits[None], size, mode="bilinear")[0].numpy()
        found = whole(coefficients, proto, boxes, Grid.of_canvas(size, proto.shape))
        sure = abs(expected) > 1e-5
        assert np.array_equal(found[sure], expected[sure] > 0)


@pytest.mark.parametrize("shape", [(61, 100), (300, 71), (1, 40), (80, 112)])
def test_the_letterbox_is_undone(shape):
    """A picture of its own columns and rows comes back in place, whatever the padding."""
    canvas = (80, 112)
    placement, (inner_h, inner_w) = place(shape, canvas)
    y, x = np.mgrid[:20, :28] * 4 + 2.0  # canvas pixels in the middles of prototype pixels
    centre = np.array([shape[1], shape[0]]) / 2
    on_canvas = placement.matrix @ [*centre, 1]
    proto = np.stack([x - on_canvas[0], y - on_canvas[1]]).astype(np.float32)
    grid = Grid.of_original(placement, canvas, proto.shape)
    right, lower = whole(np.eye(2), proto, [[0, 0, *shape[::-1]]] * 2, grid)
    middle = (np.arange(shape[1]) + 0.5 > centre[0] + 1e-6).astype(np.uint8)
    assert abs(right.astype(int) - middle).sum() <= shape[0]
    if min(inner_h, inner_w) > 8:  # else the border counts
        assert abs(int(lower[:, 0].sum()) - shape[0] // 2) <= 1


def test_bands_and_chunks_change_nothing(monkeypatch):
    coefficients, proto = random_scene()
    boxes = np.random.default_rng(1).uniform(-10, 120, (7, 4))
    boxes[:, 2:] += boxes[:, :2].clip(0)
    grid = Grid.of_canvas((80, 112), proto.shape)
    expected = whole(coefficients, proto, boxes, grid)
    monkeypatch.setattr(segment_masks, "_LOGITS", 3 * 20 * 28)
    monkeypatch.setattr(segment_masks, "_BAND", 50)
    assert np.array_equal(whole(coefficients, proto, boxes, grid), expected)


def test_boxes_outside_and_no_boxes():
    coefficients, proto = random_scene(2)
    grid = Grid.of_canvas((80, 112), proto.shape)
    found = list(
        instance_masks(
            coefficients, proto, np.array([[-9, -9, -1, -1], [120, 90, 130, 99.0]]), grid
        )
    )
    assert [mask.size for *_, mask in found] == [0, 0]
    assert list(instance_masks(coefficients[:0], proto, np.zeros((0, 4)), grid)) == []
