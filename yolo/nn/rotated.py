# SPDX-License-Identifier: Apache-2.0
"""Rotated boxes: conversions, the probabilistic IoU, and the exact one.

**The convention, the only one.** A box is (x, y, w, h, r): its centre, its sides, and the angle in
radians from the x axis to the direction of `w`, clockwise on the screen since y points down. Angles
lie in [-pi/4, 3 pi/4): the wrap is as far from both axes as it can be, where real boxes pile up.
What describes labels moreover has w >= h; of a square (sides equal to a thousandth) it takes the
angle in [-pi/4, pi/4), so that rounding never turns it by a right angle. A network's own boxes may
have w < h. Either way no corner ever jumps: only its place in the list of four may change.

Functions take NumPy arrays and torch tensors alike, and torch isn't imported for the former,
because exported models are used without it. Pixels, or any other unit; `...` leading axes.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np

Array = TypeVar("Array", bound=Any)

EPS = 1e-7
SQUARE = 1e-3
"""Sides that differ by less than this share are equal."""


def array_module(data: Any) -> Any:
    """Return the module that `data` belongs to: numpy, or torch for a tensor."""
    if isinstance(data, np.ndarray):
        return np
    import torch  # present, since `data` is one of its tensors

    return torch


def wrap_angle(angle_rad: Array) -> Array:
    """Bring angles into [-pi/4, 3 pi/4), a box's period being pi."""
    lib = array_module(angle_rad)
    eps = float(lib.finfo(angle_rad.dtype).eps)
    turned = (angle_rad + math.pi / 4) % math.pi
    turned = turned * (turned < math.pi - eps)  # what would be rounded up to the open end
    wrapped: Array = turned.clip(eps / 2, None) - math.pi / 4
    return wrapped


def xywhr_to_corners(boxes: Array) -> Array:
    """Return the corners (..., 4, 2) of boxes_xywhr (..., 5), one after the other around the box.

    The first is centre + w/2 along the angle + h/2 across it.
    """
    lib = array_module(boxes)
    centre, angle = boxes[..., :2], boxes[..., 4]
    cos, sin = lib.cos(angle), lib.sin(angle)
    along = lib.stack([cos, sin], -1) * (boxes[..., 2:3] / 2)
    across = lib.stack([-sin, cos], -1) * (boxes[..., 3:4] / 2)
    # Small numbers first: each sum at the centre's size would cost single precision a digit.
    offsets = lib.stack([along + across, along - across, -along - across, across - along], -2)
    corners: Array = centre[..., None, :] + offsets
    return corners


def corners_to_xywhr(corners: Array) -> Array:
    """Return the smallest rectangle (..., 5) around four corners (..., 4, 2), in any order.

    A rectangle gives itself back. Worked out in double precision around the centre; a smallest
    rectangle has a side along one of the corners' six joining lines.

    Source: Freeman and Shapira, Determining the minimum-area encasing rectangle for an arbitrary
    closed curve, CACM 18(7), 1975.
    """
    if not isinstance(corners, np.ndarray):
        return corners.new_tensor(corners_to_xywhr(corners.detach().double().cpu().numpy()))
    first, second = np.triu_indices(4, 1)
    points = corners.astype(np.float64)
    lines = points[..., second, :] - points[..., first, :]
    boxes = enclosing_rectangle(points, np.arctan2(lines[..., 1], lines[..., 0]))
    dtype = corners.dtype if corners.dtype.kind == "f" else np.float64
    fitted: Any = boxes.astype(dtype)
    fitted[..., 4] = wrap_angle(fitted[..., 4])
    return fitted


def enclosing_rectangle(points: np.ndarray, angles_rad: np.ndarray) -> np.ndarray:
    """Return the smallest of the rectangles around points that lie along given directions.

    Args:
        points: (..., P, 2) float64.
        angles_rad: (..., D) directions.

    Returns:
        (..., 5) boxes_xywhr as labels have them: w >= h, and squares turned least.
    """
    middle = points.mean(-2, keepdims=True)
    x, y = np.moveaxis((points - middle)[..., None, :], -1, 0)  # (..., P, 1)
    cos, sin = np.cos(angles_rad), np.sin(angles_rad)
    c, s = cos[..., None, :], sin[..., None, :]
    spans = np.stack([x * c + y * s, y * c - x * s], -1)  # (..., P, D, 2)
    low, high = spans.min(-3), spans.max(-3)
    sides, centre = high - low, (high + low) / 2
    best = sides.prod(-1).argmin(-1)[..., None]

    def chosen(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, best, -1)[..., 0]

    w, h, u, v, cos, sin, angle = map(
        chosen, (sides[..., 0], sides[..., 1], centre[..., 0], centre[..., 1], cos, sin, angles_rad)
    )
    quarter = math.pi / 2
    square = np.abs(w - h) <= SQUARE * np.maximum(w, h)
    # Squares: to the nearest quarter turn. Others: w along the longer side.
    turns = np.where(square, -np.floor(angle / quarter + 0.5), w < h)
    w, h = np.where(turns % 2 == 1, h, w), np.where(turns % 2 == 1, w, h)
    angle = wrap_angle(np.asarray(angle + turns * quarter))
    x, y = u * cos - v * sin, u * sin + v * cos
    boxes: np.ndarray = np.stack([x + middle[..., 0, 0], y + middle[..., 0, 1], w, h, angle], -1)
    return boxes


def scale_boxes(boxes: Array, gain_x: float, gain_y: float) -> Array:
    """Stretch boxes_xywhr (..., 5) with the picture; unequal gains turn them and change both sides.

    A sheared box is taken as the rectangle with the same directions' lengths, which is exact for
    equal gains and for upright boxes.
    """
    lib = array_module(boxes)
    x, y, w, h, angle = (boxes[..., i] for i in range(5))
    cos, sin = lib.cos(angle), lib.sin(angle)
    scaled: Array = lib.stack(
        [
            x * gain_x,
            y * gain_y,
            w * lib.sqrt((cos * gain_x) ** 2 + (sin * gain_y) ** 2),  # ONNX has no hypot
            h * lib.sqrt((sin * gain_x) ** 2 + (cos * gain_y) ** 2),
            wrap_angle(lib.arctan2(sin * gain_y, cos * gain_x)),
        ],
        -1,
    )
    return scaled


def points_in_boxes(points: Array, boxes: Array) -> Array:
    """Tell which points lie in which boxes, the border included.

    Args:
        points: (A, 2) x and y.
        boxes: (..., n, 5) boxes_xywhr.

    Returns:
        (..., n, A) bool.
    """
    lib = array_module(boxes)
    x, y = points[:, 0], points[:, 1]
    centre_x, centre_y, w, h, angle = (boxes[..., i : i + 1] for i in range(5))
    cos, sin = lib.cos(angle), lib.sin(angle)
    along = x * cos + y * sin - (centre_x * cos + centre_y * sin)
    across = y * cos - x * sin - (centre_y * cos - centre_x * sin)
    inside: Array = (lib.abs(along) <= w / 2) & (lib.abs(across) <= h / 2)
    return inside


def ltrb_to_boxes(dist: Array, angle_rad: Array, points: Array) -> Array:
    """Turn distances from anchor points to the sides of rotated boxes into the boxes.

    Args:
        dist: (..., A, 4) to the left, top, right, bottom of the box, along its own axes.
        angle_rad: (..., A, 1).
        points: (..., A, 2) x and y, in the unit of `dist`.

    Returns:
        (..., A, 5) boxes_xywhr.
    """
    lib = array_module(dist)
    left_top, right_bottom = dist[..., :2], dist[..., 2:]
    offset = (right_bottom - left_top) / 2
    x, y = offset[..., :1], offset[..., 1:]
    cos, sin = lib.cos(angle_rad), lib.sin(angle_rad)
    shift = lib.concatenate((x * cos - y * sin, x * sin + y * cos), -1)
    boxes: Array = lib.concatenate((points + shift, left_top + right_bottom, angle_rad), -1)
    return boxes


def boxes_to_ltrb(boxes: Array, points: Array) -> Array:
    """Return the distances (..., A, 4) from points to the sides: the inverse of `ltrb_to_boxes`."""
    lib = array_module(boxes)
    offset, half, angle = points - boxes[..., :2], boxes[..., 2:4] / 2, boxes[..., 4:]
    x, y = offset[..., :1], offset[..., 1:]
    cos, sin = lib.cos(angle), lib.sin(angle)
    own = lib.concatenate((x * cos + y * sin, y * cos - x * sin), -1)
    dist: Array = lib.concatenate((half + own, half - own), -1)
    return dist


def prob_iou(boxes1: Array, boxes2: Array, floor: float = 0.0) -> Array:
    """Probabilistic IoU, in 0..1: one minus the Hellinger distance of the boxes' Gaussians.

    Args:
        boxes1: (..., 5) boxes_xywhr.
        boxes2: (..., 5) boxes_xywhr that broadcast with `boxes1`; (n, 1, 5) with (m, 5) for all
            pairs. What depends on one box alone is worked out before the broadcast.
        floor: added to both variances of every box, so that thin ones keep a useful gradient.

    Returns:
        The broadcast leading shape. Finite for boxes without area.

    Source: Llerena et al., Gaussian Bounding Boxes and Probabilistic Intersection-over-Union for
    Object Detection, arXiv:2106.06072, section 3. Determinants are sums of positive terms in place
    of the textbook's differences, which lose all digits of thin boxes in single precision.
    """
    lib = array_module(boxes1)
    one, two = _Gaussian(boxes1, floor), _Gaussian(boxes2, floor)
    dx, dy = one.x - two.x, one.y - two.y
    apart = (one.xx + two.xx) * dy * dy + (one.yy + two.yy) * dx * dx
    apart = apart - 2 * (one.xy + two.xy) * dx * dy
    cos = one.cos * two.cos + one.sin * two.sin
    sin = one.sin * two.cos - one.cos * two.sin
    det = (one.p * two.q + one.q * two.p) * (cos * cos)
    det = det + (one.p * two.p + one.q * two.q) * (sin * sin)
    det = det + (one.p * one.q + two.p * two.q)
    distance = apart / (det + EPS) / 4
    distance = distance + lib.log(det / (4 * one.root * two.root + EPS) + EPS) / 2
    overlap: Array = 1 - lib.sqrt(-lib.expm1(-distance.clip(EPS, 100.0)) + EPS)
    return overlap


class _Gaussian:
    """Mean and covariance of the uniform distribution over each box: sides squared over 12."""

    def __init__(self, boxes: Any, floor: float) -> None:
        lib = array_module(boxes)
        self.x, self.y, w, h, angle = (boxes[..., i] for i in range(5))
        self.cos, self.sin = lib.cos(angle), lib.sin(angle)
        self.p, self.q = w * w / 12 + floor, h * h / 12 + floor
        self.root = lib.sqrt(self.p * self.q + EPS * EPS)  # its slope at 0 would be infinite
        self.xx = self.p * self.cos**2 + self.q * self.sin**2
        self.yy = self.p * self.sin**2 + self.q * self.cos**2
        self.xy = (self.p - self.q) * self.cos * self.sin


def rotated_intersection(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """Return the exact areas (N, M) that boxes_xywhr (N, 5) and (M, 5) share.

    Seen from the second box, the first is cut at the four lines of its sides, and then every point
    is moved to the nearest one of the second box. That shrinks all that lies outside onto the
    border, where it encloses nothing, and leaves the rest; so the area of the moved outline is the
    area in common. There are no cases to tell apart, and no tolerance.
    """
    first, second = (np.asarray(b, np.float64).reshape(-1, 5) for b in (boxes1, boxes2))
    shared = np.zeros((len(first), len(second)))
    reach = np.hypot(first[:, 2], first[:, 3])[:, None] + np.hypot(second[:, 2], second[:, 3])
    gaps = first[:, None, :2] - second[None, :, :2]
    i, j = np.nonzero(np.hypot(gaps[..., 0], gaps[..., 1]) < reach / 2)
    a, b, gap = first[i], second[j], gaps[i, j]
    cos, sin = np.cos(b[:, 4]), np.sin(b[:, 4])
    x, y = gap[:, 0] * cos + gap[:, 1] * sin, gap[:, 1] * cos - gap[:, 0] * sin
    start = xywhr_to_corners(np.stack([x, y, a[:, 2], a[:, 3], a[:, 4] - b[:, 4]], -1))
    step = np.roll(start, -1, 1) - start
    half = b[:, None, 2:4] / 2
    with np.errstate(divide="ignore", invalid="ignore"):  # edges along a line never cross it
        crossings = np.concatenate([(-half - start) / step, (half - start) / step], -1)
    share = np.sort(np.nan_to_num(crossings).clip(0, 1), -1)  # (pairs, 4 edges, 4 lines)
    share = np.concatenate([np.zeros_like(share[..., :1]), share], -1)
    points = start[:, :, None] + share[..., None] * step[:, :, None]
    outline = points.clip(-half[:, :, None], half[:, :, None]).reshape(len(i), 20, 2)
    following = np.roll(outline, -1, 1)
    doubled = outline[..., 0] * following[..., 1] - outline[..., 1] * following[..., 0]
    shared[i, j] = np.abs(doubled.sum(-1)) / 2
    return shared


def rotated_iou(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """Return the exact intersection over union (N, M) of boxes_xywhr (N, 5) and (M, 5)."""
    shared = rotated_intersection(boxes1, boxes2)
    areas = (boxes1[:, 2] * boxes1[:, 3])[:, None] + boxes2[:, 2] * boxes2[:, 3]
    return np.asarray(shared / np.maximum(areas - shared, np.finfo(np.float64).tiny))
