# SPDX-License-Identifier: Apache-2.0
"""The detection criterion: class, box and distribution terms over assigned anchor points.

Shape letters: B batch, A anchor points, n gt slots, C classes, R bins a side (`reg_max`),
M positions an image that may be positive.

Positives are few, so box terms are worked out at M gathered positions only. M is a bound that the
assigner gives without looking at the data; positions beyond the real positives have weight 0. All
shapes are static and nothing is copied to the host. Arithmetic is float32 whatever comes in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yolo.nn import atss as atss  # registers itself, as do the next two
from yolo.nn import simota as simota
from yolo.nn import task_aligned as task_aligned
from yolo.nn.anchors import boxes_to_ltrb, ltrb_to_boxes
from yolo.nn.assign import ASSIGNERS, Assigner, build_assigner, on_host
from yolo.nn.box_losses import BOX_LOSSES
from yolo.nn.boxes import points_in_boxes
from yolo.nn.class_losses import CLASS_LOSSES, SparseTargets
from yolo.nn.losses import LossReport, Targets, dfl_loss


def identity(value: Tensor) -> Tensor:
    """Return `value`: the sum over ranks when there is one."""
    return value


@dataclass(frozen=True, slots=True)
class Positives:
    """The positions that learn an object; those with `mask` False are padding of weight 0.

    Attributes:
        index: (B, M) int64 anchors, distinct within an image.
        mask: (B, M) bool.
        quality: (B, M) soft class target, which also weights the box terms; 0 for padding.
        labels: (B, M) int64 classes.
        boxes: (B, M, box size) assigned boxes in pixels.
        gt_index: (B, M) int64 gt slots.
        fg_mask: (B, A) bool, the same positives over all anchors.
        normaliser: scalar, the sum of all quality over all ranks, at least 1.
        images: scalar, the number of images over all ranks.
    """

    index: Tensor
    mask: Tensor
    quality: Tensor
    labels: Tensor
    boxes: Tensor
    gt_index: Tensor
    fg_mask: Tensor
    normaliser: Tensor
    images: Tensor


class DetectionCriterion(nn.Module):
    """Class, box and distribution focal loss of a detection head.

    A task with more terms subclasses this, extends `names`, and overrides `terms`; one with other
    boxes overrides `boxes_at`, `sides_of` and `scaled`.

    Args:
        num_classes: C.
        strides: pixels of each level's stride, finest first.
        reg_max: R; with 1 the head gives the four distances themselves and there is no dfl term.
        box: gain of the box term.
        cls: gain of the class term.
        dfl: gain of the distribution term.
        assigner: a name in `assigners`, a mapping with `name` and options, or an object.
        cls_loss: a name in CLASS_LOSSES, or a mapping with `name` and options.
        box_loss: likewise, in `box_losses`.
        sum_over_ranks: adds a tensor over all ranks of a distributed run; normalisers and the
            number of images go through it, so that the ranks' totals add up to the loss of one.

    Raises:
        UnknownNameError: if a part isn't registered.
        ConfigError: if a part has no such option.
    """

    names: tuple[str, ...] = ("box", "cls", "dfl")
    assigners = ASSIGNERS
    box_losses = BOX_LOSSES
    box_outputs: tuple[str, ...] = ("boxes",)
    """The head's raw outputs that boxes are made of."""

    def __init__(
        self,
        num_classes: int,
        strides: Sequence[int],
        reg_max: int = 16,
        *,
        box: float = 7.5,
        cls: float = 0.5,
        dfl: float = 1.5,
        assigner: str | Mapping[str, Any] | Assigner = "task_aligned",
        cls_loss: str | Mapping[str, Any] = "bce",
        box_loss: str | Mapping[str, Any] = "ciou",
        sum_over_ranks: Callable[[Tensor], Tensor] = identity,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.reg_max = reg_max
        self.gains = {"box": box, "cls": cls, "dfl": dfl}
        self.assigner = build_assigner(assigner, self.assigners)
        self.class_loss = CLASS_LOSSES.function(cls_loss)
        self.box_loss = self.box_losses.function(box_loss)
        self.sum_over_ranks = sum_over_ranks
        if reg_max == 1:
            self.names = tuple(name for name in self.names if name != "dfl")

    def forward(self, raw: Mapping[str, Tensor], targets: Targets) -> LossReport:
        """Compare a head's raw output with the ground truth.

        Args:
            raw: `boxes` (B, 4*R, A) distance logits, `scores` (B, C, A) class logits, `points`
                (A, 2) in stride units, `strides` (A, 1) in pixels, and what the task adds.
            targets: the ground truth on the same device.
        """
        device_type = raw["scores"].device.type
        # Under autocast a matrix product would fall back to half precision.
        with torch.autocast(device_type, enabled=False):
            full = {name: value.float() for name, value in raw.items()}
            positives = self.match(full, targets)
            terms = self.terms(full, targets, positives)
            items = {name: terms[name] * self.gains[name] for name in self.names}
            total = torch.stack(list(items.values())).sum() * positives.images
        parts = {name: item.detach() for name, item in items.items()}
        return LossReport(total, parts, positives.images, items)

    def terms(
        self, raw: Mapping[str, Tensor], targets: Targets, positives: Positives
    ) -> dict[str, Tensor]:
        """Return the scalar terms by name, normalised, without gains."""
        class_targets = SparseTargets(
            positives.index,
            positives.labels,
            positives.quality,
            _ignored(raw, targets, positives.fg_mask),
        )
        class_sum = self.class_loss(raw["scores"], class_targets)
        terms = {"cls": class_sum / positives.normaliser}
        return terms | self.box_terms(raw, positives)

    def box_terms(self, raw: Mapping[str, Tensor], positives: Positives) -> dict[str, Tensor]:
        """Return the box term and, where sides are distributions, the dfl term."""
        index = positives.index
        points, strides = raw["points"][index], raw["strides"][index]
        chosen = {name: gather_anchors(raw[name], index) for name in self.box_outputs}
        boxes = self.scaled(positives.boxes, 1 / strides)
        share = positives.quality / positives.normaliser
        terms = {"box": (self.box_loss(self.boxes_at(chosen, points), boxes) * share).sum()}
        if self.reg_max > 1:
            logits = chosen["boxes"].mT.reshape(*index.shape, 4, self.reg_max)
            terms["dfl"] = (dfl_loss(logits, self.sides_of(boxes, points)) * share).sum()
        return terms

    @torch.no_grad()
    def match(self, raw: Mapping[str, Tensor], targets: Targets) -> Positives:
        """Assign objects to anchors and gather the positions that may be positive."""
        anchors = raw["points"].shape[0]
        assignment = self.assigner(
            raw["scores"].mT,
            self.decode(raw),
            raw["points"] * raw["strides"],
            targets.classes,
            targets.boxes,
            targets.mask,
            from_logits=True,
            strides_px=raw["strides"],
            levels=self.strides,
        )
        fg_mask = assignment.fg_mask
        index = _foreground(fg_mask, self.assigner.max_positives(targets.mask.shape[1], anchors))
        quality = assignment.quality.sum()
        count = torch.full_like(quality, len(fg_mask))
        total_quality, images = self.sum_over_ranks(torch.stack((quality, count))).unbind()
        return Positives(
            index=index,
            mask=fg_mask.gather(1, index),
            quality=assignment.quality.gather(1, index),
            labels=assignment.target_labels.gather(1, index),
            boxes=gather_anchors(assignment.target_bboxes.mT, index).mT,
            gt_index=assignment.target_gt_idx.gather(1, index),
            fg_mask=fg_mask,
            normaliser=total_quality.clamp(min=1),
            images=images,
        )

    def decode(self, raw: Mapping[str, Tensor]) -> Tensor:
        """Return the predicted boxes (B, A, box size) in pixels, as the assigner compares them."""
        return self.scaled(self.boxes_at(raw, raw["points"]), raw["strides"])

    # What boxes are; all in strides.

    def boxes_at(self, raw: Mapping[str, Tensor], points: Tensor) -> Tensor:
        """Return the boxes (B, P, size) that raw `box_outputs` (B, .., P) mean at points (P, 2)."""
        return ltrb_to_boxes(self.distances(raw["boxes"]), points)

    def sides_of(self, boxes: Tensor, points: Tensor) -> Tensor:
        """Return the distances (B, P, 4) of points to the sides of boxes (B, P, box size)."""
        return boxes_to_ltrb(boxes, points)

    def scaled(self, boxes: Tensor, gain: Tensor) -> Tensor:
        """Return boxes (.., box size) times a gain (.., 1)."""
        return boxes * gain

    def distances(self, sides: Tensor) -> Tensor:
        """Return the distances (B, P, 4) in strides that raw sides (B, 4*R, P) stand for."""
        if self.reg_max == 1:
            return sides.mT
        bins = torch.arange(self.reg_max, dtype=sides.dtype, device=sides.device)
        batch, _, places = sides.shape
        # Along memory, whichever way the head wrote it; and not as a matrix product on a GPU, which
        # would round to TF32 where a user allows that.
        if sides.is_contiguous():
            by_side = sides.view(batch, 4, self.reg_max, places)
            return (by_side.softmax(2) * bins[:, None]).sum(2).mT
        by_anchor = sides.mT.reshape(batch, places, 4, self.reg_max).softmax(3)
        return by_anchor @ bins if on_host(sides) else (by_anchor * bins).sum(3)


def gather_anchors(values: Tensor, index: Tensor) -> Tensor:
    """Pick anchors of each image: values (B, K, A), index (B, M) -> (B, K, M).

    Values that lie in memory as (B, A, K) get a gradient that lies there likewise.
    """
    if values.is_contiguous():
        return values.gather(2, index[:, None].expand(-1, values.shape[1], -1))
    return values.mT.gather(1, index[..., None].expand(-1, -1, values.shape[1])).mT


def _foreground(fg_mask: Tensor, bound: int) -> Tensor:
    """Return (B, bound or fewer) distinct anchors that include all foreground ones."""
    anchors = fg_mask.shape[1]
    if on_host(fg_mask):
        bound = min(bound, max(int(fg_mask.sum(1).max()), 1))
    if bound >= anchors:
        return torch.arange(anchors, device=fg_mask.device).expand(fg_mask.shape[0], -1)
    return fg_mask.float().topk(bound, dim=1, sorted=False).indices


def _ignored(raw: Mapping[str, Tensor], targets: Targets, fg_mask: Tensor) -> Tensor | None:
    """Return (B, A), True for background inside an ignored region; None without regions."""
    if targets.ignore is None or targets.ignore.shape[1] == 0:
        return None
    inside = points_in_boxes(raw["points"] * raw["strides"], targets.ignore).any(1)
    return inside & ~fg_mask
