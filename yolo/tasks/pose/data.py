# SPDX-License-Identifier: Apache-2.0
"""Labels with keypoints: rows of a label file, targets of a batch, and the spreads of keypoints.

n rows, B images, K keypoints, D numbers a keypoint in a label row (always 3 from there on).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from yolo.data.datasets import DatasetSpec
from yolo.data.labels import HIGHEST, LOWEST, Fault, LabelRules, box_faults, corner_boxes
from yolo.data.sample import Instances, Sample
from yolo.engine.overlaps import COCO_SIGMAS
from yolo.tasks.detect.data import labels_of, padded

BODY_SHARE = 0.53
"""Object area as a share of the box's, where labels have no areas of their own. COCO's similarity
is relative to the area of the person's outline, which fills about half of the box; the reference
builds validate with this share."""


@dataclass(frozen=True, slots=True)
class KeypointLabels:
    """Boxes with keypoints: `c cx cy w h` and `x y v` (D = 3) or `x y` (D = 2) for each keypoint.

    v is 0 for an absent keypoint, whose coordinates don't count, 1 for a hidden and 2 for a visible
    one; a fraction, as `save_txt` writes a predicted visibility, is 2 from one half on, else 0.
    With D = 2 a keypoint with a negative coordinate is absent and any other visible.

    Attributes:
        area_share: an object's area as a share of its box's, where labels don't say.
    """

    name: str = "keypoints-1"
    kinds: frozenset[str] = frozenset({"keypoints"})
    area_share: float = BODY_SHARE

    def expected(self, rules: LabelRules) -> str:
        """Say in words which columns a row has."""
        if rules.kpt_shape is None:
            return "the key kpt_shape in the dataset's YAML, which rows with keypoints need"
        count, numbers = rules.kpt_shape
        each = "x y v" if numbers == 3 else "x y"
        return (
            f"{5 + count * numbers} columns (class cx cy w h, then {each} for each of {count} "
            "keypoints)"
        )

    def accepts(self, columns: int, rules: LabelRules) -> bool:
        """Whether a row may have so many columns."""
        return (
            rules.kpt_shape is not None and columns == 5 + rules.kpt_shape[0] * rules.kpt_shape[1]
        )

    def faults(self, rows: np.ndarray, rules: LabelRules) -> Iterator[Fault]:
        """Check boxes, visibilities, and the coordinates of keypoints that are there."""
        yield from box_faults(rows[:, 1:5])
        points = _split(rows, rules)
        flags = points[..., 2:]
        yield from _first_bad(
            np.any((flags < 0) | (flags > 2), axis=-1),
            lambda row, k: (
                f"expected the visibility of keypoint {k} as 0 (absent), 1 (hidden) or 2 "
                f"(visible), found {flags[row, k, 0]:g}"
            ),
        )
        outside = ((points[..., :2] < LOWEST) | (points[..., :2] > HIGHEST)).any(-1)
        yield from _first_bad(
            np.logical_and(outside, _visibility(points) > 0),
            lambda row, k: (
                f"expected keypoint {k} within 0 to 1 ({LOWEST} to {HIGHEST} is tolerated), found "
                f"{points[row, k, 0]:g} {points[row, k, 1]:g}; divide pixels by the image's width "
                "and height"
            ),
        )

    def decode(self, rows: np.ndarray, rules: LabelRules) -> Instances:
        """Return boxes and (n, K, 3) keypoints in shares of the image; absent ones are zeros."""
        points = _split(rows, rules)
        visibility = _visibility(points)[..., None]
        places = points[..., :2].clip(0.0, 1.0) * (visibility > 0)
        keypoints = np.concatenate([places, visibility], axis=2)
        found = Instances.from_boxes(rows[:, 0], corner_boxes(rows[:, 1:5]), keypoints=keypoints)
        found.area *= self.area_share
        return found


def _split(rows: np.ndarray, rules: LabelRules) -> np.ndarray:
    """Return the keypoints of rows as (n, K, D)."""
    assert rules.kpt_shape is not None  # no row is accepted without
    return rows[:, 5:].reshape(len(rows), *rules.kpt_shape)


def _visibility(points: np.ndarray) -> np.ndarray:
    """Return 0, 1 or 2 for each of (n, K, D) keypoints."""
    if points.shape[2] == 2:
        return np.where((points < 0).any(-1), 0.0, 2.0)
    flags = points[..., 2]
    return np.where(flags == np.floor(flags), flags, np.where(flags < 0.5, 0.0, 2.0))


def _first_bad(bad: np.ndarray, say: Callable[[int, int], str]) -> Iterator[Fault]:
    """Report the first bad keypoint of each row; `bad` is (n, K), `say` gets row and keypoint."""
    for row in np.flatnonzero(bad.any(1)).tolist():
        yield np.arange(len(bad)) == row, say(row, int(bad[row].argmax()))


@dataclass(frozen=True, slots=True)
class KeypointTargets:
    """Makes `keypoints` (B, n, K, 3) float32 of a batch: x, y in pixels, visibility; 0 for padding.

    Attributes:
        count: K.
    """

    count: int

    def __call__(self, samples: Sequence[Sample], size: tuple[int, int]) -> dict[str, Tensor]:
        """Pad the keypoints of samples to one length; crowd regions are left out."""
        shape = (self.count, 3)
        found = [labels_of(sample, "keypoints", *shape) for sample in samples]
        return {"keypoints": padded(found, *shape)}


def keypoint_targets(options: Any, data: DatasetSpec) -> KeypointTargets:
    """Return what makes the keypoint targets for a dataset."""
    return KeypointTargets(data.keypoint_shape()[0])


def oks_sigmas(count: int, numbers: int, given: Sequence[float] | None = None) -> np.ndarray:
    """Return the spread (K,) of each keypoint, which loss and metric share.

    Args:
        count: K.
        numbers: D.
        given: a dataset's own `kpt_oks_sigmas`; without them COCO's for its 17 body points (with
            visibility), else 1 / K for each.
    """
    if given is not None:
        return np.asarray(given, dtype=np.float64)
    if (count, numbers) == (17, 3):
        return COCO_SIGMAS
    return np.full(count, 1 / count)
