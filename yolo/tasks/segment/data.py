# SPDX-License-Identifier: Apache-2.0
"""Labels with outlines: rows of a label file, and the masks that a batch learns from.

n rows, P points of an outline, B images, m objects of the image with the most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from yolo.data.batch import Extras
from yolo.data.labels import Fault, LabelRules, outside, polygon_boxes
from yolo.data.masks import fill_polygons
from yolo.data.sample import Instances, Sample
from yolo.tasks.detect.data import labels_of

ROUNDING = 2e-6
"""Share of the image by which points written with six digits may miss a line."""

_BLOCK = 64  # edges compared with all others at once, which bounds the memory


@dataclass(frozen=True, slots=True)
class PolygonLabels:
    """Outlines: `c x1 y1 ... xn yn` with at least three points, filled by the even-odd rule.

    An object of several parts or with holes is one row, whose rings are joined over bridges that
    are walked there and back. An outline that crosses itself is reported, and kept: the rule fills
    it all the same.
    """

    name: str = "polygons-1"
    kinds: frozenset[str] = frozenset({"polygons"})

    def expected(self, rules: LabelRules) -> str:
        """Say in words which columns a row has."""
        return (
            "an outline of at least 3 points (class x1 y1 ... xn yn: an odd number of columns from "
            "7 on; 5 columns are a box or two points)"
        )

    def accepts(self, columns: int, rules: LabelRules) -> bool:
        """Whether a row may have so many columns."""
        return columns >= 7 and columns % 2 == 1

    def faults(self, rows: np.ndarray, rules: LabelRules) -> Iterator[Fault]:
        """Check coordinates, extents and crossings."""
        yield outside(rows[:, 1:])
        points = _points(rows)
        yield (
            _on_a_line(points),
            "expected an outline around an area, found points on one line: {row}",
        )
        yield (
            np.array([crosses_itself(ring) for ring in points], dtype=bool),
            "expected an outline that doesn't cross itself, found one that does (kept, and filled "
            "by the even-odd rule): {row}",
            "odd",
        )

    def decode(self, rows: np.ndarray, rules: LabelRules) -> Instances:
        """Return outlines with their boxes and areas, in shares of the image."""
        points = _points(rows)
        x, y = points[..., 0], points[..., 1]
        doubled = x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)
        return Instances.from_boxes(
            rows[:, 0],
            polygon_boxes(rows),
            area=abs(doubled.sum(1)) / 2,
            polygons=[[ring] for ring in points],
        )


def _points(rows: np.ndarray) -> np.ndarray:
    """Return the outlines (n, P, 2) of rows of one width, clipped to the image."""
    return rows[:, 1:].clip(0.0, 1.0).reshape(len(rows), -1, 2)


def _on_a_line(points: np.ndarray) -> np.ndarray:
    """Tell which outlines (n, P, 2) enclose nothing, as all their points lie on one line."""
    away = points - points[:, :1]
    far = np.take_along_axis(away, (away**2).sum(2).argmax(1)[:, None, None], 1)
    aside = abs(away[..., 0] * far[..., 1] - away[..., 1] * far[..., 0])
    return np.asarray(aside.max(1) <= 1e-12)


def crosses_itself(ring: np.ndarray) -> bool:
    """Tell whether two edges of an outline (P, 2), in shares of the image, truly cross.

    Edges that touch or run along each other don't, and bridges, edges that are walked there and
    back, don't count.
    """
    following = np.roll(ring, -1, 0)
    if not _any_cross(ring, following):
        return False
    ends = np.stack([ring, following], 1)
    turned = (ring[:, 0] > following[:, 0]) | (
        (ring[:, 0] == following[:, 0]) & (ring[:, 1] > following[:, 1])
    )
    ends[turned] = ends[turned, ::-1]
    edges, counts = np.unique(ends.reshape(-1, 4), axis=0, return_counts=True)
    single = edges[counts == 1]
    return _any_cross(single[:, :2], single[:, 2:])


def _any_cross(start: np.ndarray, end: np.ndarray) -> bool:
    """Tell whether any two of the edges from (n, 2) to (n, 2) points cross."""
    low, high = np.minimum(start, end), np.maximum(start, end)
    order = np.argsort(low[:, 0])
    start, end, low, high = start[order], end[order], low[order], high[order]
    # In this order, the edges that share an x with edge i are those from i + 1 to `reach`.
    reach = np.searchsorted(low[:, 0], high[:, 0])
    for first in range(0, len(start), _BLOCK):
        mine = np.arange(first, min(first + _BLOCK, len(start)))
        others = np.maximum(reach[mine] - mine - 1, 0)
        a = np.repeat(mine, others)
        b = a + 1 + np.arange(len(a)) - np.repeat(np.cumsum(others) - others, others)
        near = (low[a, 1] < high[b, 1]) & (low[b, 1] < high[a, 1])
        a, b = a[near], b[near]
        if (_apart(start, end, a, b) & _apart(start, end, b, a)).any():
            return True
    return False


def _apart(start: np.ndarray, end: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Tell which edges b have their ends clearly on different sides of the edges a."""
    along = end[a] - start[a]
    sides = [
        along[:, 0] * (ends[b] - start[a])[:, 1] - along[:, 1] * (ends[b] - start[a])[:, 0]
        for ends in (start, end)
    ]
    tolerance = ROUNDING * np.sqrt((along**2).sum(1))
    differ = (sides[0] > 0) != (sides[1] > 0)
    return np.asarray(differ & (np.abs(sides) > tolerance).all(0))


def mask_targets(options: Any, dataset: object) -> Extras:
    """Return what makes the masks of a batch, as `overlap_mask` and `mask_ratio` say."""
    return MaskTargets(options.overlap_mask, options.mask_ratio)


@dataclass(frozen=True, slots=True)
class MaskTargets:
    """Makes `masks` of a batch, at one pixel for `ratio` x `ratio` pixels of the images.

    A pixel belongs to the object that holds its middle. With `overlap` the masks are one map an
    image (B, h, w): 1 + the object's row in the targets, 0 for none; where objects overlap, the
    smaller lies on top. Else they are (B, m, h, w) of 0 and 1. uint8 as long as that can count the
    objects, else int16. Ignored regions are no objects and leave no trace.

    Attributes:
        overlap: one map an image.
        ratio: image pixels per pixel of a mask.
    """

    overlap: bool
    ratio: int

    def __call__(self, samples: Sequence[Sample], size: tuple[int, int]) -> dict[str, Tensor]:
        """Draw the masks of samples with images of `size` (h, w)."""
        shape = max(size[0] // self.ratio, 1), max(size[1] // self.ratio, 1)
        outlines = [labels_of(sample, "polygons") for sample in samples]
        most = max(map(len, outlines), default=0)
        layers = () if self.overlap else (most,)
        dtype = np.uint8 if most < 256 or layers else np.int16
        masks = np.zeros((len(samples), *layers, *shape), dtype)
        for canvas, polygons in zip(masks, outlines, strict=True):
            filled = list(enumerate(fill_polygons(polygons, shape, self.ratio)))
            if self.overlap:
                filled.sort(key=lambda item: -int(item[1][2].sum()))
            for row, (top, left, mask) in filled:
                target = canvas if self.overlap else canvas[row]
                window = target[top : top + mask.shape[0], left : left + mask.shape[1]]
                window[mask.view(bool)] = 1 + row if self.overlap else 1
        return {"masks": torch.from_numpy(masks)}


def resize_masks(masks: Tensor, shape: tuple[int, int], mode: str) -> Tensor:
    """Resize masks as `MaskTargets` makes them to (h, w), by one of torch's modes "nearest...".

    "nearest-exact" takes the pixel around the middle of the new one; "nearest", as the reference
    builds have it, the first of those that the new one covers.
    """
    if masks.shape[-2:] == shape:
        return masks
    if not masks.numel():
        return masks.new_zeros((*masks.shape[:-2], *shape))
    layers = masks if masks.ndim == 4 else masks[:, None]
    resized = F.interpolate(layers.float(), shape, mode=mode).to(masks.dtype)
    return resized if masks.ndim == 4 else resized[:, 0]
