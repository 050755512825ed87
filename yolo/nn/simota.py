# SPDX-License-Identifier: Apache-2.0
"""SimOTA: every object takes its cheapest anchors, as many as its overlaps add up to.

Shape letters as in `assign`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from yolo.errors import ConfigError
from yolo.nn.assign import (
    ASSIGNERS,
    ROTATED_ASSIGNERS,
    Assignment,
    RotatedBoxes,
    UprightBoxes,
    all_background,
    assigned,
    chunks,
)

OUTSIDE = 1e5
"""Added to the cost of an anchor that isn't both inside the object and near its middle."""


@ASSIGNERS.register("simota")
class SimOTAAssigner(UprightBoxes):
    """Anchors inside an object or near its middle may learn it; the cheapest do.

    The cost is the class loss plus `box_weight` times the logarithmic IoU loss. An object takes as
    many anchors as the IoUs of its best `topk` add up to, at least one; an anchor that several take
    goes to the one that it is cheapest for. The soft target is the overlap of box and object.

    Args:
        topk: overlaps that are added up, and so the most anchors an object takes.
        radius: how near to the middle is near, in strides.
        box_weight: of the box cost.
        pairs_per_chunk: as in `TaskAlignedAssigner`.

    Source: Ge et al., YOLOX, arXiv:2107.08430, section 2.1; Ge et al., OTA, arXiv:2103.14259,
    section 3.3 (dynamic k).
    """

    def __init__(
        self,
        topk: int = 10,
        radius: float = 2.5,
        box_weight: float = 3.0,
        pairs_per_chunk: int | None = None,
    ) -> None:
        if topk < 1 or radius <= 0 or box_weight < 0:
            raise ConfigError(
                "assigner 'simota': topk must be at least 1, radius above 0 and box_weight at "
                f"least 0, got {topk}, {radius}, {box_weight}"
            )
        self.topk = topk
        self.radius = radius
        self.box_weight = box_weight
        self.pairs_per_chunk = pairs_per_chunk

    def max_positives(self, num_gt: int, num_anchors: int) -> int:
        """Return the most foreground anchors that one image can have."""
        return min(num_gt * self.topk, num_anchors)

    @torch.no_grad()
    def __call__(
        self,
        pred_scores: Tensor,
        pred_boxes: Tensor,
        points_px: Tensor,
        gt_labels: Tensor,
        gt_boxes: Tensor,
        gt_mask: Tensor,
        *,
        from_logits: bool = False,
        strides_px: Tensor | None = None,
        levels: Sequence[float] = (),
    ) -> Assignment:
        """Assign as `Assigner.__call__` says."""
        if strides_px is None:
            raise ValueError("the assigner 'simota' needs strides_px")
        if gt_boxes.shape[1] == 0:
            return all_background(pred_scores, pred_boxes)
        logits = (pred_scores if from_logits else pred_scores.logit(1e-6)).mT  # (B, C, A)
        background = F.softplus(logits).sum(1, keepdim=True)  # the class cost without an object
        reach = strides_px.flatten() * self.radius
        images = torch.arange(len(logits), device=logits.device)[:, None]
        most = min(self.topk, len(points_px))
        ranks = torch.arange(most, device=logits.device)
        best_cost = pred_boxes.new_full(pred_boxes.shape[:2], torch.inf)
        best_gt = torch.zeros_like(best_cost, dtype=torch.int64)
        for part in chunks(gt_boxes, points_px, self.pairs_per_chunk):
            boxes = gt_boxes[:, part]
            apart = (self.middles(boxes)[:, :, None] - points_px).abs().amax(-1)
            near, inside = apart < reach, self.contains(boxes, points_px)
            allowed = (near | inside) & gt_mask[:, part, None]
            overlap = self.overlap(boxes[:, :, None], pred_boxes[:, None]) * allowed
            cost = background - logits[images, gt_labels[:, part]]
            cost = cost - self.box_weight * overlap.clamp(min=1e-8).log()
            cost = (cost + OUTSIDE * ~(near & inside)).masked_fill(~allowed, torch.inf)
            takes = overlap.topk(most, dim=2).values.sum(2, keepdim=True).long().clamp(min=1)
            value, place = cost.topk(most, dim=2, largest=False)
            kept = value.masked_fill(ranks >= takes, torch.inf)
            listed = torch.full_like(cost, torch.inf).scatter_(2, place, kept)
            least, slot = listed.min(dim=1)
            best_gt = torch.where(least < best_cost, slot + part.start, best_gt)
            best_cost = torch.minimum(best_cost, least)
        fg_mask = best_cost.isfinite()
        return assigned(self, fg_mask, best_gt, pred_scores, pred_boxes, gt_labels, gt_boxes)


@ROTATED_ASSIGNERS.register("simota")
class RotatedSimOTAAssigner(RotatedBoxes, SimOTAAssigner):
    """The same for boxes_xywhr, by their probabilistic IoU."""
