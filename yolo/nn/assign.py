# SPDX-License-Identifier: Apache-2.0
"""Assigners: which anchor point learns which object, and how strongly.

Shape letters: B batch, A anchor points, n gt slots (padded), C classes, k gt slots of one chunk.

All shapes are static and nothing is copied to the host, so a CUDA step never waits; on the CPU,
where there is nothing to wait for, only pairs that can match may be looked at. Work over the
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

HOST = {"cpu"}
"""Device types whose values can be asked for without waiting."""

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


def on_host(tensor: Tensor) -> bool:
    """Tell whether shapes may depend on the values of `tensor`, since nobody waits for them."""
    return tensor.device.type in HOST


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
