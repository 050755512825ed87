# SPDX-License-Identifier: Apache-2.0
"""Suppression of rotated boxes: stored rows, and the rule by brute force."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from yolo.engine.nms import _Rule, _suppress_on_device, non_max_suppression
from yolo.engine.rotated_nms import survivors
from yolo.nn.rotated import prob_iou

NAMES = {"conf_thres": "conf", "iou_thres": "iou"}


def dense(count, spread, seed=0, classes=3):
    """Predictions (1, 4 + C + 1, A) in a crowd as dense as `spread` is small."""
    rng = np.random.default_rng(seed)
    parts = [
        rng.uniform(0, spread, (2, count)),
        rng.uniform(10, 60, (2, count)),
        rng.uniform(0, 1, (classes, count)),
        rng.uniform(-math.pi / 4, 3 * math.pi / 4, (1, count)),
    ]
    return np.concatenate(parts).astype(np.float32)[None]


def by_hand(boxes, labels, iou, max_det):
    """One pass over all pairs."""
    over = prob_iou(boxes[:, None], boxes) > iou
    over &= labels[:, None] == labels
    return np.flatnonzero(~np.triu(over, 1).any(0))[:max_det]


@pytest.mark.golden
@pytest.mark.parametrize("case", ["rotated", "rotated_agnostic", "rotated_multi_label"])
@pytest.mark.parametrize("kind", ["array", "tensor", "device"])
def test_equals_stored_rows(golden, case, kind):
    stored = golden("nms.npz")
    options = json.loads(str(stored[f"{case}/kwargs"]))
    options = {NAMES.get(key, key): value for key, value in options.items()}
    pred = stored[f"{case}/pred"]
    if kind == "device":  # the way of a CUDA tensor, on the CPU
        named = {"agnostic": False, "multi_label": False} | options
        rest = {"classes": None, "max_det": 300, "max_nms": 30000}
        rule = _Rule(**named, **rest)
        found = [_suppress_on_device(torch.from_numpy(p), rule)[0] for p in pred]
    else:
        found = non_max_suppression(pred if kind == "array" else torch.from_numpy(pred), **options)
    for b, rows in enumerate(found):
        assert isinstance(rows, np.ndarray) == (kind == "array")
        np.testing.assert_array_equal(np.asarray(rows), stored[f"{case}/out{b}"])


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("iou", [1e-3, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("spread", [40, 400])
def test_equals_the_rule_over_all_pairs(spread, iou, kind):
    pred = dense(900, spread, classes=1)[0]
    boxes = np.ascontiguousarray(pred[[0, 1, 2, 3, -1]].T)
    labels = np.arange(900) % 3
    for max_det in (900, 20):
        found = survivors(kind(boxes), kind(labels), iou, max_det)
        assert np.asarray(found).tolist() == by_hand(boxes, labels, iou, max_det).tolist()


def test_a_box_that_goes_takes_others_along():
    """Three in a row: the middle one goes by the first, and the last by the middle one."""
    boxes = np.array([[0, 0, 20, 8, 0], [1, 0, 20, 8, 0], [2, 0, 20, 8, 0.0]])
    first, second = prob_iou(boxes[:1], boxes[1:])
    assert survivors(boxes, np.zeros(3, int), (first + second) / 2, 9).tolist() == [0]
    assert survivors(boxes, np.array([0, 1, 0]), (first + second) / 2, 9).tolist() == [0, 1, 2]
    assert survivors(boxes[:0], np.zeros(0, int), 0.5, 9).tolist() == []


def test_turned_boxes_are_told_apart():
    """Upright hulls of the two are the same."""
    cross = np.array([[32, 32], [32, 32], [40, 40], [4, 4], [0.9, 0.8], [0.6, -0.6]], np.float32)
    rows, places = non_max_suppression(cross[None], nc=1, rotated=True, return_indices=True)
    assert places[0].tolist() == [0, 1]
    np.testing.assert_allclose(rows[0][0], [32, 32, 40, 4, 0.9, 0, 0.6], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_never_kept(bad):
    pred = dense(30, 400, classes=1)
    pred[0, -1, 4], pred[0, 2, 7] = bad, bad
    options = {"conf": 0.0, "iou": 1.0, "nc": 1, "rotated": True}
    (rows,) = non_max_suppression(pred, **options)
    assert np.isfinite(rows).all()
    assert len(rows) == 28
    rest = {"classes": None, "agnostic": False, "multi_label": False, "max_det": 300}
    device, _ = _suppress_on_device(torch.from_numpy(pred[0]), _Rule(max_nms=99, **rest, **options))
    np.testing.assert_array_equal(device.numpy(), rows)


def test_a_dense_crowd_takes_few_comparisons(monkeypatch):
    """8,400 boxes of three classes on one another: not a tenth of the 35 million pairs."""
    pairs = 0

    def counted(first, second):
        nonlocal pairs
        pairs += len(first)
        return prob_iou(first, second)

    monkeypatch.setattr("yolo.engine.rotated_nms.prob_iou", counted)
    (rows,) = non_max_suppression(dense(8400, 60), conf=0.0, nc=3, rotated=True)
    assert len(rows) > 20
    assert pairs < 3.5e6
