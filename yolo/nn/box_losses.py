# SPDX-License-Identifier: Apache-2.0
"""Box losses, one a positive anchor, chosen by name. A user's own is one decorator away.

    @BOX_LOSSES.register("mine")
    def my_box_loss(pred, target): ...

All take (..., 4) boxes_xyxy in one unit twice, prediction and target, and return (...). Options
after these two can be set as in `box_loss={"name": "siou", "theta": 6}`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from yolo.nn.boxes import EPS, BoxPair, ciou, diou, giou
from yolo.registry import Registry

BoxLoss = Callable[..., Tensor]
"""(predicted boxes (..., 4), target boxes (..., 4)) -> loss (...), in one unit."""

BOX_LOSSES: Registry[BoxLoss] = Registry("box_loss")


@BOX_LOSSES.register("ciou")
def ciou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - CIoU, >= 0. Source: Zheng et al., arXiv:1911.08287, section 3."""
    return 1 - ciou(pred, target)


@BOX_LOSSES.register("giou")
def giou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU, 0..2. Source: Rezatofighi et al., arXiv:1902.09630, algorithm 1."""
    return 1 - giou(pred, target)


@BOX_LOSSES.register("diou")
def diou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - DIoU, 0..2. Source: Zheng et al., arXiv:1911.08287, equation 7."""
    return 1 - diou(pred, target)


@BOX_LOSSES.register("eiou")
def eiou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Efficient IoU loss: DIoU's, and the squared differences of the sides over those of the hull.

    Source: Zhang et al., arXiv:2101.08158, equation 7.
    """
    pair = BoxPair(pred, target)
    hull_w, hull_h = pair.hull()
    wide = (pair.w1 - pair.w2).square() / (hull_w.square() + EPS)
    high = (pair.h1 - pair.h2).square() / (hull_h.square() + EPS)
    return 1 - pair.iou + pair.centre_distance() + wide + high


@BOX_LOSSES.register("siou")
def siou_loss(pred: Tensor, target: Tensor, theta: float = 4.0) -> Tensor:
    """SCYLLA IoU loss: overlap, centre distance weighted by its direction, and shape.

    Args:
        pred: (..., 4) boxes_xyxy.
        target: (..., 4) boxes_xyxy.
        theta: how sharply differing sides count, 2..6.

    Source: Gevorgyan, arXiv:2205.12740, equations 1 to 14.
    """
    pair = BoxPair(pred, target)
    dx, dy = pair.centre1[0] - pair.centre2[0], pair.centre1[1] - pair.centre2[1]
    # The angle cost 1 - 2 sin^2(arcsin(x) - pi/4) is the sine of twice the direction's angle.
    angle = 2 * (dx * dy).abs() / (dx.square() + dy.square() + EPS)
    hull_w, hull_h = pair.hull()
    gamma = 2 - angle
    distance = 2 - sum(
        torch.exp(-gamma * (offset / (side + EPS)).square())
        for offset, side in ((dx, hull_w), (dy, hull_h))
    )
    shape = sum(
        (1 - torch.exp(-(one - other).abs() / (torch.maximum(one, other) + EPS))) ** theta
        for one, other in ((pair.w1, pair.w2), (pair.h1, pair.h2))
    )
    return 1 - pair.iou + (distance + shape) / 2


@BOX_LOSSES.register("wiou")
def wiou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Wise IoU loss, version 1: 1 - IoU, more for boxes whose centre is far from the target's.

    The hull counts as a constant in the gradient. (Versions 2 and 3 weigh by a running mean of the
    loss, which a function without state can't have.) Source: Tong et al., arXiv:2301.10051,
    equations 6 to 8.
    """
    pair = BoxPair(pred, target)
    hull_w, hull_h = pair.hull()
    dx, dy = pair.centre1[0] - pair.centre2[0], pair.centre1[1] - pair.centre2[1]
    diagonal = (hull_w.square() + hull_h.square()).detach() + EPS
    return torch.exp((dx.square() + dy.square()) / diagonal) * (1 - pair.iou)
