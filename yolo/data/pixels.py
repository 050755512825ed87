# SPDX-License-Identifier: Apache-2.0
"""Pixels of a sample: paint tiles, warp, fill outlines, shift colours.

Coordinates put the corner of the first pixel at (0, 0), where OpenCV's warps put its middle; every
warp here allows for that half pixel, so labels and pixels agree.

Colour follows the 8.4 reference: hue is a circle, so the drawn share of it is added (8.2 multiplies
the hue, which leaves red as it is and moves violet most).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from yolo.data.images import cv2
from yolo.data.letterbox import resize
from yolo.data.recipe import Tile
from yolo.data.sample import Polygon

HUE_STEPS = 180
HUE_ROOM = 256 - HUE_STEPS  # steps that a hue of 8 bits may go beyond the circle
ROUND_DOWN = -0.5 + 2**-12  # what OpenCV, which rounds to the nearest, has to be told to round down
MAX_WARP_CHANNELS = 4
SUBPIXEL_BITS = 4


def paint_straight(tile: Tile, image: np.ndarray, canvas: np.ndarray) -> None:
    """Paint a tile that is only scaled, shifted and flipped."""
    x0, y0, x1, y1 = tile.crop
    left, top, right, bottom = tile.region
    crop, target = image[y0:y1, x0:x1], canvas[top:bottom, left:right]
    flip_x, flip_y = tile.matrix[0, 0] < 0, tile.matrix[1, 1] < 0
    if canvas.shape[2] > MAX_WARP_CHANNELS:  # OpenCV takes windows of no more
        crop = np.ascontiguousarray(crop)
    painted = resize(crop, (bottom - top, right - left))
    if flip_x or flip_y:
        painted = cv2.flip(painted, -1 if flip_x and flip_y else int(flip_x))
    target[...] = painted.reshape(target.shape)


def paint_bent(tile: Tile, image: np.ndarray, canvas: np.ndarray) -> None:
    """Paint a tile that is rotated, sheared or tilted, inside its own outline only."""
    left, top, right, bottom = tile.region
    x0, y0, x1, y1 = tile.crop
    to_corner = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1.0]])
    from_crop = np.array([[1, 0, x0], [0, 1, y0], [0, 0, 1.0]])
    matrix = to_corner @ tile.matrix @ from_crop
    size, w, h = (bottom - top, right - left), x1 - x0, y1 - y0
    warped = warp_pixels(image[y0:y1, x0:x1], pixel_matrix(matrix), size)
    points = np.array([[0, 0, 1], [w, 0, 1], [w, h, 1], [0, h, 1.0]]) @ matrix.T
    mask = polygon_mask([points[:, :2] / points[:, 2:]], size)
    target = canvas[top:bottom, left:right]
    if canvas.shape[2] <= MAX_WARP_CHANNELS and canvas.shape[2] != 1:
        cv2.copyTo(warped, mask, target)
    else:
        np.copyto(target, warped, where=mask[..., None].astype(bool))


def pixel_matrix(matrix: np.ndarray) -> np.ndarray:
    """Turn a map of coordinates (corner of the first pixel at 0) into one of pixel numbers."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    return np.asarray((2 * np.eye(3) - half) @ matrix @ half)


def warp_pixels(
    image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: int | None = None
) -> np.ndarray:
    """Warp an image by a matrix between pixel numbers, bilinear.

    Args:
        image: (H, W, C).
        matrix: (3, 3) map from pixel numbers of `image` to those of the result.
        size: (h, w) of the result.
        fill: level outside the image; None repeats the image's border.
    """
    border: dict[str, Any] = {"borderMode": cv2.BORDER_REPLICATE}
    if fill is not None:
        border = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": (fill,) * 4}
    flat = not matrix[2, :2].any()
    parts = []
    for start in range(0, image.shape[2], MAX_WARP_CHANNELS):
        part = image[..., start : start + MAX_WARP_CHANNELS]
        if image.shape[2] > MAX_WARP_CHANNELS:
            part = np.ascontiguousarray(part)
        if flat:
            done = cv2.warpAffine(part, matrix[:2] / matrix[2, 2], size[::-1], **border)
        else:
            done = cv2.warpPerspective(part, matrix, size[::-1], **border)
        parts.append(done.reshape(*size, -1))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def polygon_mask(polygon: Polygon, size: tuple[int, int]) -> np.ndarray:
    """Fill the rings of one instance by the even-odd rule: (h, w) uint8, 0 or 1."""
    mask = np.zeros(size, dtype=np.uint8)
    scale = 1 << SUBPIXEL_BITS
    rings = [np.round((ring - 0.5) * scale).astype(np.int32) for ring in polygon]
    if rings:
        cv2.fillPoly(mask, rings, 1, cv2.LINE_8, SUBPIXEL_BITS)
    return mask


def colour_tables(gains: tuple[float, float, float]) -> np.ndarray:
    """Return the (1, 256, 3) uint8 look-up table of a colour shift in OpenCV's HSV.

    Args:
        gains: share of the hue circle to add, factor of the saturation, factor of the value.
    """
    levels = np.arange(256.0)
    hue = (levels + gains[0] * HUE_STEPS) % HUE_STEPS
    others = (np.minimum(levels * gain, 255.0) for gain in gains[1:])
    return np.stack([hue, *others], axis=1)[None].astype(np.uint8)


def shift_hsv(image: np.ndarray, gains: tuple[float, float, float]) -> None:
    """Do what `colour_tables` says to an image (H, W, 3) in OpenCV's HSV, in place.

    Arithmetic takes a fifth of a table's time, but knows no circle: hues that would go below 0 or
    beyond 8 bits (what lies between is a hue again for OpenCV) are looked up.
    """
    steps, hue = math.floor(gains[0] * HUE_STEPS), None
    if not 0 <= steps < HUE_ROOM:
        table = np.ascontiguousarray(colour_tables(gains)[..., 0])
        steps, hue = 0, cv2.LUT(cv2.extractChannel(image, 0), table)
    beside = np.array([[steps], [ROUND_DOWN], [ROUND_DOWN]])
    cv2.transform(image, np.hstack([np.diag([1.0, *gains[1:]]), beside]), dst=image)
    if hue is not None:
        cv2.insertChannel(hue, image, 0)


def finish_colour(
    image: np.ndarray,
    hsv: tuple[float, float, float] | None = None,
    swap_channels: bool = False,
    rgb: np.ndarray | None = None,
) -> np.ndarray:
    """Shift the colours, and store the result as BGR in place or as RGB in `rgb`.

    Only 8-bit images of three channels have colours to shift or to reorder; others are copied.

    Args:
        image: (H, W, C); overwritten.
        hsv: see `colour_tables`.
        swap_channels: store the colours in the other order than asked for.
        rgb: (H, W, C) destination; None means `image` itself, as BGR.

    Returns:
        The array that holds the result.
    """
    target = image if rgb is None else rgb
    if image.shape[2] != 3 or image.dtype != np.uint8:
        if rgb is not None:
            rgb[...] = image
        return target
    reverse = (rgb is not None) != swap_channels
    if hsv is not None:
        cv2.cvtColor(image, cv2.COLOR_BGR2HSV, dst=image)
        shift_hsv(image, hsv)
        cv2.cvtColor(image, cv2.COLOR_HSV2RGB if reverse else cv2.COLOR_HSV2BGR, dst=target)
    elif reverse:
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=target)
    elif rgb is not None:
        rgb[...] = image
    return target
