# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from yolo.errors import ConfigError
from yolo.nn.box_losses import BOX_LOSSES, ciou_loss, siou_loss

BUILT_IN = ("ciou", "giou", "diou", "eiou", "siou", "wiou")
TARGET = torch.tensor([0.0, 0.0, 4.0, 2.0])
SHIFTED = torch.tensor([2.0, 0.0, 6.0, 2.0])
"""Half of the target overlaps: IoU 4/12; centres (4, 1) and (2, 1); hull 6 x 2."""

TALLER = torch.tensor([0.0, -1.0, 4.0, 3.0])
"""The same centre, twice the height: IoU 1/2; hull 4 x 4."""

IOU, DISTANCE = 4 / 12, 4 / (36 + 4)
HAND = {
    "giou": (1 - IOU, 0.5),
    "diou": (1 - IOU + DISTANCE, 0.5),
    "ciou": (
        1 - IOU + DISTANCE,
        0.5 + (v := 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2) * v / (v + 0.5),
    ),
    "eiou": (1 - IOU + DISTANCE, 0.5 + 4 / 16),
    "siou": (  # straight sideways: no angle cost, gamma 2
        1 - IOU + (1 - math.exp(-2 * (2 / 6) ** 2)) / 2,
        0.5 + (1 - math.exp(-0.5)) ** 4 / 2,
    ),
    "wiou": (math.exp(DISTANCE) * (1 - IOU), 0.5),
}


def boxes(count=200, seed=0):
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=g) * 10
    return torch.cat((low, low + 0.2 + torch.rand(count, 2, generator=g) * 8), 1)


@pytest.mark.parametrize("name", BUILT_IN)
def test_by_hand(name):
    for pred, wanted in zip((SHIFTED, TALLER), HAND[name], strict=True):
        assert float(BOX_LOSSES[name](pred, TARGET)) == pytest.approx(wanted, abs=1e-5)


def test_siou_counts_a_diagonal_shift_more_gently():
    """With an angle of 45 degrees gamma is 1: by hand, for unit squares one apart both ways."""
    square = torch.tensor([0.0, 0.0, 1.0, 1.0])
    found = siou_loss(square + 1, square)
    assert float(found) == pytest.approx(1 + (2 - 2 * math.exp(-0.25)) / 2, abs=1e-5)


@pytest.mark.parametrize("name", BUILT_IN)
def test_properties_of_all(name):
    loss, pred, target = BOX_LOSSES[name], boxes(), boxes(seed=1)
    value = loss(pred, target)
    assert value.shape == (200,)
    assert (value >= 0).all()
    torch.testing.assert_close(loss(target, target), torch.zeros(200), rtol=0, atol=1e-5)
    # No unit, no place, no difference between the axes.
    torch.testing.assert_close(loss(pred * 8, target * 8), value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss(pred + 3, target + 3), value, rtol=1e-3, atol=1e-4)
    turned = [1, 0, 3, 2]
    torch.testing.assert_close(loss(pred[:, turned], target[:, turned]), value)
    # Broadcasts, and farther is worse.
    assert loss(pred[:, None], target[None, :3]).shape == (200, 3)
    near, far = (loss(target + d, target).mean() for d in (0.5, 2.0))
    assert near < far


@pytest.mark.parametrize("name", BUILT_IN)
def test_gradients_pull_towards_the_target_and_stay_finite(name):
    pred = boxes().requires_grad_()
    target = boxes(seed=1)
    BOX_LOSSES[name](pred, target).sum().backward()
    assert pred.grad.isfinite().all()
    with torch.no_grad():
        before = BOX_LOSSES[name](pred, target).mean()
        after = BOX_LOSSES[name](pred - 1e-3 * pred.grad, target).mean()
    assert after < before
    empty = torch.tensor([[5.0, 5.0, 5.0, 5.0]], requires_grad=True)
    BOX_LOSSES[name](empty, TARGET[None]).sum().backward()
    assert empty.grad.isfinite().all()


def test_ciou_loss_is_zero_for_a_hit_and_grows_with_distance():
    box = torch.tensor([[10.0, 10.0, 30.0, 40.0]])
    shifts = torch.tensor([[0.0], [5.0], [50.0]])
    loss = ciou_loss(box + shifts, box)
    assert loss[0].abs() < 1e-6
    assert loss[0] < loss[1] < loss[2] < 2


def test_chosen_with_options():
    chosen = BOX_LOSSES.function({"name": "siou", "theta": 6.0})
    assert chosen(TALLER, TARGET) == siou_loss(TALLER, TARGET, theta=6.0)
    with pytest.raises(ConfigError, match="expected no options, found 'theta'"):
        BOX_LOSSES.function({"name": "giou", "theta": 6.0})
