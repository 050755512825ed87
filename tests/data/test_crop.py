# SPDX-License-Identifier: Apache-2.0
"""The centre crop: golden pixels, placement, and images of other depths."""

from __future__ import annotations

import numpy as np
import pytest

from yolo.data.crop import center_crop, cover


@pytest.mark.golden
def test_golden_pixels(golden):
    arrays = golden("preprocess.npz")
    crop, _ = center_crop(arrays["classify/img_rgb"], (32, 32))
    found = crop.transpose(2, 0, 1) / 255
    np.testing.assert_allclose(found, arrays["classify/tensor_32"], atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "size", "inner"),
    [
        ((50, 70), (32, 32), (32, 44)),
        ((70, 50), (32, 32), (44, 32)),
        ((10, 10), (32, 64), (64, 64)),
        ((10, 40), (32, 64), (32, 128)),
        ((32, 32), (32, 32), (32, 32)),
        ((1, 500), (8, 8), (8, 4000)),
        ((333, 500), (224, 224), (224, 336)),
    ],
)
def test_the_image_covers_the_canvas(shape, size, inner):
    placement, found = cover(shape, size)
    assert found == inner
    assert placement.original == shape
    corners = np.array([[0, 0], [shape[1], shape[0]]])
    (left, top), (right, bottom) = corners * [placement.gain_x, placement.gain_y] + [
        placement.pad_left,
        placement.pad_top,
    ]
    assert left <= 0 <= size[1] <= right
    assert top <= 0 <= size[0] <= bottom
    assert abs(left + right - size[1]) <= 1  # the same is cut off on both sides
    assert abs(top + bottom - size[0]) <= 1


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.uint8), (5, np.uint16)])
def test_depth_and_channels_are_kept(channels, dtype):
    image = np.random.default_rng(0).integers(0, 250, (40, 60, channels)).astype(dtype)
    crop, _ = center_crop(image, (20, 24))
    assert crop.shape == (20, 24, channels)
    assert crop.dtype == dtype
    assert crop.flags.c_contiguous
    alone, _ = center_crop(image[..., :1].astype(np.uint8), (20, 24))
    np.testing.assert_allclose(crop[..., 0].astype(int), alone[..., 0], atol=1)


def test_a_flat_image_stays_flat():
    image = np.full((37, 91, 4), 40_000, np.uint16)
    assert (center_crop(image, (32, 32))[0] == 40_000).all()
