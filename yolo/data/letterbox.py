# SPDX-License-Identifier: Apache-2.0
"""Fit an image into a canvas without changing its aspect, and map coordinates back.

Runs with NumPy and OpenCV alone, because exported models are used without torch. Sizes are (h, w);
coordinates are pixels with the corner of the first pixel at (0, 0), so a resize from `w0` to `w`
columns multiplies x by exactly `w / w0`.

Choice between the reference builds: the gain of each axis is what the rounded resize really did
(as the 8.4 build), not one common ratio (8.2), which is up to half a pixel off on the rounded side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from yolo.data.images import cv2

FILL = 114
"""Grey level of padding, of 255; the value the published weights were trained with."""

Array = TypeVar("Array", bound=Any)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an image lies on a canvas.

    Attributes:
        gain_y: canvas pixels per image pixel, downwards.
        gain_x: the same, rightwards.
        pad_left: columns of padding to the left of the image.
        pad_top: rows of padding above the image.
        original: (h, w) of the image before it was placed.
    """

    gain_y: float
    gain_x: float
    pad_left: int
    pad_top: int
    original: tuple[int, int]

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3) float64 map from image pixels to canvas pixels."""
        return np.array(
            [[self.gain_x, 0.0, self.pad_left], [0.0, self.gain_y, self.pad_top], [0.0, 0.0, 1.0]]
        )

    def after(self, shape: tuple[int, int]) -> Placement:
        """Return the placement of an image that had `shape` (h, w) before an earlier resize."""
        gain_y = self.gain_y * self.original[0] / shape[0]
        gain_x = self.gain_x * self.original[1] / shape[1]
        return Placement(gain_y, gain_x, self.pad_left, self.pad_top, shape)

    def to_original(self, boxes_xyxy: Array, clip: bool = True) -> Array:
        """Map boxes from the canvas back to the image.

        Args:
            boxes_xyxy: (..., 4) floats, canvas pixels, a NumPy array or a torch tensor.
            clip: limit the result to the image.

        Returns:
            A new array of the same kind, image pixels.
        """
        return self._mapped(boxes_xyxy, (0, 2), clip)

    def points_to_original(self, points: Array, clip: bool = True) -> Array:
        """Map points (..., 2 or more; x and y first) from the canvas back to the image."""
        return self._mapped(points, (0,), clip)

    def _mapped(self, values: Any, starts: tuple[int, ...], clip: bool) -> Any:
        """Return a copy, as floats, with the points (x, y) at some columns mapped back."""
        if hasattr(values, "clone"):
            moved = values.clone() if values.is_floating_point() else values.float()
        else:
            moved = np.array(values, dtype=None if np.asarray(values).dtype.kind == "f" else float)
        axes = ((self.pad_left, self.gain_x), (self.pad_top, self.gain_y))
        for start in starts:
            for axis, (pad, gain) in enumerate(axes):
                column = (moved[..., start + axis] - pad) / gain
                limit = self.original[1 - axis]
                moved[..., start + axis] = column.clip(0, limit) if clip else column
        return moved


def fill_value(dtype: np.dtype[Any], fill: int = FILL) -> int:
    """Return the padding level in the range of `dtype`: 114 of 255, 29298 of 65535."""
    return fill * 257 if dtype == np.uint16 else fill


def place(
    shape: tuple[int, int],
    size: tuple[int, int],
    *,
    center: bool = True,
    scaleup: bool = True,
    stretch: bool = False,
) -> tuple[Placement, tuple[int, int]]:
    """Compute where `letterbox` puts an image, without touching pixels.

    Args:
        shape: (h, w) of the image.
        size: (h, w) of the canvas.
        center: split the padding between both sides; else all of it goes right and below.
        scaleup: enlarge small images; else they keep their size.
        stretch: fill the canvas, giving up the aspect.

    Returns:
        The placement, and the (h, w) that the image is resized to.
    """
    height, width = shape
    gain = min(size[0] / height, size[1] / width, *(() if scaleup else (1.0,)))
    # A 1 x 3000 image still has one row at 640 columns.
    inner = size if stretch else (max(round(height * gain), 1), max(round(width * gain), 1))
    # Half pixels go right and below.
    pad_top, pad_left = (round((size[i] - inner[i]) / 2 - 0.1) if center else 0 for i in (0, 1))
    placement = Placement(inner[0] / height, inner[1] / width, pad_left, pad_top, (height, width))
    return placement, inner


def letterbox(
    image: np.ndarray, size: tuple[int, int], *, fill: int = FILL, **how: bool
) -> tuple[np.ndarray, Placement]:
    """Resize an image so that it fits `size`, and pad the rest.

    Args:
        image: (H, W, C) uint8 or uint16.
        size: (h, w) of the canvas.
        fill: padding level of 255; scaled to the range of 16-bit images.
        **how: further options of `place`.

    Returns:
        A new (h, w, C) image and the placement on it.
    """
    placement, inner = place((image.shape[0], image.shape[1]), size, **how)
    channels = image.shape[2]
    level = fill_value(image.dtype, fill)
    canvas = np.full((size[0], size[1], channels), level, dtype=image.dtype)
    top, left = placement.pad_top, placement.pad_left
    canvas[top : top + inner[0], left : left + inner[1]] = resize(image, inner)
    return canvas, placement


def resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize an image (H, W, C) to `shape` (h, w), bilinear; the same object when it has it."""
    if (image.shape[0], image.shape[1]) == tuple(shape):
        return image
    done = cv2.resize(image, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    return done.reshape(shape[0], shape[1], image.shape[2])


def fit_shape(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the (h, w) that a loaded image of `shape` gets so that it touches `size` (h, w).

    The touching side is exact, the other one is rounded up and never exceeds `size`. In whole
    numbers, so that 300 * (640 / 480) is 400 and not 401.
    """
    height, width = shape
    if size[0] * width <= size[1] * height:
        return size[0], min(-(-width * size[0] // height), size[1])
    return min(-(-height * size[1] // width), size[0]), size[1]


def rect_shape(
    height: int, width: int, size: tuple[int, int], stride: int, *, scaleup: bool = True
) -> tuple[int, int]:
    """Return the smallest canvas of whole strides that holds an image fitted into `size`.

    A function of this image alone: what a model says about an image never depends on the others
    in its batch.

    Args:
        height: rows of the image.
        width: columns of the image.
        size: (h, w) that the image is fitted into.
        stride: largest stride of the model, pixels.
        scaleup: see `place`.
    """
    _, inner = place((height, width), size, scaleup=scaleup)
    return -(-inner[0] // stride) * stride, -(-inner[1] // stride) * stride
