# SPDX-License-Identifier: Apache-2.0
"""Adaptive training sample selection: a threshold an object, from its nearest anchors' overlaps.

Shape letters as in `assign`; L levels, k candidates a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
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


@ASSIGNERS.register("atss")
class ATSSAssigner(UprightBoxes):
    """An object's candidates are the `topk` anchors of each level nearest to its middle.

    A candidate inside the object learns it if its anchor box, a square of `scale` strides, overlaps
    the object by at least the mean plus the standard deviation of its candidates' overlaps; the
    best one inside always does. An anchor of several objects goes to the one it overlaps most.
    Predictions decide nothing but the soft target, which is the overlap of box and object.

    Args:
        topk: candidates a level.
        scale: side of an anchor box in strides.
        pairs_per_chunk: as in `TaskAlignedAssigner`.

    Source: Zhang et al., arXiv:1912.02424, algorithm 1; the soft target as in Li et al.,
    arXiv:2006.04388, section 3.
    """

    def __init__(
        self, topk: int = 9, scale: float = 8.0, pairs_per_chunk: int | None = None
    ) -> None:
        if topk < 1 or scale <= 0:
            raise ConfigError(
                f"assigner 'atss': topk must be at least 1 and scale above 0, got {topk}, {scale}"
            )
        self.topk = topk
        self.scale = scale
        self.pairs_per_chunk = pairs_per_chunk

    def max_positives(self, num_gt: int, num_anchors: int) -> int:
        """Return a bound on the foreground anchors of one image, for up to eight levels."""
        return min(num_gt * self.topk * 8, num_anchors)

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
            raise ValueError("the assigner 'atss' needs strides_px and levels")
        if gt_boxes.shape[1] == 0:
            return all_background(pred_scores, pred_boxes)
        strides = strides_px.flatten()
        squares = self.squares(points_px, strides * self.scale)
        best_overlap = pred_boxes.new_full(pred_boxes.shape[:2], -1.0)
        best_gt = torch.zeros_like(best_overlap, dtype=torch.int64)
        for part in chunks(gt_boxes, points_px, self.pairs_per_chunk):
            boxes = gt_boxes[:, part]
            apart = self.middles(boxes)[:, :, None] - points_px
            distance = apart.square().sum(-1)
            overlap = self.overlap(boxes[:, :, None], squares)
            chosen = self._candidates(distance, strides, levels)
            count = chosen.sum(2, keepdim=True)
            mean = (overlap * chosen).sum(2, keepdim=True) / count
            spread = ((overlap - mean).square() * chosen).sum(2, keepdim=True)
            threshold = mean + (spread / (count - 1).clamp(min=1)).sqrt()
            inside = chosen & self.contains(boxes, points_px) & gt_mask[:, part, None]
            overlap = overlap.masked_fill(~inside, -1.0)
            positive = inside & (overlap >= torch.minimum(threshold, overlap.amax(2, True)))
            most, slot = overlap.masked_fill(~positive, -1.0).max(dim=1)
            best_gt = torch.where(most > best_overlap, slot + part.start, best_gt)
            best_overlap = torch.maximum(best_overlap, most)
        fg_mask = best_overlap >= 0
        return assigned(self, fg_mask, best_gt, pred_scores, pred_boxes, gt_labels, gt_boxes)

    def _candidates(self, distance: Tensor, strides: Tensor, levels: Sequence[float]) -> Tensor:
        """Mark each object's nearest anchors of every level, (B, k, A)."""
        chosen = torch.zeros_like(distance, dtype=torch.bool)
        for level in levels:
            apart = distance.masked_fill(strides != level, torch.inf)
            value, place = apart.topk(min(self.topk, len(strides)), dim=2, largest=False)
            marks = torch.zeros_like(chosen).scatter_(2, place, value.isfinite())
            chosen |= marks
        return chosen


@ROTATED_ASSIGNERS.register("atss")
class RotatedATSSAssigner(RotatedBoxes, ATSSAssigner):
    """The same for boxes_xywhr, by their probabilistic IoU."""
