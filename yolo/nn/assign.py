# SPDX-License-Identifier: Apache-2.0
"""Assigners: which anchor point learns which object, and how strongly.

Shape letters: B batch, A anchor points, n gt slots (padded), C classes, k gt slots of one chunk.

All shapes are static and nothing is copied to the host, so a CUDA step never waits. Work over the
B x n x A pairs goes in chunks of gt slots, because lists of candidates don't depend on each other:
a crowd of 5,000 objects needs no more memory than a chunk and gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from yolo.errors import ConfigError
from yolo.nn import rotated
from yolo.nn.boxes import ciou, iou, points_in_boxes
from yolo.registry import Registry

PAIRS_PER_CHUNK = {"cpu": 2**19, "cuda": 2**24}
"""Object-anchor pairs worked on at once: on the CPU few enough for its cache (about ten float32
temporaries of 2 MB), on a GPU enough to fill it (about ten of 64 MB)."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What each anchor point learns. Unpacks as the first five, `target_scores` third.

    Attributes:
        target_labels: (B, A) int64 class of the assigned object; `num_classes` when n is 0.
        target_bboxes: (B, A, box size) its box, pixels.
        fg_mask: (B, A) bool, True where an object is assigned. Elsewhere labels and boxes are
            those of gt 0 and mean nothing.
        target_gt_idx: (B, A) int64 gt slot, 0 for background.
        quality: (B, A) soft target in 0..1 for the assigned class, 0 for background.
        num_classes: C.
    """

    target_labels: Tensor
    target_bboxes: Tensor
    fg_mask: Tensor
    target_gt_idx: Tensor
    quality: Tensor
    num_classes: int

    @property
    def target_scores(self) -> Tensor:
        """(B, A, C) soft class targets; made on demand, a loss does better with `quality`."""
        dense = self.quality.new_zeros(*self.quality.shape, self.num_classes)
        labels = self.target_labels.clamp(max=self.num_classes - 1)
        return dense.scatter_(2, labels[..., None], self.quality[..., None])

    def __iter__(self) -> Iterator[Tensor]:
        yield self.target_labels
        yield self.target_bboxes
        yield self.target_scores
        yield self.fg_mask
        yield self.target_gt_idx


class Assigner(Protocol):
    """Predictions and padded ground truth in, an `Assignment` out; no state, no gradients."""

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
        """Assign objects to anchor points.

        Args:
            pred_scores: (B, A, C) class probabilities, or logits if `from_logits`. May be a
                transposed view.
            pred_boxes: (B, A, 4) boxes_xyxy in pixels, or whatever boxes the assigner compares.
            points_px: (A, 2) anchor points in pixels, finest level first.
            gt_labels: (B, n) int64 classes; what stands in padding doesn't matter if in 0..C-1.
            gt_boxes: (B, n, 4), of the same kind.
            gt_mask: (B, n) bool, False for padding.
            from_logits: `pred_scores` are logits; the sigmoid is taken only of what is read.
            strides_px: (A, 1) pixels between an anchor point and its neighbours.
            levels: the values in `strides_px`, finest first.
        """
        ...

    def max_positives(self, num_gt: int, num_anchors: int) -> int:
        """Return a bound, known without data, on the foreground anchors of one image."""
        ...


AssignerRegistry = Registry[Callable[..., Assigner]]
ASSIGNERS: AssignerRegistry = Registry("assigner")
ROTATED_ASSIGNERS: AssignerRegistry = Registry("assigner")


def build_assigner(
    choice: str | Mapping[str, Any] | Assigner, registry: AssignerRegistry = ASSIGNERS
) -> Assigner:
    """Return the assigner that a user chose.

    Args:
        choice: a registered name, a mapping with `name` and its options, or the object itself.
        registry: where names are looked up: ASSIGNERS, or ROTATED_ASSIGNERS for boxes_xywhr.

    Raises:
        UnknownNameError: if no assigner has the name.
        ConfigError: if the name is missing or an option doesn't fit.
    """
    if not isinstance(choice, str | Mapping):
        return choice
    make, options = registry.choose(choice)
    try:
        return make(**options)
    except TypeError as error:
        raise ConfigError(f"assigner={choice!r}: {error}; mend or leave out the option") from None


class UprightBoxes:
    """What assigners ask about boxes_xyxy."""

    def contains(self, gt_boxes: Tensor, points_px: Tensor) -> Tensor:
        """Tell which anchor points lie in an object: (B, n, box size) -> (B, n, A) bool."""
        return points_in_boxes(points_px, gt_boxes)

    def overlap(self, gt_boxes: Tensor, pred_boxes: Tensor) -> Tensor:
        """Return the IoU of broadcasting boxes, 0..1."""
        return iou(gt_boxes, pred_boxes)

    def alikeness(self, gt_boxes: Tensor, pred_boxes: Tensor) -> Tensor:
        """Return how well broadcasting boxes agree, 0..1: their CIoU."""
        return ciou(gt_boxes, pred_boxes).clamp_(min=0)

    def middles(self, boxes: Tensor) -> Tensor:
        """Return the centres (..., 2) of boxes."""
        return (boxes[..., :2] + boxes[..., 2:]) / 2

    def squares(self, points_px: Tensor, sides: Tensor) -> Tensor:
        """Return squares (A, box size) around points (A, 2), of sides (A,)."""
        half = sides[:, None] / 2
        return torch.cat((points_px - half, points_px + half), 1)


class RotatedBoxes(UprightBoxes):
    """The same about boxes_xywhr, by their probabilistic IoU; a box's border is inside."""

    def contains(self, gt_boxes: Tensor, points_px: Tensor) -> Tensor:
        """Tell which anchor points lie in an object: (B, n, 5) -> (B, n, A) bool."""
        return rotated.points_in_boxes(points_px, gt_boxes)

    def overlap(self, gt_boxes: Tensor, pred_boxes: Tensor) -> Tensor:
        """Return the probabilistic IoU of broadcasting boxes, 0..1."""
        return rotated.prob_iou(gt_boxes, pred_boxes).clamp_(min=0)

    alikeness = overlap

    def middles(self, boxes: Tensor) -> Tensor:
        """Return the centres (..., 2) of boxes."""
        return boxes[..., :2]

    def squares(self, points_px: Tensor, sides: Tensor) -> Tensor:
        """Return squares (A, 5) around points (A, 2), of sides (A,)."""
        sides = sides[:, None]
        return torch.cat((points_px, sides, sides, torch.zeros_like(sides)), 1)


@ASSIGNERS.register("task_aligned")
class TaskAlignedAssigner(UprightBoxes):
    """Task alignment learning: anchors that classify and localise an object well learn it.

    Each object lists the `topk` anchors inside its box with the largest score^alpha * CIoU^beta;
    an anchor on several lists goes to the object it overlaps most. Soft targets are the alignment,
    scaled so that an object's best anchor gets the object's best overlap.

    Objects smaller than a stride get no special treatment (the classic rule; a newer build of the
    peer widens them). Anchors inside a box whose alignment is exactly 0 come before anchors
    outside it, so an object has foreground wherever an anchor lies inside it.

    Args:
        topk: anchors an object may list.
        alpha: exponent of the class score.
        beta: exponent of the overlap.
        pairs_per_chunk: pairs of object and anchor worked on at once, over the whole batch;
            None takes PAIRS_PER_CHUNK of the device.

    Source: Feng et al., TOOD, arXiv:2108.07755, section 3.2.
    """

    def __init__(
        self,
        topk: int = 10,
        alpha: float = 0.5,
        beta: float = 6.0,
        pairs_per_chunk: int | None = None,
    ) -> None:
        if topk < 1:
            raise ConfigError(f"assigner 'task_aligned': topk must be at least 1, got {topk}")
        self.topk = topk
        self.alpha = alpha
        self.beta = beta
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
        num_classes = pred_scores.shape[2]
        if gt_boxes.shape[1] == 0:
            return all_background(pred_scores, pred_boxes)

        def read(scores: Tensor) -> Tensor:
            return _power(scores.sigmoid() if from_logits else scores, self.alpha)

        scores = pred_scores.transpose(1, 2)  # (B, C, A): a class of an image is one row
        fg_mask, gt_idx = self._match(
            scores, read, pred_boxes, points_px, gt_labels, gt_boxes, gt_mask
        )
        labels = gt_labels.gather(1, gt_idx)
        boxes = gt_boxes.gather(1, gt_idx[..., None].expand(-1, -1, gt_boxes.shape[2]))
        overlap = self.alikeness(boxes, pred_boxes) * fg_mask
        score = read(scores.gather(1, labels[:, None]).squeeze(1))
        alignment = score * _power(overlap, self.beta)
        quality = alignment * _peak_ratio(overlap, alignment, gt_idx, gt_boxes.shape[1])
        return Assignment(labels, boxes, fg_mask, gt_idx, quality, num_classes)

    def _match(
        self,
        scores: Tensor,
        read: Callable[[Tensor], Tensor],
        pred_boxes: Tensor,
        points_px: Tensor,
        gt_labels: Tensor,
        gt_boxes: Tensor,
        gt_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return (B, A) foreground and gt slot; `read` turns stored scores into score^alpha."""
        batch = len(gt_labels)
        anchors = points_px.shape[0]
        device = gt_boxes.device
        images = torch.arange(batch, device=device)[:, None]
        # One flat index: one-dimensional integer scatter is deterministic on every device.
        lists = torch.zeros(batch * anchors, dtype=torch.int64, device=device)
        lister = torch.zeros_like(lists)
        best_overlap = pred_boxes.new_full((batch, anchors), -1.0)
        best_gt = torch.zeros((batch, anchors), dtype=torch.int64, device=device)
        for part in chunks(gt_boxes, points_px, self.pairs_per_chunk):
            outside = self.contains(gt_boxes[:, part], points_px)
            outside.logical_and_(gt_mask[:, part, None]).logical_not_()
            overlap = self.alikeness(gt_boxes[:, part, None], pred_boxes[:, None])
            alignment = read(scores[images, gt_labels[:, part]]) * _power(overlap, self.beta)
            alignment.masked_fill_(outside, -1.0)
            overlap.masked_fill_(outside, -1.0)

            value, place = alignment.topk(min(self.topk, anchors), dim=2, sorted=False)
            listed = (value >= 0).long()
            slots = torch.arange(part.start, part.start + listed.shape[1], device=device)[:, None]
            place = (place + images[..., None] * anchors).flatten()
            lists.scatter_add_(0, place, listed.flatten())
            lister.scatter_add_(0, place, (listed * slots).flatten())

            most, slot = overlap.max(dim=1)
            best_gt = torch.where(most > best_overlap, slot + part.start, best_gt)
            best_overlap = torch.maximum(best_overlap, most)
        lists, lister = lists.view(batch, anchors), lister.view(batch, anchors)
        # On one list, the sum of listing slots is that slot; on none it is 0.
        return lists > 0, torch.where(lists > 1, best_gt, lister)


@ROTATED_ASSIGNERS.register("task_aligned")
class RotatedTaskAlignedAssigner(RotatedBoxes, TaskAlignedAssigner):
    """The same for boxes_xywhr, by their probabilistic IoU."""


def chunks(gt_boxes: Tensor, points_px: Tensor, pairs: int | None) -> Iterator[slice]:
    """Yield slices of gt slots, so that no more than `pairs` pairs are worked on at once.

    Args:
        gt_boxes: (B, n, box size).
        points_px: (A, 2).
        pairs: None takes PAIRS_PER_CHUNK of the device.
    """
    pairs = pairs or PAIRS_PER_CHUNK.get(gt_boxes.device.type, 2**22)
    step = max(1, pairs // max(1, len(gt_boxes) * len(points_px)))
    for start in range(0, gt_boxes.shape[1], step):
        yield slice(start, start + step)


def assigned(
    boxes: UprightBoxes,
    fg_mask: Tensor,
    gt_idx: Tensor,
    pred_scores: Tensor,
    pred_boxes: Tensor,
    gt_labels: Tensor,
    gt_boxes: Tensor,
) -> Assignment:
    """Return the assignment of given slots (B, A) whose soft target is the boxes' overlap."""
    labels = gt_labels.gather(1, gt_idx)
    targets = gt_boxes.gather(1, gt_idx[..., None].expand(-1, -1, gt_boxes.shape[2]))
    quality = boxes.overlap(targets, pred_boxes) * fg_mask
    slots = gt_idx * fg_mask
    return Assignment(labels, targets, fg_mask, slots, quality, pred_scores.shape[2])


def all_background(pred_scores: Tensor, pred_boxes: Tensor) -> Assignment:
    """Return the assignment of a batch without objects."""
    batch, anchors, num_classes = pred_scores.shape
    zeros = torch.zeros((batch, anchors), dtype=torch.int64, device=pred_scores.device)
    return Assignment(
        target_labels=torch.full_like(zeros, num_classes),
        target_bboxes=torch.zeros_like(pred_boxes),
        fg_mask=zeros.bool(),
        target_gt_idx=zeros,
        quality=zeros.to(pred_scores.dtype),
        num_classes=num_classes,
    )


def _peak_ratio(overlap: Tensor, alignment: Tensor, gt_idx: Tensor, num_gt: int) -> Tensor:
    """Return (B, A): the object's best overlap over its best alignment, both of its positives."""
    zeros = overlap.new_zeros(overlap.shape[0], num_gt)
    top_overlap = zeros.scatter_reduce(1, gt_idx, overlap, "amax")
    top_alignment = zeros.scatter_reduce(1, gt_idx, alignment, "amax")
    return (top_overlap / (top_alignment + 1e-9)).gather(1, gt_idx)


def _power(base: Tensor, exponent: float) -> Tensor:
    """Raise to a power; the usual exponents by multiplication, several times faster than pow."""
    if exponent == 1:
        return base
    if exponent == 0.5:
        return base.sqrt()
    if exponent == 6:
        cube = base * base * base
        return cube * cube
    return base.pow(exponent)
