# SPDX-License-Identifier: Apache-2.0
"""A batch of images with their marks as one picture. H W C of an image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from yolo.data.images import cv2
from yolo.engine.draw import PAPER, Marks, draw_marks, viewable
from yolo.engine.records import write_image
from yolo.engine.text import Lettering


def draw_batch(
    images: Sequence[np.ndarray],
    labels: Sequence[Marks],
    names: Mapping[int, str],
    captions: Sequence[str] | None = None,
    *,
    limit: int = 16,
    max_side: int = 1920,
) -> np.ndarray:
    """Draw up to `limit` images with their marks as a tidy grid.

    Args:
        images: (H, W, C) images, BGR for three channels; sizes may differ.
        labels: what to draw on each, in pixels of that image.
        names: class id -> name.
        captions: a line for each image, its file name say.
        limit: most images shown.
        max_side: the grid's longest side, pixels.

    Returns:
        (H, W, 3) uint8 BGR picture.
    """
    count = min(len(images), limit)
    if not count:
        return np.full((64, 64, 3), PAPER, np.uint8)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    tallest = max(image.shape[0] for image in images[:count])
    widest = max(image.shape[1] for image in images[:count])
    gap = 4
    letters = Lettering(9)
    strip = letters.size("Ag")[1] + 3 if captions else 0
    gain = min(
        (max_side - gap * (columns + 1)) / (columns * widest),
        (max_side - (gap + strip) * (rows + 1)) / (rows * tallest),
        max(1.0, 320 / max(tallest, widest)),  # tiny images are enlarged to read their labels
    )
    cell_h, cell_w = max(round(tallest * gain), 1), max(round(widest * gain), 1)
    size = (rows * (cell_h + strip + gap) + gap, columns * (cell_w + gap) + gap, 3)
    sheet = np.full(size, PAPER, np.uint8)
    for i in range(count):
        cell = _draw_cell(images[i], labels[i], names, gain, (cell_h, cell_w))
        top = gap + (i // columns) * (cell_h + strip + gap)
        left = gap + (i % columns) * (cell_w + gap)
        top += (cell_h - cell.shape[0]) // 2
        left += (cell_w - cell.shape[1]) // 2
        sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
        if captions:
            # Under the picture, so that it hides nothing.
            text = letters.fit(captions[i], cell.shape[1])
            letters.write(sheet, text, left, top + cell.shape[0] + 3, (235, 235, 235))
    return sheet


def _draw_cell(
    image: np.ndarray,
    marks: Marks,
    names: Mapping[int, str],
    gain: float,
    limit: tuple[int, int],
) -> np.ndarray:
    height = min(max(round(image.shape[0] * gain), 1), limit[0])
    width = min(max(round(image.shape[1] * gain), 1), limit[1])
    how = cv2.INTER_AREA if gain < 1 else cv2.INTER_LINEAR
    cell = cv2.resize(viewable(image), (width, height), interpolation=how)
    return draw_marks(cell, marks.scaled(gain, (height, width)), names)


def save_batch(
    file: Path,
    images: np.ndarray,
    labels: Sequence[Marks],
    names: Mapping[int, str],
    paths: Sequence[str],
) -> None:
    """Write a loader's batch as a picture.

    Args:
        file: JPEG to write.
        images: (B, H, W, C) as in `Batch.images`, RGB for three channels.
        labels: what to draw on each.
        names: class id -> name.
        paths: files the images came from, for the captions.
    """
    if images.shape[-1] == 3:
        images = images[..., ::-1]
    write_image(file, draw_batch(list(images), labels, names, [Path(p).name for p in paths]))
