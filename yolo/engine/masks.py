# SPDX-License-Identifier: Apache-2.0
"""Masks of one image in little memory, and their outlines.

N masks, h w their size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from yolo.data.images import cv2
from yolo.data.masks import joined_ring


@dataclass(frozen=True, slots=True)
class PackedMasks:
    """N masks of one size, each as the bits of the window that holds it.

    300 masks of 2000 x 2000 pixels take 150 MB at the most, and usually a small part of it; as a
    whole array they would take 1.2 GB.

    Attributes:
        size: (h, w) of each mask.
        windows: N (top, left, rows, columns).
        bits: N arrays of packed bits, row by row.
        tensors: `dense` gives a torch tensor.
    """

    size: tuple[int, int]
    windows: tuple[tuple[int, int, int, int], ...]
    bits: tuple[np.ndarray, ...]
    tensors: bool = False

    @classmethod
    def pack(
        cls,
        masks: Iterable[tuple[int, int, np.ndarray]],
        size: tuple[int, int],
        tensors: bool = False,
    ) -> PackedMasks:
        """Pack masks that come one by one, as (top, left, (h', w') bool)."""
        windows, bits = [], []
        for top, left, mask in masks:
            windows.append((top, left, *mask.shape))
            bits.append(np.packbits(mask))
        return cls(size, tuple(windows), tuple(bits), tensors)

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, h, w)."""
        return len(self), *self.size

    def __getitem__(self, i: int) -> np.ndarray:
        """Return mask i, (h, w) uint8 of 0 and 1."""
        mask = np.zeros(self.size, np.uint8)
        self._unpack(i, mask)
        return mask

    def _unpack(self, i: int, target: np.ndarray) -> None:
        top, left, rows, columns = self.windows[i]
        values = np.unpackbits(self.bits[i], count=rows * columns).reshape(rows, columns)
        target[top : top + rows, left : left + columns] = values

    def select(self, rows: np.ndarray) -> PackedMasks:
        """Return the masks at some indices."""
        windows, bits = tuple(self.windows[i] for i in rows), tuple(self.bits[i] for i in rows)
        return replace(self, windows=windows, bits=bits)

    def dense(self) -> Any:
        """Return all masks as (N, h, w) uint8, a NumPy array or a tensor."""
        masks = np.zeros(self.shape, np.uint8)
        for i, target in enumerate(masks):
            self._unpack(i, target)
        if not self.tensors:
            return masks
        import torch  # the network's output was a tensor

        return torch.from_numpy(masks)


def trace_outline(mask: np.ndarray) -> np.ndarray:
    """Trace the outer contours of a mask and join them to one polygon.

    Parts are linked by a thin bridge, there and back, so that the polygon's area stays the sum of
    the parts' areas.

    Args:
        mask: (h, w), non-zero inside.

    Returns:
        (P, 2) float32 x, y in mask pixels; (0, 2) when the mask is empty.
    """
    found = cv2.findContours(
        np.ascontiguousarray(mask != 0).view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )[-2]
    if not found:
        return np.zeros((0, 2), np.float32)
    return joined_ring([contour.reshape(-1, 2).astype(np.float32) for contour in found])
