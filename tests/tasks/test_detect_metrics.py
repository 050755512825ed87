# SPDX-License-Identifier: Apache-2.0
"""The detector's metrics object has the familiar names."""

from __future__ import annotations

from numpy.random import default_rng

from coco_sets import NAMES, random_set, records, scored
from yolo.tasks.detect.metrics import DetMetrics


def test_box_is_the_only_part(tmp_path):
    metrics = DetMetrics(NAMES, tmp_path)
    scored(metrics, records(*random_set(default_rng(1))[:2]))
    assert metrics.parts == (metrics.box,)
    assert metrics.keys == [
        f"metrics/{name}(B)" for name in ("precision", "recall", "mAP50", "mAP50-95")
    ]
    assert metrics.fitness == metrics.box.map == metrics.results_dict["metrics/mAP50-95(B)"] > 0
    assert metrics.box.title == "Box"
