# SPDX-License-Identifier: Apache-2.0
"""Labels under matrices, crops and holes: stored numbers, and what pixels would show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from painted import bounds, fill, quadrilateral
from yolo.data.geometry import (
    box_areas,
    clip_boxes,
    clip_instances,
    clip_polygon,
    clip_ring,
    keep_visible,
    polygon_bounds,
    punch_instances,
    punch_polygon,
    smallest_rectangle,
    warp_boxes,
    warp_instances,
    warp_points,
    with_outlines,
)
from yolo.data.sample import Instances

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def area(ring):
    x, y = ring.T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


@pytest.mark.golden
@pytest.mark.parametrize("case", ["warp_affine", "warp_persp", "warp_zoom_out"])
def test_stored_warps(golden, case):
    data = {k.split("/")[1]: v for k, v in golden("preprocess.npz").items() if case in k}
    matrix = data["M"].astype(np.float64)
    width, height = data["size_wh"].tolist()
    rect = (0, 0, width, height)
    unclipped = warp_boxes(data["in_boxes"].astype(np.float64), matrix)
    np.testing.assert_allclose(unclipped, data["boxes_unclipped"], **CLOSE)
    clipped = clip_boxes(unclipped, rect)
    np.testing.assert_allclose(clipped, data["boxes_clipped"], **CLOSE)
    before = box_areas(data["in_boxes"].astype(np.float64)) * float(data["keep_scale"]) ** 2
    for share, stored in ((0.1, "keep_area0.10"), (0.01, "keep_area0.01")):
        np.testing.assert_array_equal(keep_visible(clipped, before, share), data[stored] > 0)
    count = len(unclipped)
    labels = Instances.from_boxes(
        np.zeros(count),
        data["in_boxes"],
        polygons=[[ring.astype(np.float64)] for ring in data["in_segments"]],
        keypoints=data["in_keypoints"].astype(np.float64),
        corners=data["in_obb_corners"].astype(np.float64),
    )
    moved = warp_instances(labels, matrix)
    np.testing.assert_allclose(moved.corners, data["obb_corners_unclipped"], **CLOSE)
    cut = clip_instances(moved, rect)
    np.testing.assert_allclose(cut.keypoints, data["keypoints"], **CLOSE)
    expected = data.get("segment_boxes", data.get("segment_boxes@v8.4"))
    np.testing.assert_allclose(cut.boxes, expected, **CLOSE)


@pytest.mark.golden
@pytest.mark.parametrize("way", ["horizontal", "vertical"])
def test_stored_flips(golden, way):
    data = golden("preprocess.npz")
    height, width = data["flip/in_img"].shape[:2]
    x, y, w, h = (data["flip/in_bboxes_xywhn"] * [width, height, width, height]).T
    labels = Instances.from_boxes(
        [0, 0],
        np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1),
        keypoints=data["flip/in_keypoints_n"] * np.array([width, height, 1.0]),
    )
    matrix = np.eye(3)
    axis, side = (0, width) if way == "horizontal" else (1, height)
    matrix[axis, axis], matrix[axis, 2] = -1, side
    moved = warp_instances(labels, matrix, mirrored=True, flip_idx=data["flip/flip_idx"].tolist())
    key = f"flip/{way}/keypoints_n"
    expected = data.get(key, data.get(f"{key}@v8.4")) * np.array([width, height, 1.0])
    np.testing.assert_allclose(moved.keypoints, expected, **CLOSE)
    x, y, w, h = (data[f"flip/{way}/bboxes_xywhn"] * [width, height, width, height]).T
    boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
    np.testing.assert_allclose(moved.boxes, boxes, **CLOSE)


@pytest.mark.golden
def test_stored_polygon_clip_and_oriented_flip(golden):
    data = golden("preprocess.npz")
    cut = clip_polygon([data["poly/crossing"].astype(np.float64)], (0, 0, 96, 80))
    box = polygon_bounds([cut], np.zeros((1, 4)))[0]
    np.testing.assert_allclose(box, data["poly/crossing_segment2box_w96_h80@v8.4"], **CLOSE)
    matrix = np.array([[-1.0, 0, data["flip_obb/w"]], [0, 1, 0], [0, 0, 1]])
    moved = warp_points(data["flip_obb/in_corners_px"].astype(np.float64), matrix)
    np.testing.assert_allclose(moved, data["flip_obb/corners_px"], **CLOSE)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_a_clipped_ring_covers_the_pixels_that_are_left(seed):
    rng = np.random.default_rng(seed)
    ring = quadrilateral(rng, rng.uniform(0, 40), rng.uniform(0, 30), rng.uniform(3, 25))
    if seed % 2:  # a star is not convex
        ring = np.repeat(ring, 2, axis=0)
        ring[1::2] = (ring[::2] + np.roll(ring[::2], -1, 0)) / 2 * 0.4 + ring.mean(0) * 0.6
    rect = (6.0, 5.0, 31.0, 27.0)
    whole, left = np.zeros((30, 40), bool), np.zeros((30, 40), bool)
    fill(whole, ring, True)
    whole[:5], whole[27:], whole[:, :6], whole[:, 31:] = False, False, False, False
    cut = clip_ring(ring, rect)
    if len(cut):
        fill(left, cut, True)
        assert cut[:, 0].min() >= 6
        assert cut[:, 1].max() <= 27
    np.testing.assert_array_equal(left, whole)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_a_hole_takes_exactly_its_area(seed):
    rng = np.random.default_rng(seed)
    ring = quadrilateral(rng, 20, 15, rng.uniform(5, 14))
    x0, y0 = rng.uniform(0, 30), rng.uniform(0, 20)
    rect = (x0, y0, x0 + rng.uniform(1, 20), y0 + rng.uniform(1, 20))
    pieces = punch_polygon([ring], rect)
    inside = clip_ring(ring, rect)
    left = sum(area(piece) for piece in pieces)
    assert left == pytest.approx(area(ring) - (area(inside) if len(inside) else 0), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.floats(-3, 3), st.floats(0.3, 2), st.booleans())
def test_there_and_back(angle, zoom, flip):
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    matrix = np.array([[cos, sin, 5], [-sin, cos, 7], [1e-4, 2e-4, 1]])
    if flip:
        matrix[0] *= -1
    rng = np.random.default_rng(0)
    rings = np.stack([quadrilateral(rng, 30, 30, 9) for _ in range(3)])
    labels = Instances.from_boxes(
        [0, 1, 2],
        np.concatenate([rings.min(1), rings.max(1)], axis=1),
        polygons=[[ring] for ring in rings],
        keypoints=np.concatenate([rings, np.full((3, 4, 1), 2.0)], axis=2),
        corners=rings,
    )
    order = [1, 0, 3, 2]
    there = warp_instances(labels, matrix, mirrored=flip, flip_idx=order)
    back = warp_instances(there, np.linalg.inv(matrix), mirrored=flip, flip_idx=order)
    for kind in ("boxes", "keypoints", "corners"):
        np.testing.assert_allclose(getattr(back, kind), getattr(labels, kind), atol=1e-6)
    np.testing.assert_allclose(back.polygons[2][0], rings[2], atol=1e-6)
    assert (there.boxes[:, 2:] > there.boxes[:, :2]).all()


def test_keep_visible():
    boxes = np.array(
        [[0, 0, 10, 10], [0, 0, 2, 50], [0, 0, 3, 300.5], [0, 0, 10, 10], [0, 0, 1, 9]]
    )
    before = np.array([100.0, 100.0, 901.5, 1001.0, 9.0])
    ignore = np.array([False, False, False, False, True])
    assert keep_visible(boxes, before, 0.1).tolist() == [True, False, False, False, False]
    assert keep_visible(boxes, before, 0.05).tolist() == [True, False, False, True, False]
    assert keep_visible(boxes, before, 0.1, ignore).tolist() == [True, False, False, False, True]


def test_a_hole_shrinks_or_hides():
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30], [40, 40, 50, 50.0]])
    labels = Instances.from_boxes(
        range(4),
        boxes,
        keypoints=np.array([[[9.0, 5, 2]], [[25, 5, 2]], [[1, 21, 2]], [[45, 45, 2]]]),
    )
    cut, share = punch_instances(labels, (6, -1, 35, 11))
    assert cut.boxes.tolist()[0] == [0, 0, 6, 10]  # a whole side is gone
    assert cut.boxes.tolist()[2:] == boxes.tolist()[2:]
    np.testing.assert_allclose(share, [0.6, 0, 1, 1])
    assert cut.keypoints[:, 0, 2].tolist() == [1, 1, 2, 2]
    partly, share = punch_instances(labels, (6, 5, 35, 35))
    assert partly.boxes[0].tolist() == boxes[0].tolist()  # only a corner is covered
    assert share[0] == pytest.approx(0.8)


def test_oriented_boxes_at_the_border_fit_what_is_left():
    ring = np.array([[-10.0, 5], [10, 5], [10, 15], [-10, 15]])
    labels = Instances.from_boxes([0], [[-10, 5, 10, 15]], corners=ring[None])
    cut = clip_instances(labels, (0, 0, 50, 50))
    assert cut.boxes.tolist() == [[0, 5, 10, 15]]
    np.testing.assert_allclose(
        np.sort(cut.corners[0], axis=0), [[0, 5], [0, 5], [10, 15], [10, 15]], atol=1e-4
    )
    gone = clip_instances(labels, (20, 20, 50, 50))
    assert box_areas(gone.boxes).tolist() == [0]


def test_what_is_cut_twice_is_cut_once_from_its_outline():
    """A box fitted in between would be too large."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        ring = quadrilateral(rng, *rng.uniform(20, 40, 2), 22)
        box = [[*ring.min(0), *ring.max(0)]]
        labels = with_outlines(Instances.from_boxes([0], box, corners=ring[None]))
        twice = clip_instances(clip_instances(labels, (0, 25, 60, 60)), (25, 0, 60, 60))
        once = clip_instances(labels, (25, 25, 60, 60))
        np.testing.assert_allclose(twice.boxes, once.boxes, atol=1e-9)
        if len(once.polygons[0]):
            np.testing.assert_allclose(area(twice.corners[0]), area(once.corners[0]), rtol=1e-9)
            inside = warp_points(np.concatenate(twice.polygons[0]), np.eye(3))
            assert polygon_bounds([[inside]], once.boxes).tolist() == twice.boxes.tolist()
        bare = clip_instances(replace(labels, polygons=None), (25, 25, 60, 60))
        np.testing.assert_allclose(bare.boxes, once.boxes, atol=1e-9)
        assert bare.polygons is None
        left, _ = punch_instances(once, (0, 0, 40, 60))
        np.testing.assert_allclose(left.boxes[0, 0], max(40, once.boxes[0, 0]), atol=1e-9)
    assert with_outlines(Instances.empty()).polygons is None


def test_smallest_rectangle_holds_far_points():
    rng = np.random.default_rng(3)
    ring = quadrilateral(rng, 5000, 7000, 40)
    assert area(smallest_rectangle(ring)) == pytest.approx(area(ring), rel=1e-3)


def test_bounds_of_pixels_agree_with_the_ring():
    rng = np.random.default_rng(1)
    ring = quadrilateral(rng, 20, 20, 9)
    mask = np.zeros((40, 40), bool)
    fill(mask, ring, True)
    np.testing.assert_allclose(bounds(mask), [*ring.min(0), *ring.max(0)], atol=1.5)


def test_nothing_is_fine():
    for labels in (
        Instances.empty(),
        Instances.from_boxes(
            [], [], polygons=[], keypoints=np.zeros((0, 4, 3)), corners=np.zeros((0, 4, 2))
        ),
    ):
        moved = clip_instances(warp_instances(labels, np.eye(3) * [2, 2, 1]), (0, 0, 9, 9))
        assert len(moved) == 0
        assert len(punch_instances(moved, (1, 1, 2, 2))[0]) == 0
