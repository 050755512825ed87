# SPDX-License-Identifier: Apache-2.0
"""Axis-aligned boxes as tensors: conversions and the IoU family.

Every overlap function broadcasts over the leading dimensions, so one definition serves matching
boxes one to one, (..., 4) with (..., 4), and all pairs, (n, 1, 4) with (1, m, 4). What depends on
one box alone is worked out before the broadcast; for all pairs that is most of the cost.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 1e-7
"""Keeps every quotient finite for boxes without area, as in the classic YOLOv8 loss."""


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Turn corners into centre and size.

    Args:
        boxes: (..., 4) boxes_xyxy in any unit.

    Returns:
        (..., 4) centre x, centre y, width, height in the same unit.
    """
    low, high = boxes[..., :2], boxes[..., 2:4]
    return torch.cat(((low + high) / 2, high - low), -1)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Turn centre and size into corners.

    Args:
        boxes: (..., 4) centre x, centre y, width, height in any unit.

    Returns:
        (..., 4) boxes_xyxy in the same unit.
    """
    centre, half = boxes[..., :2], boxes[..., 2:4] / 2
    return torch.cat((centre - half, centre + half), -1)


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Tell which points lie strictly inside which boxes; the border is outside.

    Args:
        points: (A, 2) x and y.
        boxes: (..., n, 4) boxes_xyxy in the same unit.

    Returns:
        (..., n, A) bool.
    """
    x, y = points.T.contiguous().unbind(0)
    x1, y1, x2, y2 = boxes[..., None].unbind(-2)
    return ((x > x1) & (x < x2)).logical_and_(y > y1).logical_and_(y < y2)


def iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union, in 0..1.

    Args:
        boxes1: (..., 4) boxes_xyxy.
        boxes2: (..., 4) boxes_xyxy that broadcast with `boxes1`.

    Returns:
        The broadcast leading shape.
    """
    return BoxPair(boxes1, boxes2).iou


def giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised IoU, in -1..1: minus the part of the hull that neither box covers.

    Arguments and shape as in `iou`. Source: Rezatofighi et al., arXiv:1902.09630, algorithm 1.
    """
    pair = BoxPair(boxes1, boxes2)
    hull_w, hull_h = pair.hull()
    hull = hull_w * hull_h + EPS
    return pair.iou - (hull - pair.union) / hull


def diou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Distance IoU, in -1..1: minus the squared centre distance over the hull's diagonal.

    Arguments and shape as in `iou`. Source: Zheng et al., arXiv:1911.08287, equation 7.
    """
    pair = BoxPair(boxes1, boxes2)
    return pair.iou - pair.centre_distance()


def ciou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Complete IoU: distance IoU minus a term for different aspect ratios.

    The weight of the aspect term counts as a constant in the gradient, as its authors do.
    Arguments and shape as in `iou`. Source: Zheng et al., arXiv:1911.08287, equations 8 to 11.
    """
    pair = BoxPair(boxes1, boxes2)
    difference = torch.atan(pair.w2 / pair.h2) - torch.atan(pair.w1 / pair.h1)
    aspect = difference.square() * (4 / math.pi**2)
    with torch.no_grad():
        weight = aspect / (aspect - pair.iou + (1 + EPS))
    return torch.addcmul(pair.iou - pair.centre_distance(), aspect, weight, value=-1)


class BoxPair:
    """What the members of the IoU family share for two broadcasting sets of boxes_xyxy.

    Attributes:
        iou: intersection over union, 0..1.
        w1, h1, w2, h2: the boxes' sides.
        centre1, centre2: (x, y) of the boxes' middles.
    """

    def __init__(self, boxes1: Tensor, boxes2: Tensor) -> None:
        # One contiguous plane a side: strided reads would halve the speed of all that follows.
        left1, top1, right1, bottom1 = boxes1.movedim(-1, 0).contiguous().unbind(0)
        left2, top2, right2, bottom2 = boxes2.movedim(-1, 0).contiguous().unbind(0)
        self.sizes = right1 - left1, right2 - left2, bottom1 - top1, bottom2 - top2
        self.w1, self.w2 = self.sizes[:2]
        self.h1, self.h2 = self.sizes[2] + EPS, self.sizes[3] + EPS
        self.centre1 = (left1 + right1) / 2, (top1 + bottom1) / 2
        self.centre2 = (left2 + right2) / 2, (top2 + bottom2) / 2
        # Negative where the boxes are apart: the width of the gap.
        self.overlap_w = torch.minimum(right1, right2) - torch.maximum(left1, left2)
        self.overlap_h = torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)
        intersection = self.overlap_w.clamp(min=0) * self.overlap_h.clamp(min=0)
        self.union = (self.w1 * self.h1 + EPS) + self.w2 * self.h2 - intersection
        self.iou = intersection / self.union

    def hull(self) -> tuple[Tensor, Tensor]:
        """Width and height of the smallest box around both: sizes minus the signed overlap."""
        w1, w2, h1, h2 = self.sizes
        return w1 + w2 - self.overlap_w, h1 + h2 - self.overlap_h

    def centre_distance(self) -> Tensor:
        """Squared distance of the centres over the squared diagonal of the hull, in 0..1."""
        hull_w, hull_h = self.hull()
        diagonal = torch.addcmul(hull_w.square() + EPS, hull_h, hull_h)
        dx, dy = self.centre1[0] - self.centre2[0], self.centre1[1] - self.centre2[1]
        return torch.addcmul(dx.square(), dy, dy) / diagonal
