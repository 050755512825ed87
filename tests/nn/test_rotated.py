# SPDX-License-Identifier: Apache-2.0
"""Rotated boxes: one convention, round trips, both overlaps, on arrays and tensors."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from yolo.nn.rotated import (
    boxes_to_ltrb,
    corners_to_xywhr,
    enclosing_rectangle,
    ltrb_to_boxes,
    points_in_boxes,
    prob_iou,
    rotated_intersection,
    rotated_iou,
    scale_boxes,
    wrap_angle,
    xywhr_to_corners,
)

KINDS = [np.asarray, torch.as_tensor]
SIDES = [(100, 100), (100, 40), (40, 100), (300, 3), (3, 2.999), (50, 50.001), (2, 1.9)]


def turned(w, h, degrees, centre=(320.3, 240.7), dtype=np.float64):
    angle = np.radians(np.asarray(degrees, np.float64))
    fixed = [np.full(len(angle), value, np.float64) for value in (*centre, w, h)]
    return np.stack([*fixed, angle], 1).astype(dtype)


def apart(first, second):
    """Return the largest distance from a corner to the nearest of the other set, (N, 4, 2)."""
    gaps = np.linalg.norm(first[:, :, None].astype(float) - second[:, None], axis=-1)
    return max(gaps.min(1).max(), gaps.min(2).max())


def crowd(count=40, seed=0, size=80):
    rng = np.random.default_rng(seed)
    boxes = [rng.uniform(0, size, (count, 2)), rng.uniform(1, 50, (count, 2))]
    return np.concatenate([*boxes, rng.uniform(-0.7, 2.3, (count, 1))], 1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("w", "h"), SIDES)
def test_every_angle_comes_back_and_no_corner_jumps(w, h, dtype):
    corners = xywhr_to_corners(turned(w, h, range(181))).astype(dtype)
    boxes = corners_to_xywhr(corners)
    back = xywhr_to_corners(boxes)
    assert boxes.dtype == back.dtype == dtype
    assert apart(corners, back) < 1e-4
    assert apart(back[1:], back[:-1]) < math.hypot(w, h) / 2 * math.radians(1) + 2e-4
    assert (boxes[:, 4] >= -math.pi / 4).all()
    assert (boxes[:, 4] < 3 * math.pi / 4).all()
    if min(w, h) < 0.99 * max(w, h):
        assert (boxes[:, 2] >= boxes[:, 3]).all()
    else:  # squares never turn by more than they have to
        assert (np.abs(boxes[:, 4]) <= math.pi / 4 + 1e-6).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("degrees", [0, 90])
@pytest.mark.parametrize(("w", "h"), [(40, 10), (20, 20)])
def test_noise_does_not_turn_upright_boxes(w, h, degrees, dtype):
    """Neither axis is near the wrap; a square's angle isn't settled by its last digit."""
    rng = np.random.default_rng(0)
    corners = xywhr_to_corners(turned(w, h, [degrees] * 200))
    noisy = (corners + rng.uniform(-1e-3, 1e-3, corners.shape)).astype(dtype)
    expected = math.radians(degrees) if w != h else 0
    assert np.abs(corners_to_xywhr(noisy)[:, 4] - expected).max() < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_corners_does_not_matter(kind):
    corners = xywhr_to_corners(crowd())
    wanted = corners_to_xywhr(corners)
    for order in ([1, 2, 3, 0], [3, 2, 1, 0], [0, 2, 1, 3]):
        found = corners_to_xywhr(kind(corners[:, order]))
        np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-9)
    assert type(found) is type(kind(corners))


def test_four_points_are_fitted_by_the_smallest_rectangle():
    """None of a thousand directions gives a smaller one."""
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 100, (20, 4, 2)) + 5000
    boxes = corners_to_xywhr(points)
    around = enclosing_rectangle(points, np.linspace(0, math.pi, 1000)[None])
    fitted, swept = boxes[:, 2:4].prod(1), around[:, 2:4].prod(1)
    assert (fitted <= swept + 1e-6).all()
    np.testing.assert_allclose(fitted, swept, rtol=0.02)
    for box, ring in zip(boxes, points, strict=True):
        grown = box + np.array([0, 0, 1e-6, 1e-6, 0])
        assert points_in_boxes(ring, grown[None]).all()


def test_no_area_and_no_boxes_are_fine():
    for points in (np.zeros((1, 4, 2)), np.array([[[0, 0], [1, 1], [2, 2], [3, 3]]])):
        box = corners_to_xywhr(points)
        assert np.isfinite(box).all()
        assert box[0, 2:4].prod() == pytest.approx(0)
    assert corners_to_xywhr(np.zeros((0, 4, 2))).shape == (0, 5)
    assert rotated_iou(np.zeros((0, 5)), crowd(3)).shape == (0, 3)
    assert rotated_iou(np.zeros((2, 5)), np.zeros((2, 5))).tolist() == [[0, 0], [0, 0]]


@pytest.mark.golden
@pytest.mark.parametrize("kind", KINDS)
def test_stored_conversions_and_overlaps(golden, kind):
    stored = golden("geometry.npz")
    first, second = kind(stored["probiou/obb1"]), kind(stored["probiou/obb2"])
    close = {"rtol": 1e-4, "atol": 1e-6}
    corners = xywhr_to_corners(first)
    np.testing.assert_allclose(corners, stored["rotated/xywhr2corners"], rtol=1e-4, atol=1e-4)
    boxes = corners_to_xywhr(kind(stored["rotated/xywhr2corners"]))
    np.testing.assert_allclose(boxes, stored["rotated/corners2xywhr@v8.4"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(prob_iou(first, second), stored["probiou/probiou"], **close)
    floored = prob_iou(first, second, 0.01)
    np.testing.assert_allclose(floored, stored["probiou/peer_floor0.01"], **close)
    pairs = prob_iou(first[:8, None], second[:10])
    np.testing.assert_allclose(pairs, stored["probiou/pairwise_8x10"], **close)


@pytest.mark.golden
def test_stored_distances(golden):
    stored = golden("geometry.npz")
    dist, angle, points = (stored[f"{k}"] for k in ("dist/ltrb", "dist/angle", "anchors/points"))
    boxes = ltrb_to_boxes(dist, angle, np.broadcast_to(points, (2, *points.shape)))
    np.testing.assert_allclose(boxes[..., :4], stored["dist/rbox_xywh"], rtol=1e-4, atol=1e-6)
    back = boxes_to_ltrb(boxes, points)
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(back, stored["dist/peer_rbox2dist_of_rbox"], **close)


@pytest.mark.parametrize("kind", KINDS)
def test_distances_and_boxes_are_inverse(kind):
    boxes, points = kind(crowd(30)), kind(np.random.default_rng(1).uniform(0, 80, (30, 2)))
    dist = boxes_to_ltrb(boxes, points)
    np.testing.assert_allclose(ltrb_to_boxes(dist, boxes[:, 4:], points), boxes, atol=1e-9)
    inside = points_in_boxes(points, boxes)
    assert np.array_equal(np.diagonal(inside), (np.asarray(dist) >= 0).all(1))
    # A quarter turn: what lay to the left of the point lies above it.
    box = ltrb_to_boxes(kind([[1.0, 2, 3, 4]]), kind([[math.pi / 2]]), kind([[10.0, 20]]))
    np.testing.assert_allclose(box, [[9, 21, 4, 6, math.pi / 2]])


def test_the_border_is_inside():
    box = np.array([[10, 10, 8, 4, 0.0]])
    points = np.array([[14, 12], [14.001, 12], [6, 8], [10, 7.999], [10, 10]])
    assert points_in_boxes(points, box)[0].tolist() == [True, False, True, False, True]
    corners = xywhr_to_corners(crowd(20))
    middle = corners.mean(1, keepdims=True)
    inner, outer = (middle + (corners - middle) * share for share in (0.999, 1.001))
    for row in range(20):
        box = crowd(20)[row : row + 1]
        assert points_in_boxes(inner[row], box).all()
        assert not points_in_boxes(outer[row], box).any()


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_follows_the_corners(kind):
    boxes = crowd()
    same = scale_boxes(kind(boxes), 0.4, 0.4)
    np.testing.assert_allclose(xywhr_to_corners(np.asarray(same)), xywhr_to_corners(boxes) * 0.4)
    upright = np.concatenate([boxes[:, :4], np.repeat([[0.0], [math.pi / 2]], 20, 0)], 1)
    found = xywhr_to_corners(np.asarray(scale_boxes(kind(upright), 0.5, 3.0)))
    np.testing.assert_allclose(found, xywhr_to_corners(upright) * [0.5, 3], atol=1e-9)
    there = scale_boxes(kind(boxes), 1.01, 0.99)
    assert apart(xywhr_to_corners(np.asarray(there)), xywhr_to_corners(boxes) * [1.01, 0.99]) < 0.5


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_angles_wrap_into_the_half_open_range(dtype):
    low, high = -math.pi / 4, 3 * math.pi / 4
    edges = [low, high, high - 1e-8, high - 1e-7, low - 1e-17, low - 1e-7, 7, math.pi, -9, 0]
    angles = np.array(edges, dtype)
    for found in (wrap_angle(angles), wrap_angle(torch.from_numpy(angles)).numpy()):
        assert found.dtype == dtype
        assert (found >= low).all()
        assert (found < high).all()
        np.testing.assert_allclose(np.sin(found - angles), 0, atol=1e-6)


def cross(a, b):
    return a[0] * b[1] - a[1] * b[0]


def clipped_area(first, second):
    """Cut one convex ring by the other's edges, in plain Python (Sutherland and Hodgman, 1974)."""
    ring = [np.array(p) for p in first]
    edges = list(zip(second, np.roll(second, -1, 0), strict=True))
    turn = math.copysign(1, sum(cross(a, b) for a, b in edges))
    for a, b in edges:
        sides = [turn * cross(b - a, p - a) for p in ring]
        kept = []
        for i, (p, here) in enumerate(zip(ring, sides, strict=True)):
            q, there = ring[(i + 1) % len(ring)], sides[(i + 1) % len(ring)]
            if here >= 0:
                kept.append(p)
            if (here < 0) != (there < 0):
                kept.append(p + here / (here - there) * (q - p))
        ring = kept
    return abs(sum(cross(p, q) for p, q in zip(ring, ring[1:] + ring[:1], strict=True))) / 2


def test_exact_overlap_equals_brute_force():
    """Another algorithm, one pair after the other; identical and touching boxes among them."""
    boxes = crowd(24)
    boxes[1], boxes[3] = boxes[0], boxes[2] + [0, 0, 0, 0, math.pi]
    boxes[5] = boxes[4][[0, 1, 3, 2, 4]] + [0, 0, 0, 0, math.pi / 2]
    boxes[6] = [10, 10, 20, 10, 0]
    boxes[7] = [30, 10, 20, 10, 0]
    boxes[8] = [30, 10, 10, 20, math.pi / 2]
    corners = xywhr_to_corners(boxes)
    found = rotated_intersection(boxes, boxes)
    for i in range(24):
        for j in range(24):
            assert found[i, j] == pytest.approx(clipped_area(corners[i], corners[j]), abs=1e-9)
    iou = rotated_iou(boxes, boxes)
    np.testing.assert_allclose(iou, iou.T, atol=1e-12)
    np.testing.assert_allclose(np.diagonal(iou), 1)
    assert iou[[0, 2, 4, 7], [1, 3, 5, 8]] == pytest.approx(1)
    assert iou[6, 7] == 0
    assert 0.1 < (iou > 0).mean() < 0.9


def test_overlap_of_upright_boxes_is_the_usual_one():
    boxes = crowd()
    boxes[:, 4] = 0
    low, high = boxes[:, :2] - boxes[:, 2:4] / 2, boxes[:, :2] + boxes[:, 2:4] / 2
    shared = (np.minimum(high[:, None], high) - np.maximum(low[:, None], low)).clip(0).prod(-1)
    areas = boxes[:, 2:4].prod(1)
    usual = shared / (areas[:, None] + areas - shared)
    np.testing.assert_allclose(rotated_iou(boxes, boxes), usual, atol=1e-12)
    lying = boxes[:, [0, 1, 3, 2, 4]] + [0, 0, 0, 0, math.pi / 2]
    np.testing.assert_allclose(rotated_iou(lying, boxes), usual, atol=1e-12)


def test_probabilistic_overlap_behaves():
    boxes = torch.from_numpy(crowd())
    pairs = prob_iou(boxes[:, None], boxes)
    torch.testing.assert_close(pairs, pairs.T)
    assert ((pairs > -1e-7) & (pairs <= 1)).all()
    assert (pairs.diagonal() > 0.999).all()
    # The same box under other names.
    other = boxes[:, [0, 1, 3, 2, 4]] + torch.tensor([0, 0, 0, 0, math.pi / 2])
    torch.testing.assert_close(prob_iou(boxes[:, None], other), pairs, atol=1e-3, rtol=0)
    far = boxes + torch.tensor([1e4, 0, 0, 0, 0])
    assert (prob_iou(boxes, far) < 1e-3).all()


def test_thin_boxes_keep_their_digits_in_single_precision():
    thin = torch.tensor([[500.0, 500, 1000, 1, math.pi / 2 - 0.3], [500, 501, 1, 1000, -0.3]])
    exact = prob_iou(thin[:1].double(), thin[1:].double())
    torch.testing.assert_close(prob_iou(thin[:1], thin[1:]).double(), exact, atol=2e-3, rtol=0)


def test_gradients_are_right_and_finite():
    rng = np.random.default_rng(2)
    pred = torch.from_numpy(crowd(12)).requires_grad_()
    target = pred.detach() + torch.from_numpy(rng.normal(0, 2, (12, 5)) * [1, 1, 0.3, 0.3, 0.1])
    assert torch.autograd.gradcheck(lambda p: prob_iou(p, target, 0.01), pred, atol=1e-5)
    for row in ([0.0] * 5, [5.0, 5, 1e-6, 3, 1], [5.0, 5, 3, 3, 1]):
        box = torch.tensor(row).requires_grad_()
        for other in (torch.tensor(row), torch.tensor([6.0, 5, 2, 4, 0]), torch.zeros(5)):
            for floor in (0.0, 0.01):
                (grad,) = torch.autograd.grad(prob_iou(box, other, floor), box)
                assert torch.isfinite(grad).all()
                assert torch.isfinite(prob_iou(box, other, floor)).all()


@pytest.mark.processes
def test_arrays_need_no_torch():
    code = "import sys; sys.modules['torch'] = None\n" + (
        "import numpy as np; from yolo.nn.rotated import *\n"
        "b = np.ones((3, 5)); c = xywhr_to_corners(b)\n"
        "corners_to_xywhr(c), prob_iou(b, b), rotated_iou(b, b), scale_boxes(b, 2, 2)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
