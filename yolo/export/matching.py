# SPDX-License-Identifier: Apache-2.0
"""Pair the boxes that two runtimes keep of one image, rounding allowed for.

Suppression turns the least difference between two scores into another box: of two that overlap
and are as sure as each other, one runtime keeps this and one that. So a box without a partner is
excused where rounding explains it: it is as sure as the floor; it overlaps one that is as sure, or
overlaps it by just the threshold; or it overlaps one that is excused itself. A box of theirs that
isn't even among my candidates has no excuse, and gives none.

Shapes: n rows of mine, m of theirs, k candidates, each (6 + E): box, score, class, further values.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from yolo.nn.rotated import prob_iou

SLACK = 0.02
"""How far an overlap may be from the threshold and still be on either side of it."""


class Pairing(NamedTuple):
    """Which rows belong together.

    Attributes:
        pairs: (k, 2) places in mine and theirs.
        mine, theirs: places of rows without partner and excuse.
    """

    pairs: np.ndarray
    mine: list[int]
    theirs: list[int]


def pair_rows(
    mine: np.ndarray,
    theirs: np.ndarray,
    candidates: np.ndarray,
    limits: np.ndarray,
    *,
    iou: float,
    tie: float,
    floor: float = 0.0,
    limit: int | None = None,
    rotated: bool = False,
    agnostic: bool = False,
) -> Pairing:
    """Pair rows.

    Args:
        mine: (n, 6 + E).
        theirs: (m, 6 + E).
        candidates: (k, 6 + E) mine before the suppression.
        limits: (6 + E,) how far the numbers of a pair may be apart.
        iou: boxes that overlap by more suppress each other.
        tie: scores that are no further apart are equal.
        floor: score around which a row may be on either side.
        limit: most rows of a side; what is less sure than the last one may have been cut off.
        rotated: boxes are centre, sides, and the last value as their angle.
        agnostic: boxes of different classes suppress each other, too.
    """
    pairs: list[tuple[int, int]] = []
    free = list(range(len(theirs)))
    left = []
    for i, row in enumerate(mine):
        apart = np.abs(theirs[free] - row)
        good = np.flatnonzero((apart <= limits).all(1))
        if len(good):
            best = int(good[apart[good, :4].max(1).argmin()])
            pairs.append((i, free.pop(best)))
        else:
            left.append(i)
    overlaps = _overlaps(mine, theirs, rotated, agnostic)
    real = np.ones(len(theirs), dtype=bool)
    for j in free:
        real[j] = (np.abs(candidates - theirs[j]) <= limits).all(1).any()
    rivals = (overlaps > iou - SLACK) & real
    equal = np.abs(mine[:, 4][:, None] - theirs[:, 4]) <= tie
    seeds = [(rivals & (equal | (overlaps < iou + SLACK))).any(axis) for axis in (1, 0)]
    for rows, others, seed in ((mine, theirs, seeds[0]), (theirs, mine, seeds[1])):
        seed |= rows[:, 4] <= floor + tie
        if len(others) == limit:
            seed |= rows[:, 4] <= others[-1, 4] + tie
        if rotated:  # there boxes go by those that went themselves, too
            overlaps = _overlaps(rows, candidates, rotated, agnostic)
            equal = np.abs(rows[:, 4][:, None] - candidates[:, 4]) <= tie
            border = np.abs(overlaps - iou) < SLACK
            other = np.abs(rows[:, None, :4] - candidates[:, :4]).max(-1) > limits[0]
            seed |= ((overlaps > iou - SLACK) & other & (equal | border)).any(1)
    seeds[1] &= real
    lost, extra = set(left), set(free)
    excused = ({i for i in lost if seeds[0][i]}, {j for j in extra if seeds[1][j]})
    while True:
        more = {i for i in lost - excused[0] if rivals[i, list(excused[1])].any()}
        other = {j for j in extra - excused[1] if rivals[list(excused[0]), j].any()}
        if not more and not other:
            break
        excused[0].update(more)
        excused[1].update(other)
    return Pairing(
        np.array(pairs, dtype=np.int64).reshape(-1, 2),
        sorted(lost - excused[0]),
        sorted(extra - excused[1]),
    )


def _overlaps(mine: np.ndarray, theirs: np.ndarray, rotated: bool, agnostic: bool) -> np.ndarray:
    """Return (n, m) overlaps, 0 where classes differ and that matters."""
    if rotated:
        first, second = (rows[:, [0, 1, 2, 3, -1]] for rows in (mine, theirs))
        shares: np.ndarray = prob_iou(first[:, None], second[None])
    else:
        low = np.maximum(mine[:, None, :2], theirs[:, :2])
        high = np.minimum(mine[:, None, 2:4], theirs[:, 2:4])
        inner = (high - low).clip(0).prod(-1)
        areas = [(rows[:, 2:4] - rows[:, :2]).prod(-1) for rows in (mine, theirs)]
        whole = areas[0][:, None] + areas[1] - inner
        shares = inner / np.maximum(whole, 1e-9)
    if agnostic:
        return shares
    return np.where(mine[:, 5][:, None] == theirs[:, 5], shares, 0)
