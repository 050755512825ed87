# SPDX-License-Identifier: Apache-2.0
"""Fit an image over a canvas: resize it so that it covers the canvas, and cut out the centre.

Runs without torch, because exported models are used without it. The resize is Pillow's, which
averages over all pixels when it shrinks; H, W, C: height, width, channels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from yolo.data.letterbox import Placement


def cover(shape: tuple[int, int], size: tuple[int, int]) -> tuple[Placement, tuple[int, int]]:
    """Compute where `center_crop` puts an image, without touching pixels.

    Args:
        shape: (h, w) of the image.
        size: (h, w) of the canvas.

    Returns:
        The placement, whose padding is minus what is cut off, and the (h, w) of the resized image:
        one side is the canvas's, the other rounded down and at least the canvas's.
    """
    height, width = shape
    if size[0] * width >= size[1] * height:  # whole numbers: 32 * 70 / 50 can't miss by a bit
        inner = size[0], max(size[0] * width // height, size[1])
    else:
        inner = max(size[1] * height // width, size[0]), size[1]
    top, left = round((inner[0] - size[0]) / 2), round((inner[1] - size[1]) / 2)
    return Placement(inner[0] / height, inner[1] / width, -left, -top, shape), inner


def center_crop(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, Placement]:
    """Resize an image so that it just covers `size`, and cut out the centre.

    Args:
        image: (H, W, C) uint8 or uint16.
        size: (h, w) of the result.

    Returns:
        A new (h, w, C) image of the same type, and the placement of the image on it.
    """
    placement, inner = cover((image.shape[0], image.shape[1]), size)
    top, left = -placement.pad_top, -placement.pad_left
    resized = resize_smoothly(image, inner)
    return resized[top : top + size[0], left : left + size[1]].copy(), placement


def resize_smoothly(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize an image (H, W, C) to `shape` (h, w), bilinear, without aliasing when it shrinks."""
    if image.shape[:2] == tuple(shape):
        return image
    size = (shape[1], shape[0])
    if image.dtype == np.uint8 and image.shape[2] in (1, 3):
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        resized = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
        return resized.reshape(*shape, image.shape[2])
    planes = [Image.fromarray(plane) for plane in np.moveaxis(image.astype(np.float32), 2, 0)]
    done = [np.asarray(plane.resize(size, Image.Resampling.BILINEAR)) for plane in planes]
    return np.rint(np.stack(done, axis=-1)).astype(image.dtype)
