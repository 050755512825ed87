# SPDX-License-Identifier: Apache-2.0
"""SimOTA by hand; what all assigners have in common is in test_assign."""

from __future__ import annotations

import pytest
import torch

from yolo.errors import ConfigError
from yolo.nn.simota import SimOTAAssigner

POINTS = torch.tensor([[4.0, 4.0], [12.0, 4.0], [20.0, 4.0], [28.0, 4.0]])
STRIDES = torch.full((4, 1), 8.0)


def assign(pred, gt, scores=None, **options):
    """One class, four anchor points in a row, predicted boxes_xyxy and objects of one image."""
    scores = torch.full((4, 1), 0.5) if scores is None else torch.tensor(scores)[:, None]
    labels = torch.zeros(1, len(gt), dtype=torch.int64)
    found = SimOTAAssigner(**options)(
        scores[None], torch.tensor([pred]), POINTS, labels, torch.tensor([gt]), labels == 0,
        strides_px=STRIDES, levels=(8,),
    )  # fmt: skip
    return found.fg_mask[0].tolist(), found.target_gt_idx[0].tolist(), found.quality[0].tolist()


OBJECT = [0.0, 0.0, 32.0, 8.0]
HALF = [0.0, 0.0, 16.0, 8.0]  # IoU 0.5 with the object
MISS = [0.0, 100.0, 32.0, 108.0]


def test_an_object_takes_as_many_anchors_as_its_overlaps_add_up_to():
    fg, _, quality = assign([OBJECT, HALF, HALF, MISS], [OBJECT])  # 1 + 0.5 + 0.5 + 0
    assert fg == [True, True, False, False] or fg == [True, False, True, False]
    assert sorted(quality) == pytest.approx([0, 0, 0.5, 1], abs=1e-5)
    assert sum(assign([HALF, MISS, MISS, MISS], [OBJECT])[0]) == 1  # 0.5, but never none
    assert sum(assign([OBJECT] * 4, [OBJECT])[0]) >= 3
    assert sum(assign([OBJECT] * 4, [OBJECT], topk=2)[0]) <= 2


def test_a_surer_class_is_cheaper():
    fg, *_ = assign([HALF] * 4, [OBJECT], [0.1, 0.2, 0.9, 0.3], topk=1)
    assert fg == [False, False, True, False]


def test_an_anchor_goes_where_it_is_cheapest():
    left, right = [0.0, 0.0, 16.0, 8.0], [0.0, 0.0, 15.0, 8.0]
    fg, owner, _ = assign([left, right, MISS, MISS], [left, right])
    assert fg[:2] == [True, True]
    assert owner[:2] == [0, 1]


def test_anchors_far_outside_are_no_candidates():
    fg, *_ = assign([OBJECT] * 4, [[0.0, 0.0, 8.0, 8.0]], radius=0.5)
    assert fg == [True, False, False, False]


@pytest.mark.parametrize("options", [{"topk": 0}, {"radius": 0.0}, {"box_weight": -1.0}])
def test_impossible_options(options):
    with pytest.raises(ConfigError, match="assigner 'simota': topk must be at least 1"):
        SimOTAAssigner(**options)
