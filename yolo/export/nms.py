# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression as part of an exported graph: finished rows instead of all predictions.

It keeps what `yolo.engine.nms` keeps with the best class of each box, in the same order: greedily
among upright boxes, in one pass by the probabilistic IoU among rotated ones. All shapes but the
batch's are fixed, so results are padded with zeros.

An image's `candidates` surest boxes are looked at, since a matrix over all pairs of boxes, and
TensorRT's TopK, need a bound. The result can only differ from the engine's where more boxes than
that exceed `conf`, and then only if fewer than `max_det` of the surest stay.

In ONNX this becomes NonMaxSuppression and ScatterND (upright boxes), Trilu (rotated ones), TopK,
ArgMax, Gather, GatherElements, GatherND, Range, Pad, Slice, reshapes, reductions and elementwise
operators, all of which TensorRT's parser reads. In other formats torchvision's own operator does
the search, so torchvision has to be imported before such a file is opened.

Shape letters: B images, A anchor points, C classes, E further values, n candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from yolo.nn.rotated import prob_iou

UPRIGHT_CANDIDATES = 3840
"""The most that TensorRT's TopK can select."""

ROTATED_CANDIDATES = 2048
"""All pairs of them are compared."""

HUGE = 3e38
"""Sums of sizes beyond this are taken for infinite."""


class Suppression(nn.Module):
    """Turns decoded predictions into the rows of the boxes that stay.

    Args:
        nc: number of classes.
        conf: scores must exceed this, > 0.
        iou: boxes that overlap a better one of their class by more than this go.
        max_det: rows of the result.
        agnostic: boxes of different classes suppress each other, too.
        rotated: the last value of a prediction is the box's angle.
        candidates: most boxes looked at in an image; None means as many as are affordable.
    """

    def __init__(
        self,
        nc: int,
        *,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        agnostic: bool = False,
        rotated: bool = False,
        candidates: int | None = None,
    ) -> None:
        super().__init__()
        self.nc = nc
        self.conf = conf
        self.iou = iou
        self.max_det = max_det
        self.groups = 1 if agnostic else nc
        self.rotated = rotated
        most = candidates or (ROTATED_CANDIDATES if rotated else UPRIGHT_CANDIDATES)
        self.candidates = max(most, max_det)

    def forward(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Select the rows of each image.

        Args:
            outputs: (B, 4 + C + E, A) boxes_xywh, scores 0..1, further values; and what else the
                network gives, which is passed on.

        Returns:
            (B, max_det, 6 + E) float32: boxes_xyxy (rotated: centre and sides), score, class,
            further values, in descending order of score, then rows of zeros; and the rest.
        """
        pred, *rest = outputs
        # Without a branch for what isn't finite: a comparison with NaN is false.
        scores = pred[:, 4 : 4 + self.nc]
        best, labels = torch.where(scores > self.conf, scores, 0).max(1)
        values = torch.cat((pred[:, :4], pred[:, 4 + self.nc :]), 1)
        size = values[:, :4].abs().sum(1) + (values[:, -1].abs() if self.rotated else 0)
        best = torch.where(size < HUGE, best, 0)

        best, anchors = self._candidates(best)
        labels = labels.gather(1, anchors)
        values = chosen(values.mT, anchors).mT
        if self.rotated:
            boxes = values[:, :4]
            shape = torch.cat((boxes, values[:, -1:]), 1).mT
            stays = rotated_survivors(shape, best, self._grouped(labels), self.iou)
        else:
            half = values[:, 2:4] * 0.5
            boxes = torch.cat((values[:, :2] - half, values[:, :2] + half), 1)
            stays = self._greedy(boxes.mT, best, self._grouped(labels))

        rows = torch.cat((boxes, best[:, None], labels[:, None].to(best.dtype), values[:, 4:]), 1)
        score, places = surest(torch.where(stays, best, 0), self.max_det)
        return torch.where(score[..., None] > 0, chosen(rows.mT, places), 0), *rest

    def _candidates(self, best: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and anchors (B, n) of the surest boxes; the score of none is 0."""
        count, anchors = self.candidates, best.shape[1]
        fixed = type(anchors) is int and not torch.jit.is_tracing()
        if fixed:
            count = max(min(count, anchors), self.max_det)
        if not fixed or anchors < count:
            best = nn.functional.pad(best, (0, count))
        best, places = surest(best, count)
        return best, places.clamp(max=anchors - 1)

    def _grouped(self, labels: Tensor) -> Tensor:
        return labels if self.groups > 1 else torch.zeros_like(labels)

    def _greedy(self, boxes_xyxy: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
        """Tell which boxes (B, n, 4) stay; `scores` (B, n) descend, 0 is for no box."""
        if not torch.onnx.is_in_onnx_export():
            return greedy_survivors(boxes_xyxy, scores, groups, self.iou)
        # The operator compares boxes of one class; a class's scores are zero for all others.
        classes = torch.arange(self.groups, device=groups.device)[:, None]
        scores = torch.where(groups[:, None] == classes, scores[:, None], 0)
        kept: Tensor = torch.ops.yolo.select_boxes(
            boxes_xyxy.contiguous(), scores, self.max_det, self.iou, self.conf
        )
        return kept > 0


def surest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` best scores of each row (B, A) and their places; of equals the first."""
    if torch.onnx.is_in_onnx_export():  # where equal scores rank by place
        found = scores.topk(count, 1)
        return found.values, found.indices
    values, places = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :count], places[:, :count]


def chosen(rows: Tensor, places: Tensor) -> Tensor:
    """Return the rows (B, n, E) of each image's (B, A, E) that stand at `places` (B, n)."""
    starts = torch.arange(rows.shape[0], device=rows.device)[:, None] * rows.shape[1]
    return rows.flatten(0, 1)[places + starts]


def greedy_survivors(boxes_xyxy: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Tell which boxes no better one of their group that stays itself overlaps by more than `iou`.

    All images are searched at once, boxes of different images and groups being moved apart in
    double precision, which leaves their coordinates exact.

    Args:
        boxes_xyxy: (B, n, 4).
        scores: (B, n) descending; 0 is for no box.
        groups: (B, n) whole numbers >= 0.
        iou: the threshold.

    Returns:
        (B, n) bool.
    """
    exists = (scores > 0)[..., None]
    boxes = torch.where(exists, boxes_xyxy, 0).double()
    span = boxes.amax() - boxes.amin() + 1
    images = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    moved = boxes + ((images * (groups.max() + 1) + groups + 1) * span)[..., None]
    # What is no box lies in one pile of unit squares, which takes one step of the search.
    pile = boxes.amin() + torch.arange(4, device=boxes.device) // 2
    boxes = torch.where(exists, moved, pile).flatten(0, 1)
    # Two more beside it, since torch.export takes for granted that two stay at least.
    boxes = torch.cat((boxes, torch.stack((pile - 2, pile - 4))))
    kept = nms(boxes, nn.functional.pad(scores.double().flatten(), (0, 2)), iou)
    stays = torch.zeros_like(boxes[:, 0]).scatter(0, kept, 1.0)[:-2]
    return stays.view_as(scores) > 0


def rotated_survivors(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Tell which boxes no better one of their group overlaps by more than `iou`: (B, n) bool.

    Args:
        boxes: (B, n, 5) boxes_xywhr.
        scores: (B, n) descending; 0 is for no box.
        groups: (B, n) whole numbers.
        iou: the threshold, of the probabilistic IoU.
    """
    over = prob_iou(boxes[:, :, None], boxes[:, None]) > iou
    over = over & (groups[:, :, None] == groups[:, None])
    return over.to(boxes.dtype).triu(1).amax(1) == 0


@torch.library.custom_op("yolo::select_boxes", mutates_args=())
def _select_boxes(boxes: Tensor, scores: Tensor, limit: int, iou: float, conf: float) -> Tensor:
    """Stand for ONNX's NonMaxSuppression, which gives a list, followed by marking what is on it.

    Args:
        boxes: (B, n, 4) boxes_xyxy.
        scores: (B, C, n); a box has one class over `conf`, boxes descend by it.
        limit: most boxes of a class.
        iou: the threshold.
        conf: scores must exceed this.

    Returns:
        (B, n), 1 for the boxes that stay and 0 for others.
    """
    best, groups = torch.where(scores > conf, scores, 0).max(1)
    return (greedy_survivors(boxes, best, groups, iou) & (best > 0)).to(boxes.dtype)


@_select_boxes.register_fake
def _(boxes: Tensor, scores: Tensor, limit: int, iou: float, conf: float) -> Tensor:
    return boxes.new_empty(boxes.shape[:2])


def onnx_translations() -> dict[Any, Callable[..., Any]]:
    """Return what `torch.onnx.export` needs as `custom_translation_table`."""
    import onnxscript

    op: Any = onnxscript.opset18

    def select_boxes(boxes: Any, scores: Any, limit: int, iou: float, conf: float) -> Any:
        number, share, least = (
            op.Constant(value_ints=[limit]),
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[conf]),
        )
        found = op.NonMaxSuppression(boxes, scores, number, share, least)  # image, class, box
        places = op.Gather(found, op.Constant(value_ints=[0, 2]), axis=1)
        none = op.Mul(op.ReduceSum(boxes, op.Constant(value_ints=[2]), keepdims=0), 0.0)
        ones = op.Cast(op.GreaterOrEqual(op.Gather(places, 0, axis=1), 0), to=1)
        return op.ScatterND(none, places, ones)

    return {torch.ops.yolo.select_boxes.default: select_boxes}
