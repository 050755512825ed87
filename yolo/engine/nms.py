# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression of decoded predictions, on NumPy arrays with torch absent.

Shape letters: B batch, A anchor points, C classes, E further values of a prediction (mask
coefficients, keypoints), n kept boxes.

The rule is the greedy one, exactly: candidates in descending order of score; one is kept unless a
kept box of its class overlaps it by more than the threshold. Equal scores rank by anchor, then by
class, so that a result never depends on a sort's whim. There is no limit of time. Classes are
compared, not moved apart by an offset, which would cost the coordinates their last bits.

Cost: the search stops at `max_det` kept boxes and works in blocks, so that it needs neither a
matrix over all candidates nor a step of Python for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from yolo.engine.rotated_nms import survivors

BLOCK = 256
"""Candidates compared at once: 256 x 256 overlaps stay in a core's cache."""


def non_max_suppression(
    pred: Any,
    *,
    conf: float = 0.25,
    iou: float = 0.7,
    nc: int | None = None,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    max_det: int = 300,
    max_nms: int = 30000,
    rotated: bool = False,
    return_indices: bool = False,
) -> Any:
    """Keep the best of overlapping boxes in each image.

    Args:
        pred: (B, 4 + C + E, A) boxes_xywh, scores 0..1, further values; a NumPy array or a torch
            tensor. A CPU tensor is read in place; a CUDA tensor is worked on where it is.
        conf: scores must exceed this.
        iou: boxes that overlap a better one by more than this go.
        nc: C; None means that there are no further values.
        classes: keep only these class ids.
        agnostic: boxes of different classes suppress each other, too.
        multi_label: a box stands for each class over `conf`, not just its best one.
        max_det: most boxes kept an image.
        max_nms: most candidates looked at an image, the surest first.
        rotated: the last value is the box's angle in radians; the rule is `rotated_nms`'s.
        return_indices: also return which anchor each kept box came from.

    Returns:
        B arrays (n, 6 + E): boxes_xyxy (rotated: centre and sides), score, class, further values,
        in descending order of score, float32, of the same library and device as `pred`. With
        `return_indices` a tuple of that list and B int64 arrays (n,) of anchors. Predictions that
        aren't finite are never kept.

    Raises:
        ValueError: if `pred` has another shape, or fewer rows than the classes need.
    """
    if pred.ndim != 3 or pred.shape[1] < 4 + (nc or 1):
        raise ValueError(
            f"expected predictions (B, 4 + {nc or 'C'} + E, A), got {tuple(pred.shape)}"
        )
    nc = nc or pred.shape[1] - 4
    wanted = None if classes is None else sorted(set(classes))
    rule = _Rule(conf, iou, nc, wanted, agnostic, multi_label and nc > 1, max_det, max_nms, rotated)
    pairs: list[tuple[Any, Any]]
    if isinstance(pred, np.ndarray):
        pairs = [_suppress(image.astype(np.float32, copy=False), rule) for image in pred]
    elif pred.device.type == "cpu":
        import torch

        found = [_suppress(image, rule) for image in pred.detach().float().numpy()]
        pairs = [(torch.from_numpy(rows), torch.from_numpy(places)) for rows, places in found]
    else:
        pairs = [_suppress_on_device(image.detach().float(), rule) for image in pred]
    kept = [rows for rows, _ in pairs]
    return (kept, [places for _, places in pairs]) if return_indices else kept


def filter_rows(
    rows: Any, *, conf: float, max_det: int = 300, classes: Sequence[int] | None = None
) -> list[Any]:
    """Select from finished rows, as networks with the suppression inside give them.

    Args:
        rows: (B, n, 6 + E) boxes_xyxy, score, class, further values, descending by score, padded.
        conf: scores must exceed this.
        max_det: most rows an image.
        classes: keep only these class ids.

    Returns:
        B arrays (n, 6 + E) of the same library.
    """
    kept = []
    for image in rows:
        good = image[:, 4] > conf
        if classes is not None:
            good = good & sum((image[:, 5] == c for c in set(classes)), start=good & False)
        kept.append(image[good][:max_det])
    return kept


class _Rule(NamedTuple):
    """The options of `non_max_suppression`; `classes` sorted, `multi_label` only for several."""

    conf: float
    iou: float
    nc: int
    classes: list[int] | None
    agnostic: bool
    multi_label: bool
    max_det: int
    max_nms: int
    rotated: bool

    @property
    def shape(self) -> list[int]:
        """The rows of a prediction that make the box."""
        return [0, 1, 2, 3, -1] if self.rotated else [0, 1, 2, 3]


def _suppress(image: np.ndarray, rule: _Rule) -> tuple[np.ndarray, np.ndarray]:
    """Return rows (n, 6 + E) and anchors (n,) of one image (4 + C + E, A)."""
    anchors, labels, scores = _candidates(image, rule)
    most = rule.max_nms
    if len(scores) > most:
        # A partition is several times faster than sorting everything; ties are cut by the sort.
        good = np.flatnonzero(scores >= np.partition(scores, -most)[-most])
        anchors, labels, scores = anchors[good], labels[good], scores[good]
    order = np.argsort(-scores, kind="stable")[:most]
    anchors, labels, scores = anchors[order], labels[order], scores[order]

    groups = np.zeros_like(labels) if rule.agnostic else labels
    boxes = image[:4, anchors]
    if rule.rotated:
        turned = np.ascontiguousarray(image[rule.shape][:, anchors].T)
        kept = survivors(turned, groups, rule.iou, rule.max_det)
    else:
        x, y, half_w, half_h = boxes * np.array([[1], [1], [0.5], [0.5]], dtype=np.float32)
        boxes = np.stack((x - half_w, y - half_h, x + half_w, y + half_h))
        kept = _greedy(boxes, groups, rule.iou, rule.max_det)
    anchors = anchors[kept]
    rows = np.concatenate(
        (boxes[:, kept], scores[None, kept], labels[None, kept], image[4 + rule.nc :, anchors])
    )
    return np.ascontiguousarray(rows.T, dtype=np.float32), anchors


def _candidates(image: np.ndarray, rule: _Rule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return anchors, classes and scores (n,) over `conf`, by anchor, then by class.

    What makes the box has to be finite.
    """
    scores = image[4 : 4 + rule.nc]
    best = scores.max(axis=0)
    if not np.isfinite(best).all():
        scores = np.where(np.isfinite(scores), scores, -np.inf)
        best = scores.max(axis=0)
    anchors = np.flatnonzero(best > rule.conf)
    anchors = anchors[np.isfinite(image[rule.shape][:, anchors]).all(axis=0)]
    scores = scores[:, anchors]
    if rule.multi_label:
        which, labels = np.nonzero((scores > rule.conf).T)
        anchors, values = anchors[which], scores[labels, which]
    else:
        labels, values = scores.argmax(axis=0), best[anchors]
    if rule.classes is not None:
        good = np.isin(labels, rule.classes)
        anchors, labels, values = anchors[good], labels[good], values[good]
    return anchors, labels, values


def _greedy(boxes: np.ndarray, labels: np.ndarray, iou: float, max_det: int) -> np.ndarray:
    """Return the positions that the greedy rule keeps of sorted boxes_xyxy, planes (4, n)."""
    kept = np.empty(0, dtype=np.int64)
    for start in range(0, len(labels), BLOCK):
        if len(kept) >= max_det:
            break
        block = np.arange(start, min(start + BLOCK, len(labels)))
        if len(kept):
            block = block[~_conflicts(boxes, labels, kept, block, iou).any(axis=0)]
        conflicts = _conflicts(boxes, labels, block, block, iou)
        gone = np.zeros(len(block), dtype=bool)
        for i in range(len(block)):
            if not gone[i]:
                gone[i + 1 :] |= conflicts[i, i + 1 :]
        kept = np.concatenate((kept, block[~gone]))
    return kept[:max_det]


def _conflicts(
    boxes: np.ndarray, labels: np.ndarray, first: np.ndarray, second: np.ndarray, iou: float
) -> np.ndarray:
    """Tell which pairs share their class and overlap by more than `iou`: (first, second) bool."""
    ax1, ay1, ax2, ay2 = boxes[:, first, None]
    bx1, by1, bx2, by2 = boxes[:, None, second]
    width = np.minimum(ax2, bx2) - np.maximum(ax1, bx1)
    height = np.minimum(ay2, by2) - np.maximum(ay1, by1)
    overlap = np.maximum(width, 0) * np.maximum(height, 0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - overlap
    conflict: np.ndarray = overlap > iou * union
    conflict &= labels[first, None] == labels[None, second]
    return conflict


def _suppress_on_device(image: Any, rule: _Rule) -> tuple[Any, Any]:
    """Do as `_suppress` does, on a tensor's own device."""
    import torch

    scores, turned = image[4 : 4 + rule.nc], image[rule.shape]
    scores = torch.where(scores.isfinite() & turned.isfinite().all(0), scores, -torch.inf)
    if rule.multi_label:
        anchors, labels = torch.nonzero(scores.t() > rule.conf, as_tuple=True)
        values = scores[labels, anchors]
    else:
        best, label = scores.max(0)
        anchors = torch.nonzero(best > rule.conf).flatten()
        labels, values = label[anchors], best[anchors]
    if rule.classes is not None:
        wanted = torch.tensor(rule.classes, dtype=labels.dtype, device=labels.device)
        good = torch.isin(labels, wanted)
        anchors, labels, values = anchors[good], labels[good], values[good]
    order = values.argsort(descending=True, stable=True)[: rule.max_nms]
    anchors, labels, values = anchors[order], labels[order], values[order]

    groups = torch.zeros_like(labels) if rule.agnostic else labels
    if rule.rotated:
        boxes = image[:4, anchors].T
        kept = survivors(turned[:, anchors].T, groups, rule.iou, rule.max_det)
    else:
        centre, half = image[:2, anchors].T, image[2:4, anchors].T / 2
        boxes = torch.cat((centre - half, centre + half), 1)
        kept = _kept_on_device(boxes, groups, rule.iou)[: rule.max_det]
    anchors = anchors[kept]
    extra = image[4 + rule.nc :, anchors].T
    rows = (boxes[kept], values[kept, None], labels[kept, None].float(), extra)
    return torch.cat(rows, 1), anchors


def _kept_on_device(boxes: Any, labels: Any, iou: float) -> Any:
    """Return the positions that the greedy rule keeps of sorted boxes_xyxy (n, 4)."""
    import torch
    from torchvision.ops import nms

    apart = boxes.double()  # doubles keep the coordinates exact when classes are moved apart
    if len(boxes):
        apart = apart + (labels * (apart.max() - apart.min() + 1))[:, None]
    # Ranks for scores: ties are settled already, whatever the kernel's sort does.
    ranks = torch.arange(len(boxes), 0, -1, dtype=apart.dtype, device=apart.device)
    return nms(apart, ranks, iou)
