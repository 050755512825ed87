# SPDX-License-Identifier: Apache-2.0
"""Pairing of boxes: what differs is found, what rounding explains is excused."""

from __future__ import annotations

import numpy as np

from yolo.export.matching import pair_rows

LIMITS = np.array([0.5, 0.5, 0.5, 0.5, 1e-3, 0, 1e-3])


def row(x, score, cls=0, y=0.0, width=20.0):
    return [x, y, x + width, y + 10, score, cls, 0.5]


def paired(mine, theirs, candidates=None, **options):
    """Pair rows; unless said otherwise, all of them were candidates."""
    given = {"iou": 0.5, "tie": 1e-5, **options}
    all_rows = (mine, theirs, [*mine, *theirs] if candidates is None else candidates)
    arrays = [np.array(rows, np.float64).reshape(-1, 7) for rows in all_rows]
    return pair_rows(*arrays, LIMITS, **given)


def left(pairing):
    return pairing.mine, pairing.theirs


def test_equal_rows_are_paired_in_any_order():
    found = paired([row(0, 0.9), row(100, 0.8)], [row(100.2, 0.8), row(0, 0.9)])
    assert found.pairs.tolist() == [[0, 1], [1, 0]]
    assert left(found) == ([], [])


def test_what_is_too_far_apart_is_left():
    for other in (row(0.6, 0.9), row(0, 0.902), row(0, 0.9, cls=1), [*row(0, 0.9)[:6], 0.6]):
        assert left(paired([row(0, 0.9)], [other], [row(0, 0.9)])) == ([0], [0])
    assert left(paired([row(0, 0.9)], [])) == ([0], [])


def test_a_row_serves_once():
    assert left(paired([row(0, 0.9), row(0, 0.9)], [row(0, 0.9)])) == ([], [])  # a tie
    assert left(paired([row(0, 0.9), row(300, 0.9)], [row(0, 0.9)])) == ([1], [])


def test_of_two_as_sure_either_may_stay():
    mine, theirs = [row(0, 0.9)], [row(4, 0.900001)]
    assert left(paired(mine, theirs)) == ([], [])
    assert left(paired(mine, [row(4, 0.9001)])) == ([0], [0])
    assert left(paired(mine, [row(15, 0.900001)])) == ([0], [0])  # they don't suppress each other
    assert left(paired(mine, [row(4, 0.900001, cls=1)])) == ([0], [0])
    assert left(paired(mine, [row(4, 0.900001, cls=1)], agnostic=True)) == ([], [])


def test_what_a_tie_changes_further_on_is_excused_too():
    # On one side the first box takes the third with it, on the other the second leaves it.
    mine = [row(0, 0.9), row(10, 0.5)]
    theirs = [row(5, 0.9)]
    assert left(paired(mine, theirs)) == ([], [])
    assert left(paired([*mine, row(90, 0.5)], theirs)) == ([2], [])


def test_an_overlap_at_the_threshold_may_go_either_way():
    kept, border = row(0, 0.9), row(20 / 3, 0.5)  # overlap 0.5
    assert left(paired([kept, border], [kept])) == ([], [])
    assert left(paired([kept, row(8, 0.5)], [kept])) == ([1], [])


def test_a_row_at_the_floor_or_behind_the_last_may_be_absent():
    assert left(paired([row(0, 0.25)], [], floor=0.25)) == ([], [])
    assert left(paired([row(0, 0.26)], [], floor=0.25)) == ([0], [])
    full = [row(0, 0.9), row(100, 0.6)]
    assert left(paired([row(0, 0.9), row(200, 0.6)], full, limit=2)) == ([], [])
    assert left(paired([row(0, 0.9), row(200, 0.7)], full, limit=2)) == ([1], [])
    assert left(paired([row(0, 0.9), row(200, 0.6)], full, limit=3)) == ([1], [1])


def test_rotated_boxes_go_by_those_that_went_themselves():
    def turned(x, score):
        return [x, 50, 20, 10, score, 0, 0.1]

    gone = [turned(18, 0.500001)]
    for score, excused in ((0.5, True), (0.4, False)):
        mine = [turned(20, score)]
        found = paired(mine, [], [*gone, *mine], rotated=True)
        assert left(found) == ([] if excused else [0], [])
