# SPDX-License-Identifier: Apache-2.0
"""From coefficients and prototypes to masks, one object at a time, on NumPy arrays alone.

N objects, K prototypes, h w size of the prototypes, H W size of the picture that masks are for.

Logits are interpolated between prototype pixels straight to the picture's pixels, the letterbox
included, and only within the object's box. Memory is that of a few objects' logits, whatever their
number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from yolo.data.letterbox import Placement

_LOGITS = 2**21  # at prototype size, made at once: 8 MB
_BAND = 2**18  # pixels of the picture interpolated at once: what stays in a core's cache


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the pixels of a picture lie on the prototypes.

    Attributes:
        size: (H, W) of the picture.
        gain: prototype pixels per picture pixel, downwards and rightwards.
        shift: prototype pixels of padding above and to the left of the picture.
    """

    size: tuple[int, int]
    gain: tuple[float, float]
    shift: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of_canvas(cls, canvas: tuple[int, int], proto: tuple[int, ...]) -> Grid:
        """Return the grid of the network's own picture of size (h, w)."""
        return cls(canvas, (proto[-2] / canvas[0], proto[-1] / canvas[1]))

    @classmethod
    def of_original(
        cls, placement: Placement, canvas: tuple[int, int], proto: tuple[int, ...]
    ) -> Grid:
        """Return the grid of the original image, which `placement` puts on the canvas."""
        down, right = proto[-2] / canvas[0], proto[-1] / canvas[1]
        return cls(
            placement.original,
            (placement.gain_y * down, placement.gain_x * right),
            (placement.pad_top * down, placement.pad_left * right),
        )

    def between(self, axis: int, start: int, stop: int, extent: int) -> tuple[np.ndarray, ...]:
        """Return for pixels start..stop-1 the prototype pixels before and after, and the share.

        At the border the outermost prototype pixel of the picture counts, not the padding's.
        """
        gain, shift = self.gain[axis], self.shift[axis]
        places = (np.arange(start, stop) + 0.5) * gain + shift - 0.5
        last = min(shift + self.size[axis] * gain, extent) - 1
        places = places.clip(shift, max(last, shift))
        before = places.astype(np.int64)
        share = (places - before).astype(np.float32)
        return before, np.minimum(before + 1, extent - 1), share


def instance_masks(
    coefficients: np.ndarray, proto: np.ndarray, boxes: np.ndarray, grid: Grid
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Make the masks of the objects of one image.

    Args:
        coefficients: (N, K).
        proto: (K, h, w).
        boxes: (N, 4) boxes_xyxy in pixels of the picture; pixels whose corner lies outside are 0.
        grid: the picture.

    Yields:
        For each object the top row and left column of its window, and the mask (H', W') bool in it.
    """
    limit = np.array(grid.size[::-1] * 2)
    edges = np.ceil(boxes).clip(0, limit).astype(np.int64).tolist()
    step = max(_LOGITS // max(proto[0].size, 1), 1)
    for first in range(0, len(edges), step):
        chunk = np.tensordot(coefficients[first : first + step], proto, axes=1)
        for logits, (left, top, right, bottom) in zip(
            chunk, edges[first : first + step], strict=True
        ):
            window = (top, max(bottom, top), left, max(right, left))
            yield top, left, _positive(logits, window, grid)


def _positive(logits: np.ndarray, window: tuple[int, int, int, int], grid: Grid) -> np.ndarray:
    """Interpolate logits (h, w) to the pixels of a window, (H', W') bool where they are over 0."""
    top, bottom, left, right = window
    mask = np.zeros((bottom - top, right - left), dtype=bool)
    if not mask.size:
        return mask
    above, below, down = grid.between(0, top, bottom, logits.shape[0])
    before, after, across = grid.between(1, left, right, logits.shape[1])
    base = int(above[0])
    rows = logits[base : int(below[-1]) + 1]
    wide = rows[:, before]
    wide += (rows[:, after] - wide) * across  # columns first: there are fewer rows yet
    band = max(_BAND // mask.shape[1], 1)
    for start in range(0, len(mask), band):
        part = slice(start, start + band)
        upper = wide[above[part] - base]
        step = wide[below[part] - base]
        step -= upper
        step *= down[part, None]
        upper += step
        np.greater(upper, 0, out=mask[part])
    return mask
