# SPDX-License-Identifier: Apache-2.0
"""Matching and the confusion matrix: stored numbers, and sums that must come out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coco_sets import random_set
from yolo.engine.coco_eval import IOU_THRESHOLDS, Objects
from yolo.engine.confusion import ConfusionMatrix, match, pair_by_overlap
from yolo.engine.overlaps import overlaps

NAMES = {0: "a", 1: "b", 2: "c", 3: "d"}


@pytest.mark.parametrize("case", range(4))
def test_stored_matches(golden, case):
    stored = golden("metrics.npz")
    key = f"match{case}/correct"
    expected = stored[key if key in stored else f"{key}@v8.4"]
    found = match(
        stored[f"match{case}/iou"].T,
        stored[f"match{case}/pred_cls"],
        stored[f"match{case}/target_cls"],
        IOU_THRESHOLDS,
    )
    np.testing.assert_array_equal(found >= 0, expected.astype(bool))


def test_matching_prefers_confidence_over_overlap():
    overlap = np.array([[0.6, 0.55], [0.9, 0.0], [0.0, 0.8]])
    zeros = np.zeros(3, int)
    found = match(overlap, zeros, zeros[:2], np.array([0.5, 0.7]))
    assert found.tolist() == [[0, -1], [-1, 0], [1, 1]]


def test_pairs_are_one_to_one_and_best_first():
    overlap = np.array([[0.6, 0.9], [0.7, 0.8], [0.5, 0.46]])
    assert pair_by_overlap(overlap, 0.45) == [(0, 1), (1, 0)]
    assert pair_by_overlap(np.zeros((0, 2)), 0.45) == []


def test_stored_confusion(golden):
    stored = golden("metrics.npz")
    found = Objects(
        stored["confusion/det_cls"].astype(int),
        stored["confusion/det_boxes"].astype(float),
        stored["confusion/det_conf"].astype(float),
    )
    truth = Objects(
        stored["confusion/gt_cls"].astype(int), stored["confusion/gt_boxes"].astype(float)
    )
    matrix = ConfusionMatrix({0: "a", 1: "b", 2: "c"})
    matrix.update(found, truth, overlaps(found, truth))
    np.testing.assert_array_equal(matrix.matrix, stored["confusion/matrix_rows_pred_cols_true"])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), crowds=st.booleans())
def test_adds_up(seed, crowds):
    truths, founds, classes = random_set(np.random.default_rng(seed))
    matrix = ConfusionMatrix(NAMES)
    excused = 0
    for truth, found in zip(truths, founds, strict=True):
        if not crowds:
            truth.ignore = np.zeros(len(truth), dtype=bool)
        overlap = overlaps(found, truth)
        matrix.update(found, truth, overlap)
        excused += int((overlap[:, truth.crowd] > 0.45).any(axis=1).sum())
    labels = np.concatenate([t.classes[~t.crowd] for t in truths])
    sure = np.concatenate([f.classes[f.scores > 0.25] for f in founds])
    columns = matrix.matrix.sum(axis=0)[:-1]
    rows = matrix.matrix.sum(axis=1)[:-1]
    assert columns.tolist() == np.bincount(labels, minlength=classes).tolist()
    counted = np.bincount(sure, minlength=classes)
    assert (rows <= counted).all()
    assert counted.sum() - rows.sum() <= excused
    assert matrix.matrix[-1, -1] == 0
    if not crowds:
        assert rows.tolist() == counted.tolist()


def test_detections_on_a_crowd_are_not_counted():
    truth = Objects(np.array([0]), np.array([[0.0, 0, 100, 100]]), ignore=np.array([True]))
    found = Objects.found([0, 0], [[10, 10, 30, 30], [300, 300, 310, 310]], [0.9, 0.8])
    matrix = ConfusionMatrix(NAMES)
    matrix.update(found, truth, overlaps(found, truth))
    assert matrix.matrix.sum() == matrix.matrix[0, -1] == 1


def test_tables_and_shares():
    matrix = ConfusionMatrix({0: "cat", 1: "dog"})
    matrix.matrix[:] = [[3, 1, 0], [0, 0, 2], [1, 0, 0]]
    np.testing.assert_allclose(matrix.normalized().sum(axis=0), [1, 1, 1])
    row = matrix.summary()[0]
    assert row == {"Predicted": "cat", "cat": 3, "dog": 1, "background": 0}
    assert matrix.summary(normalize=True)[0]["cat"] == 0.75
    assert matrix.to_csv().splitlines()[0] == "Predicted,cat,dog,background"
    assert list(matrix.to_df()["dog"]) == [1, 0, 0]


def test_a_class_named_background_keeps_its_own_column():
    matrix = ConfusionMatrix({0: "background", 1: "b"})
    matrix.matrix[:] = np.arange(9).reshape(3, 3)
    assert matrix.summary()[0] == {"Predicted": "background", "background": 0, "b": 1, "nothing": 2}
