# SPDX-License-Identifier: Apache-2.0
"""The metrics object: its members, their agreement with COCO, and their independence of order."""

from __future__ import annotations

import json
import pickle
import random

import numpy as np
import pytest

from coco_sets import NAMES, BoxMetrics, random_set, records, reference, scored
from yolo.data.sample import Instances
from yolo.engine.coco_eval import Objects
from yolo.engine.metrics import PartMetrics, TaskMetrics


class TwoPartMetrics(TaskMetrics):
    def make_parts(self, sigmas):
        return (PartMetrics(), PartMetrics("P", "Pose", "keypoints", sigmas))


@pytest.fixture
def images():
    truths, founds, _ = random_set(np.random.default_rng(3), images=12)
    return records(truths, founds)


def test_numbers_are_cocos(images):
    metrics = scored(BoxMetrics(NAMES), images)
    stats, ap = reference([r.truth for r in images], [r.found for r in images], len(NAMES))
    part = metrics.parts[0]
    assert part.map == pytest.approx(stats[0], abs=1e-9)
    assert part.map50 == pytest.approx(stats[1], abs=1e-9)
    assert part.map75 == pytest.approx(stats[2], abs=1e-9)
    sizes = [-1 if np.isnan(v) else v for v in part.by_size.values()]
    np.testing.assert_allclose(sizes, stats[3:6], atol=1e-9)
    np.testing.assert_allclose(part.all_ap, ap[:, part.ap_class_index].T, atol=1e-9)
    assert metrics.fitness == part.map == metrics.results_dict["fitness"] > 0


def test_members(images):
    metrics = scored(BoxMetrics(NAMES, "run"), images)
    part, present = metrics.parts[0], len(metrics.ap_class_index)
    assert 0 not in metrics.ap_class_index  # class 0 has detections but no labels
    assert list(metrics.results_dict) == [
        "metrics/precision(B)", "metrics/recall(B)", "metrics/mAP50(B)", "metrics/mAP50-95(B)",
        "fitness",
    ]  # fmt: skip
    for name in ("p", "r", "f1", "ap", "ap50"):
        assert getattr(part, name).shape == (present,)
    for name in ("p_curve", "r_curve", "f1_curve", "prec_values"):
        values = getattr(part, name)
        assert values.shape == (present, 1000)
        assert ((values >= 0) & (values <= 1)).all()
    assert part.all_ap.shape == (present, 10)
    assert metrics.maps.shape == (4,)
    assert metrics.maps[0] == pytest.approx(part.map)
    assert part.class_result(0) == metrics.class_result(0)
    assert part.mean_results() == metrics.mean_results()
    assert len(metrics.curves) == len(metrics.curves_results) == 4
    assert metrics.save_dir.name == "run"
    assert set(metrics.speed) == {"preprocess", "inference", "loss", "postprocess"}
    assert metrics.confusion_matrix.matrix.sum() > 0
    labels = np.concatenate([r.truth.classes[~r.truth.crowd] for r in images])
    assert metrics.nt_per_class.tolist() == np.bincount(labels, minlength=4).tolist()
    assert (metrics.nt_per_image <= metrics.nt_per_class).all()
    np.testing.assert_allclose(part.f1, 2 * part.p * part.r / (part.p + part.r + 1e-16))


def test_area_under_the_drawn_curve_is_ap50(images):
    part = scored(BoxMetrics(NAMES), images).parts[0]
    np.testing.assert_allclose(part.prec_values.mean(axis=1), part.ap50, atol=0.01)


def test_tables(images):
    metrics = scored(BoxMetrics(NAMES), images)
    rows = metrics.summary()
    assert [row["Class"] for row in rows] == [NAMES[c] for c in metrics.ap_class_index]
    assert list(rows[0]) == [
        "Class", "Images", "Instances", "Box-P", "Box-R", "Box-F1", "mAP50", "mAP75", "mAP50-95",
    ]  # fmt: skip
    assert json.loads(metrics.to_json()) == rows
    assert len(metrics.to_csv().splitlines()) == 1 + len(rows)
    table = metrics.table()
    assert table.splitlines()[0].split() == [
        "Class", "Images", "Instances", "Box(P", "R", "mAP50", "mAP50-95)",
    ]  # fmt: skip
    assert len(table.splitlines()) == 2 + len(rows)
    assert len(metrics.table(per_class=False).splitlines()) == 2


def test_order_and_transport_of_images_do_not_matter(images):
    metrics = scored(BoxMetrics(NAMES), images)
    shuffled = pickle.loads(pickle.dumps(images))
    random.Random(0).shuffle(shuffled)
    other = scored(BoxMetrics(NAMES), shuffled)
    assert other.results_dict == metrics.results_dict
    np.testing.assert_array_equal(other.confusion_matrix.matrix, metrics.confusion_matrix.matrix)


def test_process_may_be_repeated(images):
    metrics = scored(BoxMetrics(NAMES), images)
    before = (metrics.results_dict, metrics.confusion_matrix.matrix.copy())
    metrics.process()
    assert metrics.results_dict == before[0]
    np.testing.assert_array_equal(metrics.confusion_matrix.matrix, before[1])


def test_images_of_the_same_name_stay_apart(images):
    metrics = scored(BoxMetrics(NAMES), images)
    assert len(metrics.image_metrics) == len(images)
    for record in images:
        counts = metrics.image_metrics[record.path]
        assert counts["tp"] + counts["fn"] == (~record.truth.crowd).sum()


@pytest.mark.parametrize("labels", [0, 3])
def test_nothing_found(labels):
    truth = Objects.labelled(Instances.from_boxes([1] * labels, [[0, 0, 9, 9]] * labels))
    metrics = scored(BoxMetrics(NAMES), records([truth], [Objects.found([], [], [])]))
    assert metrics.mean_results() == [0, 0, 0, 0]
    assert metrics.maps.tolist() == [0] * 4
    assert len(metrics.summary()) == (labels > 0)


def test_before_any_image():
    metrics = BoxMetrics({})
    assert metrics.results_dict["fitness"] == 0
    assert scored(metrics, []).mean_results() == [0, 0, 0, 0]


def test_perfect_detections():
    truth = Objects.labelled(Instances.from_boxes([1, 2], [[0, 0, 40, 40], [50, 50, 90, 80]]))
    found = Objects.found([1, 2], truth.boxes, [0.9, 0.8])
    metrics = scored(BoxMetrics(NAMES), records([truth], [found]))
    assert metrics.parts[0].map == pytest.approx(1)
    assert metrics.image_metrics["/data/0/same.jpg"]["f1"] == 1
    assert np.diag(metrics.confusion_matrix.matrix).tolist() == [0, 1, 1, 0, 0]


def test_crowds_are_neither_right_nor_wrong():
    boxes = np.array([[0.0, 0, 40, 40], [100, 100, 300, 300]])
    truth = Objects(np.array([1, 1]), boxes, ignore=np.array([False, True]))
    found = Objects.found([1, 1], [[0, 0, 40, 40], [120, 120, 160, 160]], [0.5, 0.9])
    metrics = scored(BoxMetrics(NAMES), records([truth], [found]))
    assert metrics.parts[0].map == pytest.approx(1)
    assert metrics.parts[0].mp == pytest.approx(1)
    assert metrics.image_metrics["/data/0/same.jpg"]["fp"] == 0


def test_two_parts():
    truth = Objects.labelled(Instances.from_boxes([1], [[0, 0, 40, 40]]))
    truth.keypoints = np.array([[[10.0, 10, 2], [20, 20, 2]]])
    found = Objects.found(
        [1], truth.boxes, [0.9], keypoints=truth.keypoints + np.array([60, 60, 0])
    )
    metrics = TwoPartMetrics(NAMES, sigmas=np.array([0.1, 0.1]))
    scored(metrics, records([truth], [found]))
    assert metrics.keys[4:] == [
        f"metrics/{k}(P)" for k in ("precision", "recall", "mAP50", "mAP50-95")
    ]
    assert metrics.parts[0].map == pytest.approx(1)
    assert metrics.parts[1].map == 0
    assert metrics.fitness == pytest.approx(1)
    assert {"Box-P", "Pose-P"} <= set(metrics.summary()[0])


def test_confidence_is_where_precision_and_recall_are_read(images):
    part = scored(BoxMetrics(NAMES), images).parts[0]
    column = int(np.searchsorted(part.px, part.confidence))
    np.testing.assert_array_equal(part.p, part.p_curve[:, column])
    np.testing.assert_array_equal(part.r, part.r_curve[:, column])
    assert 0 < part.confidence < 1
