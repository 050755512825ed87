# SPDX-License-Identifier: Apache-2.0
"""Arrays, PIL pictures and tensors as images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from yolo.data.arrays import check_image, check_tensor, fit_channels, from_pil
from yolo.errors import DataError

RNG = np.random.default_rng(0)


def pixels(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1), (6, 8, 3), (6, 8, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_three_channel_models_take_grey_alpha_and_16_bits(shape, dtype):
    image = pixels(*shape, dtype=dtype)
    out = fit_channels(check_image(image), 3)
    assert out.shape == (6, 8, 3)
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    first = image.reshape(6, 8, -1)[..., 0]
    expected = np.rint(first / 257) if dtype == np.uint16 else first
    np.testing.assert_allclose(out[..., 0], expected, atol=1)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_other_models_keep_channels_and_range(channels):
    image = pixels(6, 8, channels, dtype=np.uint16)
    assert np.array_equal(fit_channels(check_image(image), channels), image)
    with pytest.raises(DataError, match="expected an image with 7"):
        fit_channels(image, 7)


def test_grey_models_take_colour():
    assert fit_channels(pixels(6, 8, 3), 1).shape == (6, 8, 1)
    assert fit_channels(pixels(6, 8, 4, dtype=np.uint16), 1).dtype == np.uint16
    assert fit_channels(pixels(6, 8, 1), 1).shape == (6, 8, 1)


def test_a_copy_is_made():
    image = pixels(6, 8, 3)
    before = image.copy()
    given = check_image(image)
    image[:] = 0
    assert np.array_equal(given, before)
    view = pixels(12, 8, 3)[::-2]
    assert check_image(view, copy=False).flags.c_contiguous


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 6, 8, 3), np.uint8), r"predict\(list\(batch\)\)"),
        (np.zeros((6,), np.uint8), "shape"),
        (np.zeros((0, 8, 3), np.uint8), "shape"),
        (np.zeros((3, 40, 50), np.uint8), "transpose"),
        (np.zeros((6, 8, 3), np.float32), r"\* 255"),
        (np.zeros((6, 8, 3), bool), "uint8"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(DataError, match=message):
        check_image(image)


def test_pil_modes_and_exif():
    rgb = pixels(6, 8, 3)
    assert np.array_equal(from_pil(Image.fromarray(rgb), 3), rgb[..., ::-1])
    rgba = pixels(6, 8, 4)
    assert np.array_equal(from_pil(Image.fromarray(rgba, "RGBA"), 3), rgba[..., 2::-1])
    assert np.array_equal(from_pil(Image.fromarray(rgba, "RGBA"), 4), rgba[..., [2, 1, 0, 3]])
    assert from_pil(Image.fromarray(rgb).convert("P"), 3).shape == (6, 8, 3)
    assert from_pil(Image.fromarray(rgb), 1).shape == (6, 8, 1)
    deep = pixels(6, 8, dtype=np.uint16)
    assert np.array_equal(from_pil(Image.fromarray(deep), 1)[..., 0], deep)
    assert np.array_equal(from_pil(Image.fromarray(deep.astype(np.int32)), 1)[..., 0], deep)
    turned = Image.fromarray(rgb)
    turned.getexif()[274] = 6
    assert np.array_equal(from_pil(turned, 3), np.rot90(rgb[..., ::-1], -1))


def test_tensors(caplog):
    assert check_tensor(torch.zeros(2, 3, 32, 32), 3).shape == (2, 3, 32, 32)
    assert check_tensor(torch.zeros(3, 32, 32), 3).shape == (1, 3, 32, 32)
    assert "batch of one" in caplog.text
    assert float(check_tensor(torch.full((1, 3, 32, 32), 255.0), 3).max()) == 1
    assert "divided by 255" in caplog.text
    for shape in [(2, 4, 32, 32), (32, 32), (0, 3, 32, 32)]:
        with pytest.raises(DataError, match="expected a tensor"):
            check_tensor(torch.zeros(shape), 3)
