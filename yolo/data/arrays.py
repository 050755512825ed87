# SPDX-License-Identifier: Apache-2.0
"""Images given as Python objects: arrays, PIL pictures, tensors; checked and brought to one form.

H, W, C: height, width, channels; B images in a tensor. Torch is not imported: a tensor is known by
its methods.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from yolo.data.images import cv2, to_bgr8
from yolo.errors import DataError

LOGGER = logging.getLogger(__name__)


def check_image(image: np.ndarray, copy: bool = True) -> np.ndarray:
    """Return an array given as an image as (H, W, C) uint8 or uint16, contiguous.

    Args:
        image: (H, W) or (H, W, C).
        copy: copy even where nothing has to change.

    Raises:
        DataError: if its shape or type isn't that of one image.
    """
    found, fault = image.shape, ""
    if image.ndim not in (2, 3) or not image.size:
        fault = f"of shape (h, w[, channels]), got {found}; several as a list: predict(list(batch))"
    elif image.ndim == 3 and found[0] in (1, 3) and found[2] > 16:
        fault = f"of shape (h, w, channels), got {found}; perhaps image.transpose(1, 2, 0), BGR"
    elif image.dtype not in (np.uint8, np.uint16):
        fault = f"of type uint8 or uint16 (BGR), got {image.dtype}; of 0..1: "
        fault += "(image * 255).round().astype('uint8')"
    if fault:
        raise DataError(f"expected an image array {fault}")
    if image.ndim == 2:
        image = image[:, :, None]
    return np.array(image, order="C") if copy else np.ascontiguousarray(image)


def fit_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Return an image (H, W, C) as a model with `channels` input channels takes it.

    Three channels: grey is repeated, alpha dropped, 16 bits scaled to 8. One channel: BGR becomes
    grey. Any other number must fit; depth is kept.

    Raises:
        DataError: if the channels don't fit.
    """
    found = image.shape[2]
    if channels == 3 and found in {1, 3, 4}:
        done = found == 3 and image.dtype == np.uint8
        return image if done else np.ascontiguousarray(to_bgr8(image))
    if channels == 1 and found in {3, 4}:
        return cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2GRAY)[..., None]
    if found != channels:
        raise DataError(
            f"expected an image with {channels} channel(s), as the model takes, got {image.shape}"
        )
    return image


def from_pil(picture: Any, channels: int) -> np.ndarray:
    """Return a PIL image as BGR, rotated as its EXIF says."""
    from PIL import ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits; plain "I" is how older versions of PIL hold them
        pixels = np.asarray(picture).clip(0, 65535).astype(np.uint16)
    elif channels == 4 and picture.mode in {"RGBA", "CMYK"}:
        pixels = np.asarray(picture)
        pixels = pixels[..., [2, 1, 0, 3]] if picture.mode == "RGBA" else pixels
    else:
        pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
        pixels = pixels if pixels.ndim == 2 else pixels[..., ::-1]
    return fit_channels(check_image(pixels), channels)


def check_tensor(tensor: Any, channels: int) -> Any:
    """Return a float (B, C, H, W) tensor with values in 0..1.

    Raises:
        DataError: if the shape doesn't fit.
    """
    if tensor.ndim == 3:
        LOGGER.warning("a tensor of shape (C, H, W) was given; taken as a batch of one image")
        tensor = tensor[None]
    if tensor.ndim != 4 or tensor.shape[1] != channels or not tensor.numel():
        text = f"expected a tensor of shape (B, {channels}, H, W), RGB, 0..1"
        raise DataError(f"{text}, got {tuple(tensor.shape)}")
    tensor = tensor.detach().float()
    if float(tensor.max()) > 1.0 + 1e-6:
        LOGGER.warning("a tensor with values above 1 was given; divided by 255")
        tensor = tensor / 255
    return tensor
