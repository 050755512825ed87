# SPDX-License-Identifier: Apache-2.0
"""Masks of instances as label files: `labels/x.png` in the place of `labels/x.txt`.

A PNG of the image's size with one channel of 8 or 16 bits, or a palette, whose colours don't count.
0 is the background; the pixels of any other value are one object, of class value // 1000: those of
the class 2 are 2000 to 2999, and 8 bits do for objects of the class 0 alone. Parts and holes are
kept to the pixel. (Instance files of Cityscapes are encoded so.)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from yolo.data.geometry import polygon_bounds, smallest_rectangle
from yolo.data.labels import LabelledImage, LabelRules
from yolo.data.masks import fill_polygons, mask_rings
from yolo.data.report import Problem
from yolo.data.sample import Instances, Polygon

STEP = 1000
"""Values of a class."""


def read_mask_labels(
    file: str, image: LabelledImage, kinds: frozenset[str], rules: LabelRules
) -> list[Problem]:
    """Fill in the objects of an image from its mask file.

    Args:
        file: the PNG.
        image: its instances are set.
        kinds: of labels that are wanted.
        rules: classes of the dataset.
    """
    try:
        with Image.open(Path(file)) as picture:
            pixels = np.asarray(picture)
    except Exception as error:  # Pillow raises nearly anything on mangled bytes
        return [Problem(file, 0, f"the mask can't be read: {error}")]
    reason = ""
    if pixels.shape != image.shape or pixels.dtype.kind not in "iu":
        reason = (
            f"expected a mask of whole numbers, {image.shape[0]}x{image.shape[1]} pixels (h x w) "
            f"like the image, found {pixels.dtype} of shape {pixels.shape}"
        )
    elif "keypoints" in kinds:
        reason = "expected a text file with keypoints, found a mask, which has none"
    if reason:
        return [Problem(file, 0, reason)]
    values = np.unique(pixels).astype(np.int64)
    values = values[values != 0]
    known = rules.known(values // STEP)
    image.instances = from_outlines(
        values[known] // STEP, [mask_rings(pixels == v) for v in values[known]], image.shape, kinds
    )
    return [
        Problem(
            file,
            0,
            f"expected values below {rules.num_classes} * {STEP} (class * {STEP} + number), "
            f"found {value}",
        )
        for value in values[~known]
    ]


def from_outlines(
    classes: np.ndarray, polygons: list[Polygon], shape: tuple[int, int], kinds: frozenset[str]
) -> Instances:
    """Return objects with the kinds of label that their outlines, in pixels, can give."""
    return Instances.from_boxes(
        classes,
        polygon_bounds(polygons, np.zeros((len(polygons), 4))),
        area=filled_areas(polygons, shape),
        polygons=polygons if "polygons" in kinds else None,
        corners=surrounded(polygons) if "corners" in kinds else None,
    )


def surrounded(polygons: list[Polygon]) -> np.ndarray:
    """Return the corners (N, 4, 2) of the smallest rotated rectangles around outlines."""
    found = [smallest_rectangle(np.concatenate(rings)) for rings in polygons]
    return np.array(found).reshape(-1, 4, 2)


def filled_areas(polygons: list[Polygon], shape: tuple[int, int]) -> np.ndarray:
    """Return how many pixels (N,) of an image (h, w) outlines fill."""
    windows = [window for _, _, window in fill_polygons(polygons, shape)]
    return np.array([float(window.sum()) for window in windows])
