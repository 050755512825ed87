# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from yolo.errors import ConfigError, UnknownNameError
from yolo.nn.class_losses import (
    CLASS_LOSSES,
    SparseTargets,
    bce_loss,
    dense_targets,
    focal_loss,
    quality_focal_loss,
    softplus_sum,
    varifocal_loss,
)


def scene(batch=2, classes=3, anchors=50, positions=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, anchors, generator=g) * 4
    index = torch.stack([torch.randperm(anchors, generator=g)[:positions] for _ in range(batch)])
    labels = torch.randint(0, classes, (batch, positions), generator=g)
    quality = torch.rand(batch, positions, generator=g)
    quality[:, -1] = 0  # padding
    return logits, SparseTargets(index, labels, quality)


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


def test_bce_has_no_data_dependent_shape():
    with FakeTensorMode():
        logits = torch.randn(2, 3, 50, requires_grad=True)
        index = torch.zeros(2, 4, dtype=torch.int64)
        ignored = torch.zeros(2, 50, dtype=torch.bool)
        value = bce_loss(logits, SparseTargets(index, index, torch.rand(2, 4), ignored))
        value.backward()
    assert value.shape == ()
    assert logits.grad.shape == (2, 3, 50)


ALL = sorted(CLASS_LOSSES)


def test_dense_targets_hold_what_the_sparse_ones_say():
    logits, targets = scene()
    dense = dense_targets(logits, targets)
    for image in range(2):
        for place in range(4):
            spot = image, targets.labels[image, place], targets.index[image, place]
            assert dense[spot] == targets.quality[image, place]
    assert (dense > 0).sum() == (targets.quality > 0).sum()


@pytest.mark.golden
def test_stored_values(golden):
    """Stored as (B, A, C), the mean over anchors, then the sum."""
    stored = golden("geometry.npz")
    logits, quality, label = (
        torch.from_numpy(stored[f"varifocal/{name}"]).mT for name in ("pred", "gt_score", "label")
    )
    anchors = logits.shape[2]

    def sparse(dense):
        """One position a logit: a batch entry an image and class."""
        flat = dense.reshape(-1, anchors)
        index = torch.arange(anchors).expand(len(flat), -1)
        return SparseTargets(index, torch.zeros_like(index), flat)

    rows = logits.reshape(-1, 1, anchors)
    positive = torch.where(label > 0, quality, 0.0)
    assert torch.equal(positive > 0, label > 0)
    found = varifocal_loss(rows, sparse(positive)) / anchors
    assert float(found) == pytest.approx(float(stored["varifocal/loss_alpha.75_gamma2"]), rel=1e-5)
    for alpha, gamma, name in ((0.25, 1.5, "alpha.25_gamma1.5"), (0.0, 2.0, "alpha0_gamma2")):
        found = focal_loss(rows, sparse(label), alpha=alpha, gamma=gamma) / anchors
        assert float(found) == pytest.approx(float(stored[f"focal/loss_{name}"]), rel=1e-5)


def test_by_hand():
    """One positive with q = 0.8 at p = 0.5, one background at p = 0.5."""
    logits = torch.zeros(1, 1, 2)
    targets = SparseTargets(*(torch.zeros(1, 1, dtype=torch.int64),) * 2, torch.tensor([[0.8]]))
    half = 0.6931472  # -log 0.5
    assert float(varifocal_loss(logits, targets)) == pytest.approx(half * (0.8 + 0.75 * 0.25))
    assert float(focal_loss(logits, targets)) == pytest.approx(half * 0.25 * (0.25 + 0.75))
    assert float(quality_focal_loss(logits, targets)) == pytest.approx(half * (0.09 + 0.25))


@pytest.mark.parametrize("name", ALL)
def test_properties_of_all(name):
    loss = CLASS_LOSSES[name]
    logits, targets = scene()
    value = loss(logits, targets)
    alone = [
        loss(logits[i : i + 1], SparseTargets(targets.index[i : i + 1], targets.labels[i : i + 1],
             targets.quality[i : i + 1]))
        for i in range(2)
    ]  # fmt: skip
    torch.testing.assert_close(value, sum(alone))
    # Right and sure is next to nothing, wrong and sure is much.
    sure = torch.full_like(logits, -20.0)
    hit = SparseTargets(targets.index, targets.labels, torch.ones_like(targets.quality))
    images = torch.arange(2)[:, None]
    sure[images, targets.labels, targets.index] = 20.0
    assert float(loss(sure, hit)) < 1e-3
    assert float(loss(-sure, hit)) > 1
    # Ignored anchors count neither in the value nor in the gradient.
    ignored = torch.zeros(2, 50, dtype=torch.bool)
    ignored[:, 10:30] = True
    ignored.scatter_(1, targets.index, False)
    leaf = logits.clone().requires_grad_()
    loss(leaf, SparseTargets(targets.index, targets.labels, targets.quality, ignored)).backward()
    assert (leaf.grad.mT[ignored] == 0).all()
    assert (leaf.grad.mT[~ignored] != 0).any()


@pytest.mark.parametrize("name", ALL)
def test_gradient_by_differences(name):
    logits, targets = scene(batch=1, anchors=12)
    exact = SparseTargets(targets.index, targets.labels, targets.quality.double())
    leaf = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: CLASS_LOSSES[name](x, exact), (leaf,))


def test_chosen_by_name_with_options():
    assert CLASS_LOSSES.function("bce") is bce_loss
    logits, targets = scene()
    chosen = CLASS_LOSSES.function({"name": "focal", "gamma": 1.5})
    assert chosen(logits, targets) == focal_loss(logits, targets, gamma=1.5)
    with pytest.raises(UnknownNameError, match="varifocal"):
        CLASS_LOSSES.function("varifocl")
    with pytest.raises(ConfigError, match="expected alpha, gamma, found 'gama'"):
        CLASS_LOSSES.function({"name": "focal", "gama": 1.5})
    with pytest.raises(ConfigError, match="needs a 'name'"):
        CLASS_LOSSES.function({"gamma": 1.5})
