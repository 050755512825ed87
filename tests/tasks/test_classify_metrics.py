# SPDX-License-Identifier: Apache-2.0
"""Accuracy: golden numbers, by class, confusion, tables."""

from __future__ import annotations

import numpy as np
import pytest

from yolo.engine.coco_eval import Objects
from yolo.engine.metrics import ImageRecord
from yolo.tasks.classify.metrics import ClassifyMetrics


def metrics_of(ranking, target, classes=None):
    """Score images given by their classes, best first, and their true class."""
    count = classes or 1 + max(max(map(max, ranking)), max(target))
    metrics = ClassifyMetrics({i: f"c{i}" for i in range(count)})
    for i, (found, true) in enumerate(zip(ranking, target, strict=True)):
        scores = np.linspace(0.9, 0.1, len(found))
        truth = Objects(np.array([true]), np.zeros((1, 4)))
        found = Objects.found(found, np.zeros((len(found), 4)), scores)
        metrics.update(ImageRecord(i, i, f"/{i}.jpg", (8, 8), found, truth))
    return metrics.process()


@pytest.mark.golden
def test_golden_accuracy(golden):
    arrays = golden("metrics.npz")
    order = np.argsort(-arrays["classify/scores"], axis=1)[:, :5]
    metrics = metrics_of(order.tolist(), arrays["classify/target"].tolist(), 8)
    assert metrics.top1 == pytest.approx(float(arrays["classify/top1"]))
    assert metrics.top5 == pytest.approx(float(arrays["classify/top5"]))


def test_by_hand():
    """Class 2 has no image; class 1 is right once in two, and never among the first five else."""
    ranking = [[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [0, 2, 3, 4, 5], [5, 0, 1, 2, 3], [5, 0, 1, 2, 3]]
    metrics = metrics_of(ranking, [0, 1, 1, 5, 3])
    assert (metrics.top1, metrics.top5, metrics.fitness) == (0.6, 0.8, pytest.approx(0.7))
    assert metrics.results_dict == {
        "metrics/accuracy_top1": 0.6,
        "metrics/accuracy_top5": 0.8,
        "fitness": pytest.approx(0.7),
    }
    assert metrics.ap_class_index.tolist() == [0, 1, 3, 5]
    assert metrics.class_result(1) == (0.5, 0.5)
    assert metrics.class_result(2) == (0.0, 1.0)
    assert metrics.nt_per_class.tolist() == [1, 2, 0, 1, 0, 1]
    assert metrics.image_metrics["/4.jpg"] == {"top1": 0.0, "top5": 1.0}
    matrix = metrics.confusion_matrix.matrix
    assert matrix.shape == (6, 6)  # no background
    assert matrix[0, 0] == matrix[1, 1] == matrix[0, 1] == matrix[5, 5] == matrix[5, 3] == 1
    assert matrix.sum() == 5
    assert np.trace(matrix) / matrix.sum() == metrics.top1
    assert metrics.summary() == [{"top1_acc": 0.6, "top5_acc": 0.8}]
    assert metrics.confusion_matrix.summary()[0]["Predicted"] == "c0"
    rows = metrics.table().splitlines()
    assert rows[1].split() == ["all", "5", "0.6", "0.8"]
    assert [row.split()[0] for row in rows[2:]] == ["c0", "c1", "c3", "c5"]


def test_fewer_than_five_classes():
    metrics = metrics_of([[0, 1], [0, 1]], [0, 1])
    assert (metrics.top1, metrics.top5) == (0.5, 1.0)


def test_nothing_validated():
    metrics = ClassifyMetrics({0: "a", 1: "b"})
    assert metrics.results_dict == dict.fromkeys([*metrics.keys, "fitness"], 0.0)
    assert metrics.keys == ["metrics/accuracy_top1", "metrics/accuracy_top5"]
    assert metrics.table().splitlines()[1].split() == ["all", "0", "0", "0"]


def test_figures(tmp_path):
    files = metrics_of([[0, 1], [0, 1]], [0, 1]).plot(tmp_path)
    names = ["confusion_matrix.png", "confusion_matrix_normalized.png"]
    assert [f.name for f in files] == names
    assert all(f.stat().st_size > 1000 for f in files)
