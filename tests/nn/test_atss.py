# SPDX-License-Identifier: Apache-2.0
"""Adaptive selection by hand; what all assigners have in common is in test_assign."""

from __future__ import annotations

import pytest
import torch

from yolo.errors import ConfigError
from yolo.nn.anchors import anchor_points
from yolo.nn.atss import ATSSAssigner
from yolo.nn.boxes import iou

LEVELS = (8, 16)


def assign(gt, size=64, moved=0.0, **options):
    """Objects of one image on two levels of points; predictions are the anchor boxes, moved."""
    grid, strides = anchor_points([(size // s, size // s) for s in LEVELS], LEVELS)
    points = grid * strides
    half = strides * 4
    squares = torch.cat((points - half, points + half), 1)
    labels = torch.zeros(1, len(gt), dtype=torch.int64)
    scores, pred = torch.full((1, len(points), 1), 0.5), squares[None] + moved
    found = ATSSAssigner(**options)(
        scores, pred, points, labels, torch.tensor([gt]), labels == 0,
        strides_px=strides, levels=LEVELS,
    )  # fmt: skip
    return found, points, squares


def test_the_rule_worked_out_the_plain_way():
    box = [10.0, 6.0, 51.0, 58.0]
    found, points, squares = assign([box])
    gt = torch.tensor(box)
    middle = (gt[:2] + gt[2:]) / 2
    chosen = []
    for first, last in ((0, 64), (64, 80)):
        near = (points[first:last] - middle).norm(dim=1).argsort()[:9] + first
        chosen += near.tolist()
    overlaps = iou(squares[chosen], gt)
    threshold = overlaps.mean() + overlaps.std()
    wanted = {
        a for a, overlap in zip(chosen, overlaps, strict=True)
        if overlap >= threshold and (points[a] > gt[:2]).all() and (points[a] < gt[2:]).all()
    }  # fmt: skip
    assert wanted
    assert set(found.fg_mask[0].nonzero().flatten().tolist()) == wanted
    for a in wanted:
        assert float(found.quality[0, a]) == pytest.approx(float(iou(squares[a], gt)))


def test_predictions_do_not_decide():
    found, *_ = assign([[10.0, 6.0, 51.0, 58.0]])
    again, *_ = assign([[10.0, 6.0, 51.0, 58.0]], moved=1000.0)
    assert torch.equal(found.fg_mask, again.fg_mask)
    assert found.quality.max() > 0
    assert again.quality.max() == 0


def test_a_tiny_object_with_one_anchor_inside_has_it():
    found, points, _ = assign([[3.0, 3.0, 5.0, 5.0]])
    (place,) = found.fg_mask[0].nonzero().flatten().tolist()
    assert points[place].tolist() == [4.0, 4.0]


def test_shared_anchors_go_to_the_larger_overlap():
    small, large = [16.0, 16.0, 40.0, 40.0], [0.0, 0.0, 64.0, 64.0]
    found, _, squares = assign([small, large])
    for place in found.fg_mask[0].nonzero().flatten().tolist():
        overlaps = iou(squares[place], torch.tensor([small, large]))
        owner = found.target_gt_idx[0, place]
        alone, *_ = assign([[small, large][1 - owner]])
        if alone.fg_mask[0, place]:
            assert overlaps[owner] >= overlaps[1 - owner]


@pytest.mark.parametrize("options", [{"topk": 0}, {"scale": 0.0}])
def test_impossible_options(options):
    with pytest.raises(ConfigError, match="assigner 'atss': topk must be at least 1"):
        ATSSAssigner(**options)
