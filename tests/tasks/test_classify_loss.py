# SPDX-License-Identifier: Apache-2.0
"""The classification loss: golden numbers, smoothing, weights, images without a class."""

from __future__ import annotations

import math

import pytest
import torch

from golden_weights import fill
from yolo.nn.losses import Targets
from yolo.tasks.classify.loss import ClassificationCriterion
from yolo.tasks.classify.model import ClassificationModel


def targets_of(classes, mask=None):
    ids = torch.as_tensor(classes)[:, None]
    known = torch.ones_like(ids, dtype=torch.bool) if mask is None else torch.tensor(mask)[:, None]
    return Targets(ids, torch.zeros(len(ids), 1, 4), known)


@pytest.mark.golden
def test_golden_loss_and_gradient(golden):
    arrays = golden("losses.npz")
    logits = torch.from_numpy(arrays["classify/pred/logits"]).requires_grad_()
    report = ClassificationCriterion()({"logits": logits}, targets_of(arrays["classify/batch/cls"]))
    report.total.backward()
    torch.testing.assert_close(
        report.total.item(), float(arrays["classify/total"]), rtol=1e-4, atol=1e-5
    )
    assert list(report.parts) == ["loss"]
    assert report.parts["loss"].item() == report.total.item()
    expected = torch.from_numpy(arrays["classify/grad/logits"])
    torch.testing.assert_close(logits.grad, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.golden
def test_golden_network(golden):
    arrays = golden("losses.npz")
    model = fill(ClassificationModel("yolov8n-cls.yaml", nc=10)).train()
    raw = model(torch.from_numpy(arrays["model_classify/x"]))
    total = ClassificationCriterion()(raw, targets_of(arrays["model_classify/batch/cls"])).total
    total.backward()
    expected = float(arrays["model_classify/total"])
    torch.testing.assert_close(total.item(), expected, rtol=1e-4, atol=1e-5)
    norms = torch.stack([p.grad.norm() for p in model.parameters()])
    stored = torch.from_numpy(arrays["model_classify/param_gradnorm"]).float()
    torch.testing.assert_close(norms, stored, rtol=5e-3, atol=1e-4)


def test_smoothing_by_hand():
    logits = torch.tensor([[2.0, 0.0]])
    p = 1 / (1 + math.exp(-2))
    total = ClassificationCriterion(label_smoothing=0.2)({"logits": logits}, targets_of([0])).total
    assert total.item() == pytest.approx(-0.9 * math.log(p) - 0.1 * math.log(1 - p), rel=1e-6)


def test_weights_scale_each_image_s_loss():
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    plain = [
        ClassificationCriterion()({"logits": row[None]}, targets_of([c])).total
        for row, c in zip(logits, (0, 1, 1), strict=True)
    ]
    weighted = ClassificationCriterion(class_weights=[2.0, 0.5])
    total = weighted({"logits": logits}, targets_of([0, 1, 1])).total
    torch.testing.assert_close(total, (2 * plain[0] + 0.5 * plain[1] + 0.5 * plain[2]) / 3)
    # An image weighs the same whatever else its batch holds.
    alone = weighted({"logits": logits[:1]}, targets_of([0])).total
    torch.testing.assert_close(alone, 2 * plain[0])


def test_images_of_unknown_class_do_not_count():
    logits = torch.randn(3, 4, requires_grad=True)
    criterion = ClassificationCriterion()
    total = criterion({"logits": logits}, targets_of([1, 0, 2], [True, False, True])).total
    torch.testing.assert_close(
        total, criterion({"logits": logits[[0, 2]]}, targets_of([1, 2])).total
    )
    total.backward()
    assert not logits.grad[1].any()
    none = Targets(
        torch.zeros(3, 0, dtype=torch.long), torch.zeros(3, 0, 4), torch.zeros(3, 0).bool()
    )
    empty = criterion({"logits": logits}, none).total
    assert empty.item() == 0
    empty.backward()


def test_half_precision_logits_give_a_float32_loss():
    logits = torch.tensor([[30000.0, -30000.0]]).half()
    total = ClassificationCriterion()({"logits": logits}, targets_of([1])).total
    assert total.dtype == torch.float32
    assert total.item() == 60000
