# SPDX-License-Identifier: Apache-2.0
"""Labels of oriented boxes: four corners a row, and the rotated boxes that they make of a batch.

n rows, N instances, B images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from yolo.data.batch import Extras
from yolo.data.labels import Fault, LabelRules
from yolo.data.sample import Instances, Sample
from yolo.nn.rotated import corners_to_xywhr
from yolo.tasks.detect.data import labels_of, padded

COLUMNS = 9

FAR = 1.0
"""How far beyond the image's edge a corner may lie, as a share of the image's side. An upright box
can be cut at the edge without harm, a turned one can't: its corners stay where they are, and what
is trained on is fitted to the part inside. A file in pixels is still told from one in shares."""

FLAT = 1e-6
"""A box thinner than this share of the image has no area: six digits can't say more."""

FILLED = 0.4
"""Four corners, one after the other around a box, fill at least half of the smallest rectangle
around them; in an order that crosses, or with a deep notch, they fill less."""


@dataclass(frozen=True, slots=True)
class CornerLabels:
    """Oriented boxes: `c x1 y1 x2 y2 x3 y3 x4 y4`, the corners one after the other around the box.

    Any corner may be the first, in either direction. Four points that make no rectangle stand for
    the smallest one around them; it is fitted in pixels, where rectangles have right angles.
    """

    name: str = "corners-1"
    kinds: frozenset[str] = frozenset({"corners"})

    def expected(self, rules: LabelRules) -> str:
        """Say in words which columns a row has."""
        return (
            f"{COLUMNS} columns (class x1 y1 x2 y2 x3 y3 x4 y4, the four corners; neither a box's "
            "centre and size nor the outline of another number of points)"
        )

    def accepts(self, columns: int, rules: LabelRules) -> bool:
        """Whether a row may have so many columns."""
        return columns == COLUMNS

    def faults(self, rows: np.ndarray, rules: LabelRules) -> Iterator[Fault]:
        """Check the corners."""
        shares = rows[:, 1:]
        yield (
            np.any((shares < -FAR) | (shares > 1 + FAR), axis=1),
            f"expected corners from {-FAR:g} to {1 + FAR:g} (0 to 1 is the image), found {{row}}; "
            "divide pixels by the image's width and height",
        )
        corners = shares.reshape(-1, 4, 2)
        low, high = corners.min(1), corners.max(1)
        yield (
            np.any((high <= 0) | (low >= 1), axis=1),
            "expected a box that reaches into the image (0 to 1), found {row}",
        )
        first, second = np.triu_indices(4, 1)
        gaps = np.abs(corners[:, first] - corners[:, second]).max(2)
        yield gaps.min(1) <= FLAT, "expected four different corners, found one twice: {row}"
        boxes = corners_to_xywhr(corners)
        yield (
            boxes[:, 2:4].min(1) <= FLAT,
            "expected corners around an area, found all of them on one line: {row}",
        )
        yield (
            _areas(corners) < FILLED * boxes[:, 2] * boxes[:, 3],
            "expected the corners one after the other around a box, found an outline that crosses "
            "itself or is no box: {row}",
        )

    def decode(self, rows: np.ndarray, rules: LabelRules) -> Instances:
        """Return the boxes: corners, and upright boxes around them, in shares of the image."""
        corners = rows[:, 1:].reshape(-1, 4, 2)
        hulls = np.concatenate([corners.min(1), corners.max(1)], axis=1)
        return Instances.from_boxes(rows[:, 0], hulls, corners=corners, area=_areas(corners))


def _areas(corners: np.ndarray) -> np.ndarray:
    """Return the areas (n,) inside outlines of four corners (n, 4, 2)."""
    across, down = corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1]
    return np.asarray(np.abs(across[:, 0] * down[:, 1] - across[:, 1] * down[:, 0]) / 2)


def rotated_targets(options: Any, dataset: Any) -> Extras:
    """Return what makes the target "rotated": (B, n, 5) float32 boxes_xywhr in pixels."""
    return rotated_boxes


def rotated_boxes(samples: Sequence[Sample], size: tuple[int, int]) -> dict[str, Tensor]:
    """Fit rotated boxes to the corners of samples, padded with zeros."""
    corners = [np.asarray(labels_of(s, "corners", 4, 2), dtype=np.float64) for s in samples]
    return {"rotated": padded([corners_to_xywhr(c) for c in corners], 5)}
