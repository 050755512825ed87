# SPDX-License-Identifier: Apache-2.0
"""Judging what a suppression left: one list passes, others don't, rounding is allowed."""

from __future__ import annotations

import numpy as np
import pytest

from yolo.engine.nms import non_max_suppression
from yolo.export.matching import judge

LIMITS = np.array([0.5, 0.5, 0.5, 0.5, 1e-3, 0.5, 1e-3])


def row(x, score, cls=0, y=0.0, width=20.0):
    return [x, y, x + width, y + 10, score, cls, 0.5]


def judged(rows, candidates, restored=None, **options):
    """Give places of wrong rows and of missing candidates."""
    given = {"iou": 0.5, "slack": 0.02, "tie": 1e-5, "floor": 0.0, **options}
    arrays = [np.array(r, np.float64).reshape(-1, 7) for r in (rows, candidates)]
    out = arrays[1] if restored is None else np.array(restored, np.float64)
    found = judge(*arrays, out, np.tile(LIMITS, (len(rows), 1)), **given)
    return found.wrong.tolist(), found.missing.tolist()


def crowd(rotated, seed):
    """Return predictions (1, 4 + 2 + 1, 200) in which many boxes overlap."""
    rng = np.random.default_rng(seed)
    centres, sides = rng.uniform(20, 80, (2, 200)), rng.uniform(15, 40, (2, 200))
    scores, angles = rng.uniform(0.1, 1, (2, 200)), rng.uniform(0, 1.5, (1, 200))
    return np.concatenate([centres, sides, scores, angles]).astype(np.float32)[None]


def rows_of(pred, **options):
    return non_max_suppression(pred, conf=0.3, nc=2, max_det=1000, **options)[0]


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("agnostic", [False, True])
def test_one_list_alone_passes(rotated, agnostic):
    for seed in range(2):
        pred = crowd(rotated, seed)
        options = {"rotated": rotated, "agnostic": agnostic}
        every = rows_of(pred, iou=1.0, **options)
        rows = rows_of(pred, iou=0.4, **options)
        options |= {"iou": 0.4, "slack": 1e-5, "tie": 0.0, "floor": 0.3}
        assert 5 < len(rows) < len(every) / 2
        assert judged(rows, every, **options) == ([], [])
        for i in range(len(rows)):
            left = np.delete(rows, i, 0)
            assert judged(left, every, **options)[1], "a box that is missing"
        gone = [r for r in every if not (rows == r).all(1).any()]
        for one in gone[::7]:
            assert judged([*rows, one], every, **options)[0], "a box too many"


def test_what_is_no_candidate_is_wrong():
    for other in (row(0.6, 0.9), row(0, 0.902), row(0, 0.9, cls=1), [*row(0, 0.9)[:6], 0.6]):
        assert judged([other], [row(0, 0.9)]) == ([0], [0])
    assert judged([[np.nan] * 7], [row(0, 0.9)]) == ([0], [0])
    assert judged([row(0, 0.9)], []) == ([0], [])
    assert judged([], [row(0, 0.9)]) == ([], [0])
    assert judged([row(0.2, 0.9)], [row(0, 0.9)]) == ([], [])


def test_a_row_serves_once():
    assert judged([row(0, 0.9), row(0, 0.9)], [row(0, 0.9), row(90, 0.9)]) == ([0, 1], [1])


def test_of_two_as_sure_either_may_stay():
    first, second = row(0, 0.9), row(4, 0.900001)
    assert judged([first], [first, second]) == ([], [])
    assert judged([second], [first, second]) == ([], [])
    assert judged([first, second], [first, second]) == ([0, 1], [])
    assert judged([first], [first, row(4, 0.9001)]) == ([], [1])
    other = row(4, 0.9, cls=1)
    assert judged([first], [first, other]) == ([], [1])
    assert judged([first], [first, other], agnostic=True) == ([], [])


def test_an_overlap_at_the_threshold_may_go_either_way():
    kept, border = row(0, 0.9), row(20 / 3, 0.5)  # overlap 0.5
    for rows in ([kept], [kept, border]):
        assert judged(rows, [kept, border]) == ([], [])
    assert judged([kept], [kept, row(8, 0.5)]) == ([], [1])
    assert judged([kept, row(4, 0.5)], [kept, row(4, 0.5)]) == ([0, 1], [])


def test_what_is_at_the_floor_may_be_absent():
    assert judged([], [row(0, 0.25)], floor=0.25) == ([], [])
    assert judged([], [row(0, 0.26)], floor=0.25) == ([], [0])


def test_boxes_overlap_as_the_network_gave_them():
    candidates = [row(0, 0.9), row(12, 0.8)]
    limited = [[0, 0, 15, 10, *r[4:]] for r in candidates]  # now they are the same
    assert judged([limited[0]], candidates, limited) == ([], [1])
    assert judged(limited, candidates, limited) == ([], [])


@pytest.mark.parametrize(("score", "excused"), [(0.5, True), (0.6, False)])
def test_rotated_boxes_go_by_those_that_went_themselves(score, excused):
    first, gone, last = ([x, 50, 20, 10, s, 0, 0.1] for x, s in ((14, 0.9), (18, 0.5), (22, score)))
    options = {"iou": 0.6, "slack": 0.001, "rotated": True}
    assert judged([first], [first, gone, last], **options) == ([], [] if excused else [2])
