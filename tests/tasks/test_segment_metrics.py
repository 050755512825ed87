# SPDX-License-Identifier: Apache-2.0
"""Two parts, boxes and masks, under their familiar names."""

from __future__ import annotations

import numpy as np
import pytest

from coco_sets import records, scored
from yolo.data.masks import encode_rle
from yolo.data.sample import Instances
from yolo.engine.coco_eval import Objects
from yolo.tasks.segment.metrics import SegmentMetrics


def test_masks_are_scored_apart_from_boxes():
    """The right box around the wrong half of it."""
    boxes = [[10, 10, 50, 50]]
    left, right = np.ones((40, 20)), np.ones((40, 20))
    truth = Objects.labelled(
        Instances.from_boxes([1], boxes), [encode_rle(left, 10, 10, (400, 500))]
    )
    found = Objects.found([1], boxes, [0.9], rles=[encode_rle(right, 10, 30, (400, 500))])
    metrics = scored(SegmentMetrics({0: "a", 1: "b"}), records([truth], [found]))
    assert (metrics.box.map50, metrics.seg.map50) == (1, 0)
    assert metrics.fitness == pytest.approx(metrics.box.map + metrics.seg.map)
    names = ("precision", "recall", "mAP50", "mAP50-95")
    keys = [f"metrics/{name}({letter})" for letter in "BM" for name in names]
    assert list(metrics.results_dict) == [*keys, "fitness"]
    assert "Mask-F1" in metrics.summary()[0]
    assert metrics.maps.tolist() == [metrics.fitness] * 2
