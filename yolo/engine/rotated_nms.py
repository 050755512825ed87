# SPDX-License-Identifier: Apache-2.0
"""Suppression among rotated boxes by their probabilistic IoU, on NumPy arrays or tensors alike.

The rule is the classic one of this family and takes one pass: a box goes if any better box of its
class overlaps it by more than the threshold, even one that goes itself. (Among upright boxes the
rule is greedy, see `yolo.engine.nms`.)

Cost: candidates come in blocks, and the search stops at `max_det` survivors. Most of a block go by
a survivor; the others are compared with all better boxes, fewer and fewer of them. Only those pairs
are worked out whose centres are near enough for such an overlap.
"""

from __future__ import annotations

import math
from typing import Any

from yolo.nn.rotated import array_module, prob_iou

BLOCK = 256
"""Candidates looked at together."""


def survivors(boxes: Any, labels: Any, iou: float, max_det: int) -> Any:
    """Return the positions (n,) of the boxes that stay, in order, at most `max_det`.

    Args:
        boxes: (N, 5) boxes_xywhr, best first.
        labels: (N,) classes.
        iou: boxes that overlap a better one by more than this go.
        max_det: most boxes kept.
    """
    lib = array_module(boxes)
    everyone = lib.cumsum(labels == labels, 0) - 1  # 0, 1, 2 ... where the labels are
    reach = lib.amax(boxes[:, 2:4], 1) ** 2 * _reach(iou)

    def stays(better: Any, worse: Any) -> Any:
        """Tell which of `worse` no box of `better` that ranks above it suppresses."""
        x, y = (boxes[better, None, axis] - boxes[None, worse, axis] for axis in (0, 1))
        near = x * x + y * y <= reach[better, None] + reach[None, worse]
        near &= labels[better, None] == labels[None, worse]
        near &= better[:, None] < worse[None]
        first, second = lib.where(near)
        over = prob_iou(boxes[better[first]], boxes[worse[second]]) > iou
        good = worse >= 0
        good[second[over]] = False
        return good

    kept = everyone[:0]
    for start in range(0, len(boxes), BLOCK):
        if len(kept) >= max_det:
            break
        block = everyone[start : start + BLOCK]
        block = block[stays(kept, block)]
        for first in range(0, start + BLOCK, 4 * BLOCK):
            block = block[stays(everyone[first : min(first + 4 * BLOCK, start + BLOCK)], block)]
        kept = lib.concatenate((kept, block))
    return kept[:max_det]


def _reach(iou: float) -> float:
    """Return the share r for which boxes with d^2 > r (m1^2 + m2^2) overlap by at most `iou`.

    d is the distance of the centres, m the longer side. The Bhattacharyya distance is at least
    d^2 / 4 over the sum of both largest variances, m^2 / 12 each. A hundredth is for rounding.
    """
    return math.inf if iou <= 0 else -math.log1p(-((1 - iou) ** 2)) / 3 * 1.01
