# SPDX-License-Identifier: Apache-2.0
"""The criterion of oriented boxes: probabilistic IoU, class and distribution terms.

Distances are those along the box's own axes, and so are the distribution term's targets. There is
no term for the angle by itself: it learns through the overlap. Shape letters as in detection's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from yolo.nn.assign import ROTATED_ASSIGNERS
from yolo.nn.box_losses import BoxLoss
from yolo.nn.losses import LossReport, Targets
from yolo.nn.rotated import boxes_to_ltrb, ltrb_to_boxes, prob_iou
from yolo.registry import Registry
from yolo.tasks.detect.loss import DetectionCriterion

ROTATED_BOX_LOSSES: Registry[BoxLoss] = Registry("box_loss")

VARIANCE_FLOOR = 0.01
"""Added to each box's variances, in squared strides, so that thin boxes keep a useful gradient."""

MIN_SIDE_PX = 2.0
"""Thinner objects are left out: nothing of them can be seen."""


@ROTATED_BOX_LOSSES.register("prob_iou")
def prob_iou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - probabilistic IoU of boxes_xywhr (..., 5), >= 0. Source: arXiv:2106.06072, section 4."""
    return 1 - prob_iou(pred, target, VARIANCE_FLOOR)


class OBBCriterion(DetectionCriterion):
    """Class, box and distribution focal loss of an `OBB` head.

    `targets.extras["rotated"]` holds the boxes_xywhr (B, n, 5) in pixels. Arguments are those of
    `DetectionCriterion`; assigner and box loss work on boxes_xywhr.
    """

    assigners = ROTATED_ASSIGNERS
    box_losses = ROTATED_BOX_LOSSES
    box_outputs = ("boxes", "angle")

    def __init__(
        self,
        *args: Any,
        box_loss: str | Mapping[str, Any] = "prob_iou",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, box_loss=box_loss, **kwargs)

    def forward(self, raw: Mapping[str, Tensor], targets: Targets) -> LossReport:
        """Compare a head's raw output with the ground truth.

        Args:
            raw: as in detection, and `angle` (B, 1, A) in radians.
            targets: with the extra "rotated".
        """
        boxes = targets.extras["rotated"].float()
        large = (boxes[..., 2:4] >= MIN_SIDE_PX).all(-1)
        return super().forward(raw, replace(targets, boxes=boxes, mask=targets.mask & large))

    def boxes_at(self, raw: Mapping[str, Tensor], points: Tensor) -> Tensor:
        """Return the boxes_xywhr (B, P, 5) that distances and angles mean at points."""
        return ltrb_to_boxes(self.distances(raw["boxes"]), raw["angle"].mT, points)

    def sides_of(self, boxes: Tensor, points: Tensor) -> Tensor:
        """Return the distances (B, P, 4) of points to the sides, along the box's own axes."""
        return boxes_to_ltrb(boxes, points)

    def scaled(self, boxes: Tensor, gain: Tensor) -> Tensor:
        """Return boxes_xywhr (.., 5) times a gain (.., 1); the angle stays."""
        return torch.cat((boxes[..., :4] * gain, boxes[..., 4:]), -1)
