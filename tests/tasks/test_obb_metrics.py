# SPDX-License-Identifier: Apache-2.0
"""Rotated average precision: upright boxes give detection's, turned ones brute force's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from yolo.engine.coco_eval import IOU_THRESHOLDS, RECALL_LEVELS, Objects
from yolo.engine.metrics import ImageRecord
from yolo.engine.overlaps import overlaps
from yolo.nn.rotated import xywhr_to_corners
from yolo.tasks.detect.metrics import DetMetrics
from yolo.tasks.obb.metrics import OBBMetrics

NAMES = {0: "a", 1: "b", 2: "c"}


def hulls(boxes):
    corners = xywhr_to_corners(boxes)
    return np.concatenate([corners.min(1), corners.max(1)], 1)


def images(upright, count=25, crowds=True, seed=0):
    """Records with labels, and detections around them; equal scores among them."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(count):
        n = int(rng.integers(0, 9))
        shape = [
            rng.uniform(20, 200, (n, 2)),
            rng.uniform(6, 90, (n, 2)),
            rng.uniform(-0.7, 2.3, (n, 1)),
        ]
        truth = np.concatenate(shape, 1)
        classes = rng.integers(0, 3, n)
        spread = np.array([3, 3, 2, 2, 0.1])
        of = rng.integers(0, n, 2 * n) if n else np.zeros(0, int)
        found = truth[of] + rng.normal(0, 1, (len(of), 5)) * spread
        found[:, 2:4] = np.abs(found[:, 2:4])
        if upright:
            truth[:, 4], found[:, 4] = 0, np.where(rng.random(len(of)) < 0.5, 0, math.pi / 2)
        scores = rng.random(len(of)).round(1)
        records.append(
            ImageRecord(
                i, i, f"{i}.png", (300, 300),
                Objects.found(classes[of], hulls(found), scores, rotated=found),
                Objects(classes, hulls(truth), ignore=crowds * (rng.random(n) < 0.1) > 0,
                        area=truth[:, 2:4].prod(1), rotated=truth),
            )
        )  # fmt: skip
    return records


def scored(metrics, records):
    for record in records:
        metrics.update(record)
    return metrics.process()


def test_upright_boxes_score_as_in_detection():
    records = images(upright=True)
    usual, rotated = (scored(kind(NAMES), records) for kind in (DetMetrics, OBBMetrics))
    assert usual.keys == rotated.keys
    assert rotated.keys == [f"metrics/{k}(B)" for k in ("precision", "recall", "mAP50", "mAP50-95")]
    np.testing.assert_allclose(rotated.mean_results(), usual.mean_results(), atol=1e-9)
    np.testing.assert_allclose(rotated.box.all_ap, usual.box.all_ap, atol=1e-9)
    np.testing.assert_allclose(rotated.box.coco.stats, usual.box.coco.stats, atol=1e-9)
    assert np.array_equal(rotated.confusion_matrix.matrix, usual.confusion_matrix.matrix)
    assert 0.1 < rotated.box.map < 0.9
    assert rotated.fitness == rotated.box.map


def painted_overlap(first, second, cells=400):
    """Compare two boxes on a fine grid over both."""
    corners = xywhr_to_corners(np.stack([first, second]))
    low, high = corners.min((0, 1)), corners.max((0, 1))
    axes = [np.linspace(a, b, cells) for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*axes), -1)
    inside = []
    for x, y, w, h, r in (first, second):
        dx, dy = points[..., 0] - x, points[..., 1] - y
        along, across = dx * math.cos(r) + dy * math.sin(r), dy * math.cos(r) - dx * math.sin(r)
        inside.append((np.abs(along) <= w / 2) & (np.abs(across) <= h / 2))
    return (inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum()


def average_precision(records, class_id, threshold):
    """Read the definition out in plain Python: greedy matches, then the 101-point envelope."""
    hits, scores, total = [], [], 0
    for record in records:
        truth = record.truth.rotated[record.truth.classes == class_id]
        total += len(truth)
        free = list(range(len(truth)))
        for i in np.flatnonzero(record.found.classes == class_id):
            near = [(painted_overlap(record.found.rotated[i], truth[j]), j) for j in free]
            best = max(near, default=(0, -1))
            hits.append(best[0] >= threshold)
            scores.append(record.found.scores[i])
            if hits[-1]:
                free.remove(best[1])
    order = np.argsort(-np.array(scores), kind="stable")
    right = np.cumsum(np.array(hits)[order])
    precision, recall = right / np.arange(1, len(right) + 1), right / total
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALL_LEVELS)
    return np.mean([envelope[k] if k < len(envelope) else 0 for k in at])


def test_turned_boxes_score_as_by_brute_force():
    """Overlaps counted on grids of points; thresholds that none of them is close to."""
    records = images(upright=False, count=6, crowds=False, seed=3)
    metrics = scored(OBBMetrics(NAMES), records)
    near = np.concatenate([overlaps(r.found, r.truth, "rotated").ravel() for r in records])
    clear = [t for t in (0, 2, 5) if np.abs(near - IOU_THRESHOLDS[t]).min() > 0.004]
    assert clear
    for row, class_id in enumerate(metrics.box.ap_class_index):
        for t in clear[:1]:
            expected = average_precision(records, class_id, IOU_THRESHOLDS[t])
            assert metrics.box.all_ap[row, t] == pytest.approx(expected, abs=1e-9)
    assert 0.05 < metrics.box.map50 < 1


def test_overlap_is_that_of_the_boxes_not_of_their_hulls():
    cross = np.array([[50, 50, 60, 4, 0.7], [50, 50, 60, 4, -0.7]])
    truth = Objects(np.zeros(1, int), hulls(cross[:1]), rotated=cross[:1])
    found = Objects.found([0], hulls(cross[1:]), [0.9], rotated=cross[1:])
    record = ImageRecord(0, 0, "a.png", (99, 99), found, truth)
    assert scored(OBBMetrics(NAMES), [record]).box.map50 == 0
    assert scored(DetMetrics(NAMES), [record]).box.map50 == 1


def test_crowds_excuse_what_lies_on_them():
    crowd = np.array([[50.0, 50, 80, 60, 0.4]])
    inside = np.array([[50.0, 50, 10, 8, 1.0]])
    truth = Objects(np.zeros(1, int), hulls(crowd), ignore=np.array([True]), rotated=crowd)
    found = Objects.found([0], hulls(inside), [0.9], rotated=inside)
    assert overlaps(found, truth, "rotated").tolist() == [[pytest.approx(1)]]
    with pytest.raises(ValueError, match="expected rotated boxes"):
        overlaps(Objects.found([0], hulls(inside), [0.9]), truth, "rotated")
