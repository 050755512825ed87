# SPDX-License-Identifier: Apache-2.0
"""Letterbox: the stored numbers, round trips, and shapes that depend on the image alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo.data.letterbox import fit_shape, letterbox, place, rect_shape

sides = st.integers(1, 3000)


def _row(mode, h, w):
    """Return (placement, inner, canvas size) for one mode of the stored table."""
    size = (320, 448) if mode == 6 else (640, 640)
    keys = {1: {"scaleup": False}, 4: {"center": False}, 5: {"stretch": True}}.get(mode, {})
    if mode in (2, 3):
        size = rect_shape(h, w, size, 32 if mode == 2 else 64)
    return (*place((h, w), size, **keys), size)


@pytest.mark.golden
def test_placement_rows(golden):
    for h, w, mode, ratio_w, ratio_h, *rest in golden("geometry.npz")["letterbox/rows"]:
        placement, inner, size = _row(int(mode), int(h), int(w))
        top, left = placement.pad_top, placement.pad_left
        bottom, right = size[0] - inner[0] - top, size[1] - inner[1] - left
        assert [inner[1], inner[0], top, bottom, left, right] == rest
        # The table has the ratio before rounding, the placement the one after it.
        assert abs(placement.gain_x * w - max(ratio_w * w, 1)) <= 0.5
        assert abs(placement.gain_y * h - max(ratio_h * h, 1)) <= 0.5


@pytest.mark.golden
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_boxes_and_points_to_original(golden, kind):
    data = golden("geometry.npz")
    before = data["scale_boxes/in"]

    def expected(name):
        return data.get(name, data.get(f"{name}@v8.4"))

    for i, (h, w) in enumerate(data["scale_boxes/shapes"].tolist()):
        placement, _ = place((h, w), (640, 640))
        boxes = kind(before.copy())
        close = {"rtol": 1e-4, "atol": 1e-4}
        out = placement.to_original(boxes)
        assert type(out) is type(boxes)
        np.testing.assert_allclose(np.asarray(out), expected(f"scale_boxes/out{i}"), **close)
        np.testing.assert_array_equal(np.asarray(boxes), before)  # the argument is left alone
        points = placement.points_to_original(kind(data[f"scale_coords/in{i}"]))
        np.testing.assert_allclose(np.asarray(points), expected(f"scale_coords/out{i}"), **close)


@pytest.mark.golden
@pytest.mark.parametrize("case", [0, 1, 2])
def test_pixels(golden, case):
    data = golden("preprocess.npz")
    image = data[f"letterbox{case}/img_bgr"]
    size32 = rect_shape(*image.shape[:2], (96, 96), 32)
    made = {
        "to96": letterbox(image, (96, 96)),
        "to64x96": letterbox(image, (64, 96)),
        "to64_topleft": letterbox(image, (64, 64), center=False),
        "to160_noscaleup": letterbox(image, (160, 160), scaleup=False),
        "to96_auto32": letterbox(image, size32),
    }
    for name, (out, _) in made.items():
        expected = data[f"letterbox{case}/{name}"]
        assert out.shape == expected.shape
        assert np.abs(out.astype(int) - expected).max() <= 1, name
    tensor = made["to96_auto32"][0][..., ::-1].transpose(2, 0, 1) / 255
    assert np.abs(tensor - data[f"letterbox{case}/tensor_auto32"]).max() <= 1.01 / 255


@pytest.mark.golden
def test_labels(golden):
    # Both builds move labels by the ratio before rounding (1.2); the pixels move by 58 / 48 rows.
    data = golden("preprocess.npz")
    h, w = data["letterbox_labels/img_hw"]
    x, y, bw, bh = (data["letterbox_labels/in_bboxes_xywhn"] * [w, h, w, h]).T
    boxes = np.stack([x - bw / 2, y - bh / 2, x + bw / 2, y + bh / 2], 1)
    placement, _ = place((int(h), int(w)), (96, 96))
    pads = np.array([placement.pad_left, placement.pad_top] * 2)
    expected = data["letterbox_labels/bboxes_xyxy_px"]
    np.testing.assert_allclose(boxes * 1.2 + pads, expected, rtol=1e-5, atol=1e-4)
    gains = np.array([placement.gain_x, placement.gain_y] * 2)
    assert np.abs(boxes * gains + pads - expected).max() <= 0.5


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(32, 700), st.integers(32, 700))
def test_round_trip(h, w, canvas_h, canvas_w):
    placement, inner = place((h, w), (canvas_h, canvas_w))
    assert inner[0] <= canvas_h
    assert inner[1] <= canvas_w
    boxes = np.array([[0.0, 0.0, w, h], [w / 3, h / 4, w / 2, h / 2]])
    there = boxes * np.array([placement.gain_x, placement.gain_y] * 2)
    there += np.array([placement.pad_left, placement.pad_top] * 2)
    np.testing.assert_allclose(placement.to_original(there), boxes, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(1, 20), st.integers(1, 20))
def test_fit_and_rect_shapes(h, w, a, b):
    size = (32 * a, 32 * b)
    fit = fit_shape((h, w), size)
    assert fit[0] == size[0] or fit[1] == size[1]
    assert all(1 <= f <= s for f, s in zip(fit, size, strict=True))
    rect = rect_shape(*fit, size, 32)
    assert all(f <= r < f + 32 and r % 32 == 0 for f, r in zip(fit, rect, strict=True))


def test_fit_shape_is_exact():
    assert fit_shape((300, 480), (640, 640)) == (400, 640)  # floats give 401
    assert fit_shape((333, 500), (640, 640)) == (427, 640)
    assert fit_shape((500, 333), (320, 640)) == (320, 214)


def test_placement_after_a_resize_maps_to_the_file():
    placement, _ = place((427, 640), (448, 640))
    whole = placement.after((333, 500))
    box = np.array([[0.0, 10.0, 640.0, 437.0]])
    np.testing.assert_allclose(whole.to_original(box), [[0, 0, 500, 333]], atol=1e-9)


def test_sixteen_bits_and_many_channels():
    image = np.full((20, 40, 5), 60000, np.uint16)
    out, placement = letterbox(image, (64, 64))
    assert out.shape == (64, 64, 5)
    assert out.dtype == np.uint16
    assert out[0, 0].tolist() == [114 * 257] * 5
    assert out[32, 32].tolist() == [60000] * 5
    assert placement.pad_top == 16
    grey, _ = letterbox(np.zeros((20, 40, 1), np.uint8), (64, 64))
    assert grey.shape == (64, 64, 1)


@pytest.mark.processes
def test_runs_without_torch():
    code = "import sys; sys.modules['torch'] = None; import yolo.data.letterbox"
    subprocess.run([sys.executable, "-c", code], check=True)
