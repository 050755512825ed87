# SPDX-License-Identifier: Apache-2.0
"""The figures that drawn scenes show: outlines and keypoints, by class.

A figure is given in a unit frame: length 1 along x, its heading, with the nose at (0.5, 0); y
points to its right (image axes, y down), so "left" has negative y. Every figure is symmetric about
the x axis, differs front from back, and is clearly longer than wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from yolo.data.sample import Polygon

KEYPOINTS = ("nose", "left", "tail", "right")
"""Foremost point on the axis, widest point on the left, rearmost on the axis, widest on the right.

Of several widest points it is the hindmost.
"""

FLIP_IDX = (0, 3, 2, 1)
"""Which keypoint takes each one's place when the image is mirrored."""

Rng = np.random.Generator
_Points = list[tuple[float, float]]
Figure = tuple[Polygon, np.ndarray]
"""Rings, filled by the even-odd rule, and (4, 2) keypoints in the order of `KEYPOINTS`."""


def _arc(cx: float, radius_x: float, radius_y: float, start: float, stop: float, n: int) -> _Points:
    """Return n points of an ellipse arc around (cx, 0); angles in radians."""
    angles = np.linspace(start, stop, n)
    return [(cx + radius_x * math.cos(a), radius_y * math.sin(a)) for a in angles]


def _circle(cx: float, radius_x: float, radius_y: float, n: int = 32) -> _Points:
    return _arc(cx, radius_x, radius_y, 0.0, 2 * math.pi * (n - 1) / n, n)


def _figure(rings: Sequence[Any], widest_x: float, width: float, tail_x: float = -0.5) -> Figure:
    side = width / 2
    points = [(0.5, 0.0), (widest_x, -side), (tail_x, 0.0), (widest_x, side)]
    return [np.array(ring, dtype=np.float64) for ring in rings], np.array(points)


def _arrow(rng: Rng) -> Figure:
    width = rng.uniform(0.55, 0.75)
    neck = 0.5 - rng.uniform(0.38, 0.5)
    head, shaft = width / 2, width * rng.uniform(0.17, 0.24)
    upper = [(0.5, 0.0), (neck, head), (neck, shaft), (-0.5, shaft)]
    return _figure([upper + [(x, -y) for x, y in upper[:0:-1]]], neck, width)


def _drop(rng: Rng) -> Figure:
    width = rng.uniform(0.55, 0.72)
    angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    profile = np.sin(angles) * np.sin(angles / 2)  # linear at angle 0: a sharp nose
    widest = int(profile.argmax())
    x = 0.5 * np.cos(angles)
    y = profile * (width / 2 / profile[widest])
    return _figure([np.stack([x, y], axis=1)], float(x[widest]), width)


def _magnet(rng: Rng) -> Figure:
    width = rng.uniform(0.7, 0.8)
    outer = width / 2
    inner = outer - width * rng.uniform(0.26, 0.32)
    bend = 0.5 - outer
    ring = [(-0.5, -outer), *_arc(bend, outer, outer, -math.pi / 2, math.pi / 2, 17)]
    ring += [(-0.5, outer), (-0.5, inner)]
    ring += [*_arc(bend, inner, inner, math.pi / 2, -math.pi / 2, 13), (-0.5, -inner)]
    return _figure([ring], -0.5, width, tail_x=bend + inner)


def _mark(rng: Rng) -> Figure:
    width = rng.uniform(0.34, 0.42)
    front, back = width / 2, width * rng.uniform(0.2, 0.3)
    dot = rng.uniform(0.13, 0.16)
    end = -0.5 + 2 * dot + rng.uniform(0.08, 0.11)
    bar = [(0.5, -front), (0.5, front), (end, back), (end, -back)]
    return _figure([bar, _circle(-0.5 + dot, dot, dot, 20)], 0.5, width)


def _ring(rng: Rng) -> Figure:
    width = rng.uniform(0.65, 0.8)
    hole = rng.uniform(0.26, 0.31)
    centre = -0.5 + hole + rng.uniform(0.09, 0.11)  # nearer the tail: thick in front
    return _figure(
        [_circle(0.0, 0.5, width / 2), _circle(centre, hole, width * hole, 24)], 0.0, width
    )


FIGURES: dict[str, Callable[[Rng], Figure]] = {
    "arrow": _arrow,
    "drop": _drop,
    "magnet": _magnet,
    "mark": _mark,
    "ring": _ring,
}
NAMES = dict(enumerate(FIGURES))
"""Class names by id, in alphabetical order: folders of an image-class set sort alike."""
