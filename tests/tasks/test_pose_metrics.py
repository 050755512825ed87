# SPDX-License-Identifier: Apache-2.0
"""Poses are scored by their keypoints, beside the boxes."""

from __future__ import annotations

import numpy as np
import pytest

from coco_sets import records, scored
from yolo.engine.coco_eval import Objects
from yolo.tasks.pose.metrics import PoseMetrics


def pose(keypoints, score=None):
    points = np.asarray(keypoints, float)
    boxes = np.array([[0, 0, 40, 40]] * len(points), float)
    kinds = {"keypoints": points, "area": np.full(len(points), 800.0)}
    if score is None:
        return Objects(np.zeros(len(points), int), boxes, **kinds)
    return Objects.found(np.zeros(len(points)), boxes, score, **kinds)


RIGHT = [[[10, 10, 2], [30, 30, 1]]]


def test_parts_and_keys():
    metrics = PoseMetrics({0: "fly"}, sigmas=np.array([0.1, 0.1]))
    assert metrics.keys[3:5] == ["metrics/mAP50-95(B)", "metrics/precision(P)"]
    assert metrics.box.iou_type == "bbox"
    assert metrics.pose.iou_type == "keypoints"
    assert metrics.results_dict["fitness"] == 0


def test_fitness_is_the_sum_of_boxes_and_poses():
    wrong = [[[39, 1, 1], [1, 39, 1]]]
    images = records([pose(RIGHT), pose(RIGHT)], [pose(RIGHT, [0.9]), pose(wrong, [0.8])])
    metrics = scored(PoseMetrics({0: "fly"}, sigmas=np.array([0.1, 0.1])), images)
    assert metrics.box.map == pytest.approx(1)
    assert 0.4 < metrics.pose.map < 0.6
    assert metrics.fitness == metrics.box.map + metrics.pose.map


def test_the_sigmas_decide_what_is_near():
    near = [[[13, 10, 1], [30, 27, 1]]]
    scores = [
        scored(
            PoseMetrics({0: "fly"}, sigmas=np.full(2, sigma)),
            records([pose(RIGHT)], [pose(near, [0.9])]),
        ).pose.map
        for sigma in (0.5, 0.07, 0.01)
    ]
    assert scores[0] == pytest.approx(1)
    assert scores[2] == 0
    assert 0 < scores[1] < 1


def test_objects_without_a_labelled_keypoint_need_not_be_found():
    """Neither as a miss nor, where they are found, as a false alarm."""
    blank = [[[0, 0, 0], [0, 0, 0]]]
    truths = [pose(RIGHT), pose(blank), pose(blank)]
    founds = [pose(RIGHT, [0.9]), pose([[[5, 5, 1], [20, 20, 1]]], [0.95]), pose([], [])]
    founds[2] = founds[0].select(np.zeros(1, bool))
    metrics = scored(PoseMetrics({0: "fly"}, sigmas=np.full(2, 0.1)), records(truths, founds))
    assert metrics.pose.map == pytest.approx(1)
    assert (metrics.pose.mp, metrics.pose.mr) == (1, 1)
    assert metrics.box.mr == pytest.approx(2 / 3)
