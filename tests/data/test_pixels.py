# SPDX-License-Identifier: Apache-2.0
"""Pixels: stored warps, colours and masks; tiles painted where their matrix says."""

from __future__ import annotations

import numpy as np
import pytest

from yolo.data.images import cv2
from yolo.data.pixels import (
    colour_tables,
    finish_colour,
    paint_bent,
    paint_straight,
    pixel_matrix,
    polygon_mask,
    shift_hsv,
    warp_pixels,
)
from yolo.data.recipe import Tile


def smooth(shape, channels=3, dtype=np.uint8):
    """An image whose level is linear in x and y, different in each channel."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    planes = [30 + (c + 1) * 0.5 * x + 0.7 * y for c in range(channels)]
    return np.stack(planes, axis=2).astype(dtype)


@pytest.mark.golden
@pytest.mark.parametrize("case", ["warp_affine", "warp_persp", "warp_zoom_out"])
def test_stored_warps(golden, case):
    data = golden("preprocess.npz")
    matrix = data[f"{case}/M"].astype(np.float64)
    size = tuple(data[f"{case}/size_wh"][::-1].tolist())
    out = warp_pixels(data[f"{case}/in_img"], matrix, size, fill=114)
    assert np.abs(out.astype(int) - data[f"{case}/img"]).max() <= 1


@pytest.mark.golden
def test_stored_colours(golden):
    data = golden("preprocess.npz")
    r, s, v = data["hsv/r_unit"] * data["hsv/gains"]
    image = data["hsv/img"].copy()
    finish_colour(image, (r, 1 + s, 1 + v))
    assert np.abs(image.astype(int) - data["hsv/out@v8.4"]).max() <= 1


@pytest.mark.golden
def test_stored_masks(golden):
    data = golden("preprocess.npz")
    for i in range(3):
        mask = polygon_mask([data[f"poly/in{i}"].astype(float)], tuple(data["poly/hw"]))
        stored = data["poly/mask_each_ratio1"][i] > 0
        # Stored outlines are painted half a pixel right and down, with a border.
        assert (mask.astype(bool) & ~stored).sum() == 0
        assert stored.sum() - mask.sum() < 2.5 * np.abs(np.diff(data[f"poly/in{i}"], axis=0)).sum()


def test_hue_is_a_circle():
    tables = colour_tables((0.5, 1.0, 1.0))[0]
    assert tables[[0, 45, 90, 179], 0].tolist() == [90, 135, 0, 89]
    np.testing.assert_array_equal(tables[:, 1], np.arange(256))


@pytest.mark.parametrize("hue", [0.0, 0.014, -0.014, 0.3, 0.6, -1.0, 1.0])
def test_arithmetic_gives_what_the_tables_say(hue):
    levels = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    levels[..., 0] = np.minimum(levels[..., 0], 179)
    for saturation, value in np.random.default_rng(0).uniform(0, 2, (50, 2)):
        gains = (hue, float(saturation), float(value))
        expected = cv2.LUT(levels, colour_tables(gains))
        found = levels.copy()
        shift_hsv(found, gains)
        np.testing.assert_array_equal(found[..., 0] % 180, expected[..., 0])
        differ = found[..., 1:] != expected[..., 1:]
        assert differ.mean() < 0.002  # what comes within a 4096th of the next level
        assert np.abs(found[..., 1:].astype(int) - expected[..., 1:]).max() <= 1


def test_colour_order_and_destinations():
    image = smooth((8, 9))
    target = np.empty((10, 12, 3), np.uint8)[1:9, 2:11]
    assert finish_colour(image.copy(), rgb=target) is target
    np.testing.assert_array_equal(target, image[..., ::-1])
    finish_colour(image.copy(), swap_channels=True, rgb=target)
    np.testing.assert_array_equal(target, image)
    np.testing.assert_array_equal(finish_colour(image.copy(), swap_channels=True), image[..., ::-1])
    shifted, same = np.empty_like(image), finish_colour(image.copy(), (0.1, 1.2, 0.9))
    finish_colour(image.copy(), (0.1, 1.2, 0.9), rgb=shifted)
    np.testing.assert_array_equal(shifted, same[..., ::-1])
    five = smooth((8, 9), 5, np.uint16)
    out = np.empty_like(five)
    finish_colour(five.copy(), (0.1, 1.2, 0.9), rgb=out)
    np.testing.assert_array_equal(out, five)


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.uint8), (6, np.uint16)])
@pytest.mark.parametrize("gain", [(1, 1), (-1, 1), (1, -1), (-1, -1), (0.5, 2), (-2, -0.5)])
def test_straight_tiles(channels, dtype, gain):
    image = smooth((40, 60), channels, dtype)
    image.setflags(write=False)
    wide, tall = int(40 * abs(gain[0])), int(20 * abs(gain[1]))
    x = 5 - 10 * gain[0] if gain[0] > 0 else 5 - 50 * gain[0]
    y = 3 - 8 * gain[1] if gain[1] > 0 else 3 - 28 * gain[1]
    matrix = np.array([[gain[0], 0, x], [0, gain[1], y], [0, 0, 1.0]])
    tile = Tile(0, matrix, (0, 0, 60, 40), (10, 8, 50, 28), (5, 3, 5 + wide, 3 + tall), True)
    canvas = np.full((60, 100, channels), 7, dtype)
    paint_straight(tile, image, canvas)
    exact = warp_pixels(image, pixel_matrix(matrix), (60, 100))
    inner = (slice(3 + 2, 3 + tall - 2), slice(5 + 2, 5 + wide - 2))
    assert np.abs(canvas[inner].astype(int) - exact[inner]).max() <= 2
    canvas[3 : 3 + tall, 5 : 5 + wide] = 7
    assert (canvas == 7).all()


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.uint8), (6, np.uint16)])
@pytest.mark.parametrize("tilt", [0.0, 1e-3])
def test_bent_tiles_stay_inside_their_outline(channels, dtype, tilt):
    image = smooth((40, 60), channels, dtype)
    image.setflags(write=False)
    matrix = np.array([[0.8, 0.3, 10], [-0.3, 0.8, 20], [tilt, tilt, 1]])
    tile = Tile(0, matrix, (0, 0, 60, 40), (0, 0, 60, 40), (0, 0, 80, 70), False)
    canvas = np.full((70, 80, channels), 7, dtype)
    paint_bent(tile, image, canvas)
    inverse = np.linalg.inv(matrix)
    y, x = np.mgrid[:70, :80] + 0.5
    source = np.stack([x, y, np.ones_like(x)], axis=-1) @ inverse.T
    sx, sy = source[..., 0] / source[..., 2], source[..., 1] / source[..., 2]
    well_in = (sx > 2) & (sy > 2) & (sx < 58) & (sy < 38)
    well_out = (sx < -2) | (sy < -2) | (sx > 62) | (sy > 42)
    expected = 30 + 0.5 * sx + 0.7 * sy
    assert well_in.sum() > 500
    assert np.abs(canvas[..., 0].astype(float) - expected)[well_in].max() < 1.6
    assert (canvas[well_out] == 7).all()


def test_even_odd_rings():
    outer = np.array([[2.0, 2], [18, 2], [18, 18], [2, 18]])
    inner = np.array([[6.0, 6], [14, 6], [14, 14], [6, 14]])
    mask = polygon_mask([outer, inner], (20, 20))
    assert mask[10, 10] == 0
    assert mask[4, 4] == 1
    assert mask[0, 0] == 0
    assert polygon_mask([], (20, 20)).sum() == 0
