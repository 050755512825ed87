# SPDX-License-Identifier: Apache-2.0
"""Anchor points: one per cell of every level, and distances from them to box sides.

Shapes: A anchor points over all levels, fine to coarse, row-major within a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def anchor_points(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[float],
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Make the cell centres of all levels.

    Args:
        shapes: (h, w) of each level, cells.
        strides: pixels per cell of each level.
        device: where the tensors live.
        dtype: their type; bfloat16 can't hold the centres of large maps.

    Returns:
        points (A, 2) as (x + 0.5, y + 0.5) in grid units of their level, and
        strides (A, 1) in pixels.
    """
    points, steps = [], []
    for (h, w), stride in zip(shapes, strides, strict=True):
        x = torch.arange(w, device=device, dtype=dtype) + 0.5
        y = torch.arange(h, device=device, dtype=dtype) + 0.5
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack((grid_x, grid_y), -1).view(-1, 2))
        steps.append(torch.full((h * w, 1), stride, device=device, dtype=dtype))
    return torch.cat(points), torch.cat(steps)


@lru_cache(maxsize=32)
def _remembered(
    shapes: tuple[tuple[int, int], ...], strides: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # else training could not use what a prediction made
        return anchor_points(shapes, strides, device)


def points_like(feats: Sequence[Tensor], strides: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Give the anchor points of feature maps, float32, remembered between calls.

    Some twenty kernel launches a step are saved. The tensors are shared: don't change them in
    place. Nothing is remembered while torch traces, compiles, exports or fakes tensors.

    Args:
        feats: maps (B, C, h, w) of each level.
        strides: pixels per cell of each level.

    Returns:
        As `anchor_points`.
    """
    shapes = tuple((f.shape[-2], f.shape[-1]) for f in feats)
    first = feats[0]
    plain = type(first) is Tensor and type(first.shape[-1]) is int  # else faked, traced, symbolic
    if torch.compiler.is_compiling() or not plain:
        return anchor_points(shapes, strides, first.device)
    return _remembered(shapes, tuple(strides), first.device)


def ltrb_to_boxes(dist: Tensor, points: Tensor) -> Tensor:
    """Turn side distances into boxes.

    Args:
        dist: (..., A, 4) distances to left, top, right, bottom, stride units.
        points: (A, 2) anchor points as (x, y), stride units.

    Returns:
        (..., A, 4) boxes_xyxy, stride units.

    Source: Tian et al., FCOS, arXiv:1904.01355, section 3.1.
    """
    left_top, right_bottom = dist.chunk(2, -1)
    return torch.cat((points - left_top, points + right_bottom), -1)


def boxes_to_ltrb(boxes_xyxy: Tensor, points: Tensor, limit: float | None = None) -> Tensor:
    """Turn boxes into side distances, the inverse of `ltrb_to_boxes`.

    Args:
        boxes_xyxy: (..., A, 4) corners, stride units.
        points: (A, 2) anchor points as (x, y), stride units.
        limit: clamp distances to 0 .. limit - 0.01, so that a linear split between two of
            `limit` + 1 bins is defined (reg_max - 1 for the distribution focal loss).

    Returns:
        (..., A, 4) distances to left, top, right, bottom, stride units.
    """
    top_left, bottom_right = boxes_xyxy.chunk(2, -1)
    dist = torch.cat((points - top_left, bottom_right - points), -1)
    return dist if limit is None else dist.clamp(0, limit - 0.01)
