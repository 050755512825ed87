# SPDX-License-Identifier: Apache-2.0
"""Judge the boxes that a file keeps of an image by all that torch could have kept.

Suppression turns the least difference between two scores into another box, so two lists of boxes
can't be held against each other. But one list alone, equal scores apart, has these properties, by
which any list can be judged:

1. each of its boxes is a candidate;
2. no two of one class overlap by more than the threshold;
3. what isn't in it, though its score is over the floor, overlaps a surer one that is.

Among rotated boxes, which go by those that went themselves, too, a box of the list must overlap no
surer candidate, and what isn't in it must overlap one.

Rows are compared as they come out, overlaps are those of the boxes that the network gave: what is
limited to the image afterwards overlaps otherwise.

Shapes: n rows, k candidates, each (6 + E): box, score, class, further values.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from yolo.nn.rotated import prob_iou


class Judgement(NamedTuple):
    """What a list of boxes is worth.

    Attributes:
        places: (n,) the candidate that each row is, -1 for none.
        wrong: (w,) rows that shouldn't be there.
        missing: (m,) candidates that should.
    """

    places: np.ndarray
    wrong: np.ndarray
    missing: np.ndarray


def judge(
    rows: np.ndarray,
    candidates: np.ndarray,
    restored: np.ndarray,
    limits: np.ndarray,
    *,
    iou: float,
    slack: float,
    tie: float,
    floor: float,
    rotated: bool = False,
    agnostic: bool = False,
) -> Judgement:
    """Judge the rows of one image.

    Args:
        rows: (n, 6 + E).
        candidates: (k, 6 + E) before the suppression; boxes_xyxy, or centre and sides where
            `rotated`, whose angle is the last value.
        restored: (k, 6 + E) the same as they would come out.
        limits: (n, 6 + E) > 0, how far a row's numbers may be from its candidate's.
        iou: boxes that overlap by more suppress each other.
        slack: how far an overlap may be from the threshold and still be on either side of it.
        tie: scores that are no further apart are equal.
        floor: score over which a candidate has to be kept or suppressed.
        rotated: see above.
        agnostic: boxes of different classes suppress each other, too.
    """
    found = [_nearest(row, restored, most) for row, most in zip(rows, limits, strict=True)]
    places = np.array(found, dtype=np.int64)
    scores, labels = candidates[:, 4], candidates[:, 5]
    kept, gone, crowded = np.zeros((3, len(candidates)), dtype=bool)
    kept[places[places >= 0]] = True
    for place in np.flatnonzero(kept | rotated):
        share = overlaps(candidates[place], candidates, rotated)
        share[place] = 0
        if not agnostic:
            share[labels != labels[place]] = 0
        gone |= (share > iou - slack) & (scores <= scores[place] + tie)
        crowded |= (share > iou + slack) & (kept[place] | (scores < scores[place] - tie))
    twice = np.bincount(places[places >= 0], minlength=len(candidates)) > 1
    wrong = np.array([i < 0 or bool(crowded[i] or twice[i]) for i in places], dtype=bool)
    missing = ~kept & ~gone & (scores > floor + tie)
    return Judgement(places, np.flatnonzero(wrong), np.flatnonzero(missing))


def _nearest(row: np.ndarray, restored: np.ndarray, limits: np.ndarray) -> int:
    """Return the place of the candidate nearest to a row, -1 if none is within the limits."""
    near = np.flatnonzero(np.abs(restored[:, 4] - row[4]) <= limits[4])
    apart = (np.abs(restored[near] - row) / limits).max(1)
    best = int(apart.argmin()) if len(near) else -1
    return int(near[best]) if best >= 0 and apart[best] <= 1 else -1


def overlaps(one: np.ndarray, others: np.ndarray, rotated: bool) -> np.ndarray:
    """Return (k,) how much of each box one (6 + E,) has in common with it."""
    if rotated:
        shares: np.ndarray = prob_iou(one[[0, 1, 2, 3, -1]], others[:, [0, 1, 2, 3, -1]])
        return shares
    sides = np.minimum(one[2:4], others[:, 2:4]) - np.maximum(one[:2], others[:, :2])
    inner = sides.clip(0).prod(-1)
    whole = (one[2:4] - one[:2]).prod() + (others[:, 2:4] - others[:, :2]).prod(-1) - inner
    return np.asarray(inner / np.maximum(whole, 1e-9))
