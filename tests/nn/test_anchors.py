# SPDX-License-Identifier: Apache-2.0
"""Anchor points and distances."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from yolo.nn.anchors import anchor_points, boxes_to_ltrb, ltrb_to_boxes, points_like
from yolo.nn.boxes import xyxy_to_xywh


@pytest.mark.golden
def test_golden_points(golden):
    arrays = golden("geometry.npz")
    shapes = [tuple(map(int, hw)) for hw in arrays["anchors/hw"]]
    points, strides = anchor_points(shapes, arrays["anchors/stride_per_level"].tolist())
    assert torch.equal(points, torch.from_numpy(arrays["anchors/points"]).float())
    assert torch.equal(strides, torch.from_numpy(arrays["anchors/strides"]).float())


@pytest.mark.golden
def test_golden_distances(golden):
    arrays = {k: torch.from_numpy(v) for k, v in golden("geometry.npz").items() if "dist/" in k}
    points = torch.from_numpy(golden("geometry.npz")["anchors/points"]).float()
    close = {"rtol": 1e-4, "atol": 1e-6}
    ltrb = arrays["dist/ltrb"]
    torch.testing.assert_close(ltrb_to_boxes(ltrb, points), arrays["dist/xyxy"], **close)
    centred = xyxy_to_xywh(ltrb_to_boxes(ltrb, points))
    torch.testing.assert_close(centred, arrays["dist/xywh"], **close)
    torch.testing.assert_close(
        boxes_to_ltrb(arrays["dist/boxes"], points, limit=15),
        arrays["dist/bbox2dist_regmax15"],
        **close,
    )


def test_round_trip():
    points, _ = anchor_points([(4, 6), (2, 3)], [8, 16])
    dist = torch.rand(2, len(points), 4) * 9
    torch.testing.assert_close(boxes_to_ltrb(ltrb_to_boxes(dist, points), points), dist)


def test_points_are_remembered_but_never_fakes():
    feats = [torch.zeros(1, 1, 7, 9)]
    with FakeTensorMode():
        fake, _ = points_like([torch.zeros(1, 1, 7, 9)], (8,))
    first, strides = points_like(feats, (8,))
    assert type(first) is torch.Tensor
    assert type(fake) is not torch.Tensor
    assert points_like(feats, (8,))[0] is first
    assert points_like(feats, (16,))[1] is not strides


def test_points_made_while_predicting_serve_training():
    with torch.inference_mode():
        points, _ = points_like([torch.zeros(1, 1, 3, 11)], (8,))
    weight = torch.ones(2, requires_grad=True)
    (points * weight).sum().backward()
    assert weight.grad is not None


def test_meta_device():
    points, strides = anchor_points([(2, 3)], [8], device="meta")
    assert (points.shape, strides.shape) == ((6, 2), (6, 1))
    assert points.device.type == "meta"
