# SPDX-License-Identifier: Apache-2.0
"""COCO's scores against stored numbers and against pycocotools on random sets."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coco_sets import from_coco, random_set, reference
from yolo.data.sample import Instances
from yolo.engine.coco_eval import Objects, coco_scores


@pytest.mark.parametrize("name", ["set_a", "set_b_crowd", "set_c_keypoints"])
def test_stored_numbers(golden, name):
    stored = golden("metrics_coco.json")[name]
    truths, founds, classes = from_coco(stored["gt"], stored["dt"])
    for iou_type, expected in stored["result"].items():
        scores = coco_scores(truths, founds, classes, iou_type)
        np.testing.assert_allclose(scores.stats, expected["stats"], rtol=0, atol=1e-9)
        ap = np.array(expected["ap_per_iou_per_category"], dtype=float)
        np.testing.assert_allclose(scores.ap, ap, rtol=0, atol=1e-9)
        recall = np.array(expected["recall_per_iou_per_category"], dtype=float)
        np.testing.assert_allclose(scores.recall[:, :, 0], recall, rtol=0, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 8), most=st.integers(1, 9))
def test_equals_pycocotools(seed, images, most):
    truths, founds, classes = random_set(np.random.default_rng(seed), images, most=most)
    scores = coco_scores(truths, founds, classes)
    stats, ap = reference(truths, founds, classes)
    np.testing.assert_allclose(scores.stats, stats, rtol=0, atol=1e-6)
    np.testing.assert_allclose(scores.ap, ap, rtol=0, atol=1e-6)


def test_more_than_a_hundred_detections_of_a_class_are_cut():
    boxes = np.tile([[0.0, 0.0, 10.0, 10.0]], (150, 1))
    boxes[:120] += 500
    truths = [Objects.labelled(Instances.from_boxes([0], [[0, 0, 10, 10]]))]
    founds = [Objects.found(np.zeros(150), boxes, np.linspace(1, 0.5, 150))]
    assert coco_scores(truths, founds, 1).stats[0] == 0
    assert coco_scores(truths, [founds[0].select(np.arange(60, 150))], 1).stats[0] > 0


@pytest.mark.parametrize("labels", [0, 2])
def test_nothing_found(labels):
    truths = [Objects.labelled(Instances.from_boxes([0] * labels, [[0, 0, 9, 9]] * labels))] * 2
    scores = coco_scores(truths, [Objects.found([], [], [])] * 2, 3)
    assert scores.stats[0] == (0 if labels else -1)
    assert np.isnan(scores.ap[:, 1:]).all()


def test_images_must_pair_up():
    with pytest.raises(ValueError, match="as many"):
        coco_scores([Objects.found([], [], [])], [], 1)


def test_is_silent(capfd, caplog):
    caplog.set_level(logging.INFO)
    coco_scores(*random_set(np.random.default_rng(0)))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_objects_sort_and_select():
    found = Objects.found([2, 1], [[0, 0, 1, 1], [0, 0, 2, 2]], [0.1, 0.9], rles=["a", "b"])
    assert found.classes.tolist() == [1, 2]
    assert found.rles == ["b", "a"]
    kept = found.select(found.scores > 0.5)
    assert (len(kept), kept.rles, kept.ignore) == (1, ["b"], None)
