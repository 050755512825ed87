# SPDX-License-Identifier: Apache-2.0
"""Objects and predictions near them, as an assigner takes them."""

from __future__ import annotations

import torch

from yolo.nn.anchors import anchor_points
from yolo.nn.boxes import xyxy_to_xywh

STRIDES = (8, 16, 32)


def scene(batch=2, objects=5, size=128, classes=4, seed=0, channels_last=False):
    """Predictions near objects, as the assigner's positional arguments."""
    g = torch.Generator().manual_seed(seed)
    points, steps = anchor_points([(size // s, size // s) for s in STRIDES], STRIDES)
    points = points * steps
    low = torch.rand(batch, objects, 2, generator=g) * size * 0.7
    gt = torch.cat((low, low + 8 + torch.rand(batch, objects, 2, generator=g) * size * 0.4), -1)
    half = 4 + torch.rand(batch, len(points), 2, generator=g) * size * 0.25
    pred = torch.cat((points - half, points + half), -1)
    scores = torch.rand(batch, classes, len(points), generator=g).mT
    if channels_last:
        scores = scores.contiguous()
    labels = torch.randint(0, classes, (batch, objects), generator=g)
    return scores, pred, points, labels, gt, torch.ones(batch, objects, dtype=torch.bool)


def assert_same(first, second):
    for name in ("fg_mask", "target_gt_idx", "target_labels", "target_bboxes", "quality"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=0)


def turned_scene(**options):
    """A scene of rotated boxes."""
    scores, pred, points, labels, gt, mask = scene(**options)
    g = torch.Generator().manual_seed(9)
    boxes = [
        torch.cat((xyxy_to_xywh(b), torch.rand(*b.shape[:2], 1, generator=g) * 3), -1)
        for b in (pred, gt)
    ]
    return scores, boxes[0], points, labels, boxes[1], mask
