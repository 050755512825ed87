# SPDX-License-Identifier: Apache-2.0
"""The segmentation criterion: a detector's terms and that of the masks.

Shape letters: B batch, A anchor points, M positions an image that may be positive, N prototypes,
n gt slots, h w size of the prototypes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolo.nn.losses import Targets
from yolo.tasks.detect.loss import DetectionCriterion, Positives, gather_anchors
from yolo.tasks.segment.data import resize_masks

_ELEMENTS = 2**24
"""Logits worked on at once where all positions count: a few times 64 MB."""


class SegmentationCriterion(DetectionCriterion):
    """Box, mask, class and distribution loss; arguments as in `DetectionCriterion`.

    The mask term is the binary cross-entropy of each positive's mask within its object's box, the
    mean over the whole map divided by the box's share of the image, then the mean over the
    positives. Its gain is that of the boxes.

    `targets.extras["masks"]` is (B, h', w') with 1 + the object's slot, or (B, n, h', w') of 0 and
    1; at another size than the prototypes', the nearest pixels are taken.

    Attributes:
        static: let no shape depend on values on the CPU either, as on other devices.

    Source: Bolya et al., YOLACT, arXiv:1904.02689, section 3.1 (crop by the gt box, divide by its
    area); golden/losses.npz.
    """

    names = ("box", "seg", "cls", "dfl")
    static = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gains["seg"] = self.gains["box"]

    def terms(
        self, raw: Mapping[str, Tensor], targets: Targets, positives: Positives
    ) -> dict[str, Tensor]:
        """Return the scalar terms by name, normalised, without gains."""
        terms = super().terms(raw, targets, positives)
        return terms | {"seg": self.mask_term(raw, targets, positives)}

    def mask_term(
        self, raw: Mapping[str, Tensor], targets: Targets, positives: Positives
    ) -> Tensor:
        """Return the mean over positives of the mask loss."""
        proto = raw["proto"]
        height, width = proto.shape[-2:]
        boxes = _scaled(positives.boxes, height / targets.size[0], width / targets.size[1])
        sides = boxes[..., 2:] - boxes[..., :2]
        weight = positives.mask / sides.prod(-1).clamp(min=1e-9)
        total = _MaskLoss.apply(
            gather_anchors(raw["mask_coefficient"], positives.index).mT,
            proto,
            resize_masks(targets.extras["masks"], (height, width), "nearest"),
            positives.gt_index,
            boxes,
            torch.where(positives.mask, weight, 0.0),
            not self.static and proto.device.type == "cpu",
        )
        count: Tensor = self.sum_over_ranks(positives.mask.sum())
        return total / count.clamp(min=1)


def _scaled(boxes: Tensor, gain_y: float, gain_x: float) -> Tensor:
    """Scale boxes_xyxy (..., 4); a tensor of gains would have to travel to the device."""
    return torch.stack((boxes[..., 0::2] * gain_x, boxes[..., 1::2] * gain_y), -1).flatten(-2)


class _MaskLoss(torch.autograd.Function):
    """The weighted sum of the mask loss over positions, and its gradient, made in one go.

    Logits aren't kept: only a few objects' exist at a time, so that memory doesn't grow with their
    number. On a CPU the work is confined to the boxes, some percent of the map; elsewhere every
    position counts in full, which needs no look at the values.

    Inputs: coefficients (B, M, N), prototypes (B, N, h, w), masks as the criterion takes them, gt
    slots (B, M), boxes_xyxy (B, M, 4) in pixels of the prototypes, weights (B, M), and whether to
    work on crops.
    """

    @staticmethod
    def forward(
        ctx: Any,
        coefficients: Tensor,
        proto: Tensor,
        masks: Tensor,
        slots: Tensor,
        boxes: Tensor,
        weight: Tensor,
        crops: bool,
    ) -> Tensor:
        learning = any(ctx.needs_input_grad[:2])
        slope_c, slope_p = torch.zeros_like(coefficients), torch.zeros_like(proto)
        total = proto.new_zeros(())
        parts = _boxes_of_objects if crops else _whole_maps
        for b, rows, (top, bottom, left, right), inside in parts(slots, boxes, weight, proto):
            # Channels last: where the head wrote it so, a crop is a plain copy.
            area = proto[b, :, top:bottom, left:right].permute(1, 2, 0).flatten(0, 1)
            own = masks[b, ..., top:bottom, left:right]
            if masks.ndim == 3:
                label = own.flatten() == (slots[b, rows] + 1)[:, None]
            else:
                label = own.flatten(1)[slots[b, rows]] > 0
            label = label.to(area.dtype)
            mine = coefficients[b, rows]
            logits = mine @ area.T
            loss = F.softplus(logits) - logits * label
            share = weight[b, rows, None] if inside is None else weight[b, rows, None] * inside
            total += (loss * share).sum()
            if learning:
                slope = logits.sigmoid_().sub_(label).mul_(share)
                slope_c[b, rows] = slope @ area
                spread = (slope.T @ mine).view(bottom - top, right - left, -1)
                slope_p[b, :, top:bottom, left:right] += spread.permute(2, 0, 1)
        ctx.save_for_backward(slope_c, slope_p)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        slope_c, slope_p = ctx.saved_tensors
        return slope_c * grad, slope_p * grad, None, None, None, None, None


_Part = tuple[int, Any, tuple[int, int, int, int], Tensor | None]
"""An image, its positions, the part of the map (top, bottom, left, right), and which of its pixels
count for each position (k, pixels), or None for all."""


def _boxes_of_objects(
    slots: Tensor, boxes: Tensor, weight: Tensor, proto: Tensor
) -> Iterator[_Part]:
    """Yield the positions of each object with its box: they share box and mask."""
    height, width = proto.shape[-2:]
    limit = torch.tensor([width, height, width, height])
    edges = boxes.ceil().clamp(min=0).minimum(limit).long()
    for b in range(len(slots)):
        rows = weight[b].nonzero().flatten()
        rows = rows[slots[b, rows].argsort()]
        _, counts = slots[b, rows].unique_consecutive(return_counts=True)
        for same in rows.split(counts.tolist()):
            left, top, right, bottom = edges[b, same[0]].tolist()
            if left < right and top < bottom:
                yield b, same, (top, bottom, left, right), None


def _whole_maps(slots: Tensor, boxes: Tensor, weight: Tensor, proto: Tensor) -> Iterator[_Part]:
    """Yield all positions, some at a time, with the whole map and what of it lies in their box."""
    height, width = proto.shape[-2:]
    x = torch.arange(width, dtype=boxes.dtype, device=boxes.device)
    y = torch.arange(height, dtype=boxes.dtype, device=boxes.device)
    step = max(_ELEMENTS // (height * width), 1)
    for b in range(len(slots)):
        for start in range(0, slots.shape[1], step):
            rows = slice(start, start + step)
            left, top, right, bottom = boxes[b, rows, :, None].unbind(1)
            across, down = (x >= left) & (x < right), (y >= top) & (y < bottom)
            yield b, rows, (0, height, 0, width), (down[:, :, None] & across[:, None]).flatten(1)
