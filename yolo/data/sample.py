# SPDX-License-Identifier: Apache-2.0
"""The one typed sample that labels, transforms and collation pass along.

Shape letters: N instances, K keypoints, D 2 or 3, H W C image. Coordinates are pixels of `image`,
x to the right and y down, the corner of the first pixel at (0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

Polygon = list[np.ndarray]
"""Rings of one instance, each (P, 2) float: parts and holes, filled by the even-odd rule."""


@dataclass(slots=True)
class Instances:
    """The labelled objects of one image; every field has one entry an object.

    Attributes:
        classes: (N,) int64 class ids.
        boxes: (N, 4) float64 boxes_xyxy in pixels.
        ignore: (N,) bool; a crowd region: neither an object to find nor background.
        area: (N,) float64 object area in pixels of the original image (COCO's `area`).
        polygons: N lists of rings, or None when the labels carry no outlines.
        keypoints: (N, K, 3) float64 x, y, visibility (0 absent, 1 hidden, 2 visible), or None.
        corners: (N, 4, 2) float64 corners of oriented boxes, or None.
    """

    classes: np.ndarray
    boxes: np.ndarray
    ignore: np.ndarray
    area: np.ndarray
    polygons: list[Polygon] | None = None
    keypoints: np.ndarray | None = None
    corners: np.ndarray | None = None

    @classmethod
    def from_boxes(cls, classes: Any, boxes: Any, **kinds: Any) -> Instances:
        """Build instances from class ids and boxes_xyxy; area defaults to the boxes' area."""
        ids = np.asarray(classes, dtype=np.int64).reshape(-1)
        xyxy = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        area = (xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1])
        kinds.setdefault("ignore", np.zeros(len(ids), dtype=bool))
        kinds.setdefault("area", area)
        return cls(ids, xyxy, **kinds)

    @classmethod
    def empty(cls) -> Instances:
        """Return no instances, without optional label kinds."""
        return cls.from_boxes([], [])

    def __len__(self) -> int:
        return len(self.classes)

    def with_boxes(self, boxes: np.ndarray) -> Instances:
        """Return these instances with other boxes (N, 4)."""
        # As `dataclasses.replace`, which takes five times as long; augmentation calls it a lot.
        return Instances(
            self.classes, boxes, self.ignore, self.area, self.polygons, self.keypoints, self.corners
        )

    def select(self, which: np.ndarray) -> Instances:
        """Return the instances at `which` (indices or a boolean mask), in that order."""
        rows = np.flatnonzero(which) if which.dtype == bool else which
        kept: dict[str, Any] = {}
        for name in FIELDS:
            value = getattr(self, name)
            if isinstance(value, list):
                kept[name] = [value[i] for i in rows]
            else:
                kept[name] = None if value is None else value[rows]
        return Instances(**kept)

    @staticmethod
    def concatenate(parts: list[Instances]) -> Instances:
        """Join instances; a label kind survives only where every non-empty part carries it."""
        parts = [p for p in parts if len(p)] or parts[:1]
        joined: dict[str, Any] = {}
        for name in FIELDS if parts else ():
            values = [getattr(p, name) for p in parts]
            if any(v is None for v in values):
                joined[name] = None
            elif isinstance(values[0], list):
                joined[name] = [v for value in values for v in value]
            else:
                joined[name] = np.concatenate(values)
        return Instances(**joined) if joined else Instances.empty()


FIELDS = tuple(item.name for item in fields(Instances))


@dataclass(slots=True)
class Sample:
    """One image with its labels.

    Attributes:
        image: (H, W, C) uint8 or uint16; three channels are BGR, others as stored.
        instances: the objects in `image`.
        image_class: the class of the whole image, or None.
        path: where the image came from (a file, or a made-up name).
        index: position in the dataset, -1 when there is none.
        original_shape: (h, w) of the image file before any resizing.
        matrix: (3, 3) float64 map from pixels of the original image to pixels of `image`
            (meaningless after a mosaic).
        rng: the sample's own counter-based generator; a user's transform draws from it.
    """

    image: np.ndarray
    instances: Instances = field(default_factory=Instances.empty)
    image_class: int | None = None
    path: str = ""
    index: int = -1
    original_shape: tuple[int, int] = (0, 0)
    matrix: np.ndarray = field(default_factory=lambda: np.eye(3))
    rng: np.random.Generator | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of `image`."""
        return self.image.shape[0], self.image.shape[1]
