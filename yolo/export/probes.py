# SPDX-License-Identifier: Apache-2.0
"""What a file is proved on: drawn scenes, square and not, in the batches the file claims to take.

Shapes: B images, C channels, H W pixels.
"""

from __future__ import annotations

import math

import numpy as np

from yolo.backends.exported import as_input
from yolo.data.letterbox import letterbox
from yolo.data.scene import scene

IMAGES = 8
"""How many images a file is run on, at least."""

_SHAPES = ((1.0, 1.0), (0.75, 1.0), (1.0, 0.6), (0.9, 0.9), (0.5, 1.0), (1.0, 0.8))
"""Height and width of the scenes, as shares of their longer side."""

Size = tuple[int, int]


def drawn(number: int, longer: int, channels: int) -> np.ndarray:
    """Return the scene of a number: (H, W, C) uint8, BGR for three channels."""
    h, w = (max(round(longer * share), 64) for share in _SHAPES[number % len(_SHAPES)])
    image = scene(0, "test", number, (h, w)).image
    return np.ascontiguousarray(image[..., np.arange(channels) % 3])


def raw_probes(size: Size, channels: int) -> list[np.ndarray]:
    """Return images (H, W, C) of several sizes, larger and smaller than the network's."""
    factors = (1.0, 1.4, 0.7)
    return [drawn(i, round(max(size) * factors[i % len(factors)]), channels) for i in range(IMAGES)]


def probes(
    size: Size, channels: int, stride: int, batch: int, dynamic: bool | str
) -> list[np.ndarray]:
    """Return inputs (B, C, H, W) float32, RGB 0..1, for a file.

    Args:
        size: (h, w) of the network's input.
        channels: C.
        stride: of which sides are multiples.
        batch: B of a file that isn't dynamic.
        dynamic: False, "batch", or True for a free H and W, too.
    """
    shorter = [max(round(0.6 * side / stride), 1) * stride for side in size]
    calls: list[tuple[int, Size]] = [(batch, size)] * math.ceil(IMAGES / batch)
    if dynamic == "batch":
        calls = [(1, size), (3, size), (4, size)]
    elif dynamic:
        flat, tall = (shorter[0], size[1]), (size[0], shorter[1])
        calls = [(1, size), (3, flat), (2, tall), (2, size)]
    inputs, number = [], 0
    for count, canvas in calls:
        images = []
        for _ in range(count):
            images.append(letterbox(drawn(number, max(size), channels), canvas)[0])
            number += 1
        inputs.append(as_input(np.stack(images), channels))
    return inputs
