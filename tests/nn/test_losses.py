# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from yolo.errors import UnknownNameError
from yolo.nn.losses import (
    BOX_LOSSES,
    CLASS_LOSSES,
    SparseTargets,
    Targets,
    bce_loss,
    ciou_loss,
    dfl_loss,
    softplus_sum,
)


def scene(batch=2, classes=3, anchors=50, positions=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, anchors, generator=g) * 4
    index = torch.stack([torch.randperm(anchors, generator=g)[:positions] for _ in range(batch)])
    labels = torch.randint(0, classes, (batch, positions), generator=g)
    quality = torch.rand(batch, positions, generator=g)
    quality[:, -1] = 0  # padding
    return logits, SparseTargets(index, labels, quality)


def dense_targets(logits, targets):
    dense = torch.zeros_like(logits.transpose(1, 2).contiguous())
    images = torch.arange(len(dense))[:, None]
    dense[images, targets.index, targets.labels] = targets.quality
    return dense.transpose(1, 2)


@pytest.mark.parametrize("layout", ["anchors last", "classes last"])
@pytest.mark.parametrize("ignore", [False, True])
def test_bce_equals_the_dense_computation(layout, ignore):
    logits, targets = scene()
    if layout == "classes last":
        logits = logits.mT.contiguous().mT
    ignored = torch.zeros(2, 50, dtype=torch.bool)
    if ignore:
        ignored[:, 10:30] = True
        ignored.scatter_(1, targets.index, False)
        targets = SparseTargets(targets.index, targets.labels, targets.quality, ignored)
    first, second = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = bce_loss(first, targets)
    dense = F.binary_cross_entropy_with_logits(
        second, dense_targets(logits, targets), reduction="none"
    )
    wanted = (dense * ~ignored[:, None]).sum()
    torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)
    (value * 3).backward()
    (wanted * 3).backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-5, atol=1e-6)


def test_bce_gradient_by_differences():
    logits, targets = scene(batch=1, anchors=30)
    assert torch.autograd.gradcheck(
        lambda x: bce_loss(x, targets), (logits.double().requires_grad_(),)
    )


def test_bce_gradient_lies_in_memory_as_its_logits():
    logits, targets = scene()
    logits = logits.mT.contiguous().mT.requires_grad_()
    bce_loss(logits, targets).backward()
    assert logits.grad.mT.is_contiguous()


@pytest.mark.parametrize("shift", [-40.0, -12.0, 0.0, 40.0, 120.0])
@pytest.mark.parametrize("shape", [(), (5,), (64,), (7, 1001), (3, 2**17 + 5)])
def test_softplus_sum_keeps_float32_precision(shift, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + shift
    wanted = F.softplus(x.double(), threshold=1000).sum()
    torch.testing.assert_close(softplus_sum(x).double(), wanted, rtol=2e-6, atol=0)


def test_softplus_sum_of_extremes():
    x = torch.tensor([-torch.inf, -1e30, 0.0]).repeat(64)
    torch.testing.assert_close(softplus_sum(x), torch.tensor(64 * 0.6931472))
    assert softplus_sum(torch.zeros(128)).isfinite()
    assert softplus_sum(torch.empty(0)) == 0
    assert softplus_sum(torch.tensor([torch.nan, 1.0])).isnan()
    assert softplus_sum(torch.tensor([torch.inf, 1.0])) == torch.inf


@pytest.mark.golden
def test_dfl_equals_stored_values(golden):
    numbers = golden("geometry.npz")
    logits = torch.from_numpy(numbers["dfl/pred"]).view(-1, 4, 16)
    found = dfl_loss(logits, torch.from_numpy(numbers["dfl/target"]))
    wanted = torch.from_numpy(numbers["dfl/loss"])[:, 0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_dfl_is_least_where_the_bins_are_split_as_the_distance_is():
    logits = torch.full((1, 4, 8), -30.0)
    logits[..., 2], logits[..., 3] = torch.log(torch.tensor([0.25, 0.75])).tolist()
    logits.requires_grad_()
    dfl_loss(logits, torch.full((1, 4), 2.75)).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=1e-6)


def test_ciou_loss_is_zero_for_a_hit_and_grows_with_distance():
    box = torch.tensor([[10.0, 10.0, 30.0, 40.0]])
    shifts = torch.tensor([[0.0], [5.0], [50.0]])
    loss = ciou_loss(box + shifts, box)
    assert loss[0].abs() < 1e-6
    assert loss[0] < loss[1] < loss[2] < 2


def test_parts_are_found_by_name():
    assert CLASS_LOSSES["bce"] is bce_loss
    assert BOX_LOSSES["ciou"] is ciou_loss
    with pytest.raises(UnknownNameError, match="bce"):
        CLASS_LOSSES["bec"]


def test_bce_has_no_data_dependent_shape():
    with FakeTensorMode():
        logits = torch.randn(2, 3, 50, requires_grad=True)
        index = torch.zeros(2, 4, dtype=torch.int64)
        ignored = torch.zeros(2, 50, dtype=torch.bool)
        value = bce_loss(logits, SparseTargets(index, index, torch.rand(2, 4), ignored))
        value.backward()
    assert value.shape == ()
    assert logits.grad.shape == (2, 3, 50)


def test_targets_move_with_everything_they_hold():
    targets = Targets(
        classes=torch.zeros(1, 2, dtype=torch.int64),
        boxes=torch.zeros(1, 2, 4),
        mask=torch.ones(1, 2, dtype=torch.bool),
        ignore=torch.zeros(1, 1, 4),
        size=(64, 96),
        extras={"keypoints": torch.zeros(1, 2, 17, 3)},
    )
    moved = targets.to("meta")
    tensors = [moved.classes, moved.boxes, moved.mask, moved.ignore, moved.extras["keypoints"]]
    assert all(t.is_meta for t in tensors)
    assert moved.size == (64, 96)
    assert targets.to("cpu").ignore is not None
    assert Targets(targets.classes, targets.boxes, targets.mask).to("meta").ignore is None
