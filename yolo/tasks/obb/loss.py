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

from yolo.nn.losses import BOX_LOSSES, LossReport, Targets, dfl_loss
from yolo.nn.rotated import boxes_to_ltrb, ltrb_to_boxes, prob_iou
from yolo.tasks.detect.loss import DetectionCriterion, Positives, gather_anchors

VARIANCE_FLOOR = 0.01
"""Added to each box's variances, in squared strides, so that thin boxes keep a useful gradient."""

MIN_SIDE_PX = 2.0
"""Thinner objects are left out: nothing of them can be seen."""


@BOX_LOSSES.register("prob_iou")
def prob_iou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - probabilistic IoU of boxes_xywhr (..., 5), >= 0. Source: arXiv:2106.06072, section 4."""
    return 1 - prob_iou(pred, target, VARIANCE_FLOOR)


class OBBCriterion(DetectionCriterion):
    """Class, box and distribution focal loss of an `OBB` head.

    `targets.extras["rotated"]` holds the boxes_xywhr (B, n, 5) in pixels. Arguments are those of
    `DetectionCriterion`; assigner and box loss work on boxes_xywhr.
    """

    def __init__(
        self,
        *args: Any,
        assigner: Any = "rotated_task_aligned",
        box_loss: str = "prob_iou",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, assigner=assigner, box_loss=box_loss, **kwargs)

    def forward(self, raw: Mapping[str, Tensor], targets: Targets) -> LossReport:
        """Compare a head's raw output with the ground truth.

        Args:
            raw: as in detection, and `angle` (B, 1, A) in radians.
            targets: with the extra "rotated".
        """
        boxes = targets.extras["rotated"].float()
        large = (boxes[..., 2:4] >= MIN_SIDE_PX).all(-1)
        return super().forward(raw, replace(targets, boxes=boxes, mask=targets.mask & large))

    def decode(self, raw: Mapping[str, Tensor]) -> Tensor:
        """Return the predicted boxes_xywhr (B, A, 5) in pixels."""
        boxes = ltrb_to_boxes(self.distances(raw["boxes"]), raw["angle"].mT, raw["points"])
        return _scaled(boxes, raw["strides"])

    def box_terms(self, raw: Mapping[str, Tensor], positives: Positives) -> dict[str, Tensor]:
        """Return the box term and, where sides are distributions, the dfl term."""
        index = positives.index
        points = raw["points"][index]
        boxes = _scaled(positives.boxes, 1 / raw["strides"][index])
        sides = gather_anchors(raw["boxes"], index)
        angle = gather_anchors(raw["angle"], index).mT
        pred = ltrb_to_boxes(self.distances(sides), angle, points)
        share = positives.quality / positives.normaliser
        terms = {"box": (self.box_loss(pred, boxes) * share).sum()}
        if self.reg_max > 1:
            logits = sides.mT.reshape(*index.shape, 4, self.reg_max)
            terms["dfl"] = (dfl_loss(logits, boxes_to_ltrb(boxes, points)) * share).sum()
        return terms


def _scaled(boxes: Tensor, gain: Tensor) -> Tensor:
    """Scale boxes_xywhr (..., 5) by a gain (..., 1); the angle stays."""
    return torch.cat((boxes[..., :4] * gain, boxes[..., 4:]), -1)
