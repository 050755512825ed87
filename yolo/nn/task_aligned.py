# SPDX-License-Identifier: Apache-2.0
"""Task-aligned assignment: anchors that classify and localise an object well learn it.

Shape letters: B batch, A anchor points, n gt slots (padded), C classes, k gt slots of one chunk,
P pairs of an object and an anchor inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

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
    chunks,
    on_host,
)


class Pairs(NamedTuple):
    """What is known of all pairs of an object and an anchor.

    Attributes:
        scores: (B, C, A) as the network gives them: a class of an image is one row.
        read: turns scores into what the alignment multiplies, score^alpha.
        boxes: (B, A, 4 or 5) predicted.
        gt_labels: (B, n) class ids.
        gt_boxes: (B, n, 4 or 5).
    """

    scores: Tensor
    read: Callable[[Tensor], Tensor]
    boxes: Tensor
    gt_labels: Tensor
    gt_boxes: Tensor


class Lists(NamedTuple):
    """What the objects of a chunk want, and whom each anchor overlaps most.

    Attributes:
        place: (L,) flat anchors (image * A + anchor) on the objects' lists.
        slot: (L,) gt slots of these objects.
        listed: (L,) int64 1, or 0 for an entry that fills up a list.
        most: (B * A,) largest overlap with an object that the anchor is inside, or -1.
        owner: (B * A,) gt slot of that object; any where there is none.
    """

    place: Tensor
    slot: Tensor
    listed: Tensor
    most: Tensor
    owner: Tensor


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

        pairs = Pairs(pred_scores.transpose(1, 2), read, pred_boxes, gt_labels, gt_boxes)
        fg_mask, gt_idx = self._match(pairs, points_px, gt_mask)
        labels = gt_labels.gather(1, gt_idx)
        boxes = gt_boxes.gather(1, gt_idx[..., None].expand(-1, -1, gt_boxes.shape[2]))
        overlap = self.alikeness(boxes, pred_boxes) * fg_mask
        score = read(pairs.scores.gather(1, labels[:, None]).squeeze(1))
        alignment = score * _power(overlap, self.beta)
        quality = alignment * _peak_ratio(overlap, alignment, gt_idx, gt_boxes.shape[1])
        return Assignment(labels, boxes, fg_mask, gt_idx, quality, num_classes)

    def _match(self, pairs: Pairs, points_px: Tensor, gt_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, A) foreground and gt slot."""
        gt_boxes = pairs.gt_boxes
        look = self._sparse_lists if on_host(gt_boxes) else self._dense_lists
        batch, anchors = len(gt_boxes), len(points_px)
        # One flat index: one-dimensional integer scatter is deterministic on every device.
        lists = torch.zeros(batch * anchors, dtype=torch.int64, device=gt_boxes.device)
        lister, best_gt = torch.zeros_like(lists), torch.zeros_like(lists)
        best_overlap = gt_boxes.new_full((batch * anchors,), -1.0)
        for part in chunks(gt_boxes, points_px, self.pairs_per_chunk):
            inside = self.contains(gt_boxes[:, part], points_px)
            inside.logical_and_(gt_mask[:, part, None])
            found = look(pairs, inside, part.start)
            lists.scatter_add_(0, found.place, found.listed)
            lister.scatter_add_(0, found.place, found.listed * found.slot)
            best_gt = torch.where(found.most > best_overlap, found.owner, best_gt)
            best_overlap = torch.maximum(best_overlap, found.most)
        # On one list, the sum of listing slots is that slot; on none it is 0.
        gt_idx = torch.where(lists > 1, best_gt, lister)
        return (lists > 0).view(batch, anchors), gt_idx.view(batch, anchors)

    def _dense_lists(self, pairs: Pairs, inside: Tensor, start: int) -> Lists:
        """Look at all pairs of a chunk (B, k, A), so that no shape depends on the data."""
        batch, slots, anchors = inside.shape
        part = slice(start, start + slots)
        images = torch.arange(batch, device=inside.device)[:, None]
        outside = inside.logical_not()
        overlap = self.alikeness(pairs.gt_boxes[:, part, None], pairs.boxes[:, None])
        score = pairs.read(pairs.scores[images, pairs.gt_labels[:, part]])
        alignment = score * _power(overlap, self.beta)
        alignment.masked_fill_(outside, -1.0)
        overlap.masked_fill_(outside, -1.0)
        value, place = alignment.topk(min(self.topk, anchors), dim=2, sorted=False)
        slot = torch.arange(start, start + slots, device=inside.device)[:, None].expand_as(place)
        most, owner = overlap.max(dim=1)
        return Lists(
            (place + images[..., None] * anchors).flatten(),
            slot.flatten(),
            (value >= 0).long().flatten(),
            most.flatten(),
            owner.flatten() + start,
        )

    def _sparse_lists(self, pairs: Pairs, inside: Tensor, start: int) -> Lists:
        """Look at the pairs whose anchor is inside alone: one in twenty, in a usual scene."""
        batch, slots, anchors = inside.shape
        image, slot, anchor = inside.nonzero().unbind(1)
        group, slot = image * slots + slot, slot + start
        every = pairs.gt_labels.shape[1]
        place, thing = image * anchors + anchor, image * every + slot
        overlap = self.alikeness(
            pairs.gt_boxes.flatten(0, 1).index_select(0, thing),
            pairs.boxes.flatten(0, 1).index_select(0, place),
        )
        label = pairs.gt_labels.flatten().index_select(0, thing)
        score = pairs.read(pairs.scores[image, label, anchor])
        first = first_of_each(score * _power(overlap, self.beta), group, batch * slots, self.topk)
        most = overlap.new_full((batch * anchors,), -1.0)
        most.scatter_reduce_(0, place, overlap, "amax")
        wins = (overlap == most.index_select(0, place)).nonzero().squeeze(1)
        owner = torch.full_like(most, every, dtype=torch.int64)
        owner.scatter_reduce_(0, place[wins], slot[wins], "amin")
        place, slot = place[first], slot[first]
        return Lists(place, slot, torch.ones_like(place), most, owner)


@ROTATED_ASSIGNERS.register("task_aligned")
class RotatedTaskAlignedAssigner(RotatedBoxes, TaskAlignedAssigner):
    """The same for boxes_xywhr, by their probabilistic IoU."""


def first_of_each(value: Tensor, group: Tensor, groups: int, count: int) -> Tensor:
    """Return the indices of the `count` largest values of each group, in any order.

    Args:
        value: (P,) from 0 on.
        group: (P,) int64, 0..groups-1, ascending.
        groups: number of groups.
        count: of values to find in a group.
    """
    sizes = group.bincount(minlength=groups)
    before = sizes.cumsum(0) - sizes
    width = max(int(sizes.max()), count)
    padded = value.new_full((groups, width), -1.0)
    rank = torch.arange(len(value), device=value.device) - before[group]
    padded.view(-1)[group * width + rank] = value
    best, place = padded.topk(count, dim=1, sorted=False)
    return (place + before[:, None])[best >= 0]


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
