# SPDX-License-Identifier: Apache-2.0
"""Overlaps: the numbers that COCO's evaluator works with."""

from __future__ import annotations

import numpy as np
import pytest

from coco_sets import from_coco
from yolo.engine.coco_eval import Objects
from yolo.engine.overlaps import overlaps


@pytest.mark.parametrize("name", ["set_b_crowd", "set_c_keypoints"])
def test_overlaps_are_those_the_evaluator_uses(golden, name):
    from faster_coco_eval import COCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    stored = golden("metrics_coco.json")[name]
    truths, founds, classes = from_coco(stored["gt"], stored["dt"])
    for iou_type in stored["result"]:
        gt = COCO(stored["gt"], use_deepcopy=True)
        judge = COCOeval_faster(gt, gt.loadRes([dict(r) for r in stored["dt"]]), iou_type)
        judge.evaluate()
        compared = 0
        for i, image in enumerate(stored["gt"]["images"]):
            for c in range(classes):
                expected = judge.ious[image["id"], stored["gt"]["categories"][c]["id"]]
                found = founds[i].select(founds[i].classes == c)
                truth = truths[i].select(truths[i].classes == c)
                ours = overlaps(found, truth, iou_type)
                if len(expected):
                    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-15)
                    compared += ours.size
        assert compared > 30


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints", "rotated"])
def test_nothing_found_or_labelled(kind):
    none = Objects.found([], [], [])
    one = Objects.found([0], [[0, 0, 4, 4]], [0.5])
    assert overlaps(none, one, kind).shape == (0, 1)
    assert overlaps(one, none, kind).shape == (1, 0)


@pytest.mark.parametrize("kind", ["keypoints", "rotated"])
def test_what_is_compared_has_to_be_there(kind):
    one = Objects.found([0], [[0, 0, 4, 4]], [0.5])
    with pytest.raises(ValueError, match=f"expected {kind}"):
        overlaps(one, one, kind)
