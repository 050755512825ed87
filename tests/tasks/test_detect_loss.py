# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from golden_weights import fill
from yolo.nn.anchors import anchor_points
from yolo.nn.boxes import xywh_to_xyxy
from yolo.nn.class_losses import CLASS_LOSSES, bce_loss
from yolo.nn.losses import Targets
from yolo.nn.task_aligned import TaskAlignedAssigner
from yolo.tasks.detect.loss import DetectionCriterion
from yolo.tasks.detect.model import DetectionModel

STRIDES = (8, 16, 32)
CASES = ("crowd", "empty2nd", "gains", "large_clamp", "nc1", "nonsq", "noobj", "p6", "tiny")


def pad(batch_idx, classes, boxes_xyxy, batch):
    """Turn flat labels into padded targets' tensors."""
    batch_idx = torch.as_tensor(batch_idx).long().flatten()
    most = int(torch.bincount(batch_idx, minlength=batch).max()) if len(batch_idx) else 0
    labels = torch.zeros(batch, most, dtype=torch.int64)
    boxes = torch.zeros(batch, most, 4)
    mask = torch.zeros(batch, most, dtype=torch.bool)
    for b in range(batch):
        rows = batch_idx == b
        n = int(rows.sum())
        labels[b, :n] = classes[rows].long().flatten()
        boxes[b, :n] = boxes_xyxy[rows]
        mask[b, :n] = True
    return labels, boxes, mask


def stored_targets(numbers, case, size, batch):
    h, w = size
    boxes = xywh_to_xyxy(torch.from_numpy(numbers[f"{case}/batch/bboxes"]))
    boxes = boxes * torch.tensor([w, h, w, h])
    classes = torch.from_numpy(numbers[f"{case}/batch/cls"])
    labels, boxes, mask = pad(numbers[f"{case}/batch/batch_idx"], classes, boxes, batch)
    return Targets(labels, boxes, mask, size=size)


def raw_output(size=(64, 96), batch=2, classes=4, reg_max=16, seed=0, layout="anchors last"):
    g = torch.Generator().manual_seed(seed)
    points, strides = anchor_points([(size[0] // s, size[1] // s) for s in STRIDES], STRIDES)
    boxes = torch.randn(batch, 4 * reg_max, len(points), generator=g)
    if reg_max == 1:
        boxes = boxes.abs() * 3
    scores = torch.randn(batch, classes, len(points), generator=g) - 2
    if layout == "classes last":
        boxes, scores = boxes.mT.contiguous().mT, scores.mT.contiguous().mT
    return {
        "boxes": boxes.requires_grad_(),
        "scores": scores.requires_grad_(),
        "points": points,
        "strides": strides,
    }


def objects(size=(64, 96), batch=2, n=4, classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    limit = torch.tensor([size[1], size[0]])
    low = torch.rand(batch, n, 2, generator=g) * limit * 0.6
    high = low + 6 + torch.rand(batch, n, 2, generator=g) * limit * 0.4
    labels = torch.randint(0, classes, (batch, n), generator=g)
    mask = torch.ones(batch, n, dtype=torch.bool)
    return Targets(labels, torch.cat((low, high), -1), mask, size=size)


def gradients(raw, report):
    return torch.autograd.grad(report.total, [raw["boxes"], raw["scores"]])


@pytest.mark.golden
@pytest.mark.parametrize("layout", ["anchors last", "classes last"])
@pytest.mark.parametrize("name", CASES)
def test_equals_stored_loss_and_gradients(golden, name, layout):
    numbers, case = golden("losses.npz"), f"detect_{name}"

    def stored(key):
        value = numbers.get(f"{case}/{key}", numbers.get(f"{case}/{key}@v8.2"))
        return torch.from_numpy(np.asarray(value))

    meta = json.loads(str(numbers[f"{case}/meta"]))
    size = tuple(numbers[f"{case}/imgsz"].tolist())
    points, strides = anchor_points(
        [(size[0] // s, size[1] // s) for s in meta["strides"]], meta["strides"]
    )
    boxes, scores = stored("pred/boxes").clone(), stored("pred/scores").clone()
    if layout == "classes last":
        boxes, scores = boxes.mT.contiguous().mT, scores.mT.contiguous().mT
    raw = {
        "boxes": boxes.requires_grad_(),
        "scores": scores.requires_grad_(),
        "points": points,
        "strides": strides,
    }
    gains = {key: meta["gains"][key] for key in ("box", "cls", "dfl")}
    criterion = DetectionCriterion(meta["nc"], meta["strides"], 16, **gains)
    targets = stored_targets(numbers, case, size, len(boxes))

    report = criterion(raw, targets)
    assert tuple(report.parts) == criterion.names
    items = torch.stack(list(report.parts.values()))
    torch.testing.assert_close(items, stored("items"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(report.total, stored("total"), rtol=1e-4, atol=1e-5)
    for key, grad in zip(("boxes", "scores"), gradients(raw, report), strict=True):
        torch.testing.assert_close(grad, stored(f"grad/{key}"), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(grad.norm(), stored(f"gradnorm/{key}"), rtol=1e-3, atol=1e-6)

    positives = criterion.match(raw, targets)
    total_quality = stored("assign/target_scores_sum")
    torch.testing.assert_close(positives.quality.sum(), total_quality, rtol=1e-4, atol=1e-6)
    if meta["tie_sensitive_gts"] == 0:
        wanted = stored("assign/fg_mask").bool()
        assert torch.equal(positives.fg_mask, wanted)
        found = torch.zeros_like(stored("assign/target_gt_idx"))
        found.scatter_(1, positives.index, positives.gt_index * positives.mask)
        assert torch.equal(found[wanted], stored("assign/target_gt_idx")[wanted])


@pytest.mark.golden
def test_whole_network_equals_stored_loss_and_gradients(golden):
    numbers = golden("losses.npz")
    meta = json.loads(str(numbers["model_detect/meta"]))
    model = fill(DetectionModel(meta["cfg"], nc=meta["nc"])).train()
    x = torch.from_numpy(numbers["model_detect/x"])
    targets = stored_targets(numbers, "model_detect", tuple(meta["imgsz"]), len(x))
    report = DetectionCriterion(meta["nc"], model.stride)(model(x), targets)
    report.total.backward()

    items = torch.stack(list(report.parts.values())).numpy()
    np.testing.assert_allclose(items, numbers["model_detect/items"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(report.total.item(), numbers["model_detect/total"], rtol=1e-4)
    parameters = dict(model.named_parameters())
    names = json.loads(str(numbers["model_detect/param_names"]))
    norms = [parameters[name].grad.norm().item() for name in names]
    np.testing.assert_allclose(norms, numbers["model_detect/param_gradnorm"], rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize("n", [0, 3])
def test_without_objects_the_loss_is_finite_and_boxes_learn_nothing(n):
    raw, targets = raw_output(), objects(n=n)
    targets.mask[:] = False
    report = DetectionCriterion(4, STRIDES)(raw, targets)
    boxes, scores = gradients(raw, report)
    assert report.parts["box"] == 0
    assert report.parts["dfl"] == 0
    assert report.parts["cls"] > 0
    assert (boxes == 0).all()
    assert (scores > 0).all()


def test_a_batch_of_two_is_two_singles():
    raw, targets = raw_output(), objects()
    both = DetectionCriterion(4, STRIDES)(raw, targets)
    # With the batch's own normaliser, each image alone gives its share.
    total = DetectionCriterion(4, STRIDES).match(raw, targets).normaliser
    shares = []
    for b in range(2):
        one = {k: v[b : b + 1] if v.ndim == 3 else v for k, v in raw.items()}
        own = targets.map(lambda t, b=b: t[b : b + 1])
        criterion = DetectionCriterion(
            4, STRIDES, sum_over_ranks=lambda _: torch.stack((total, torch.tensor(2.0)))
        )
        shares.append(criterion(one, own))
    torch.testing.assert_close(both.total, shares[0].total + shares[1].total)
    for name in both.parts:
        together = shares[0].parts[name] + shares[1].parts[name]
        torch.testing.assert_close(both.parts[name], together)


def test_padding_is_told_by_the_mask_alone():
    raw, targets = raw_output(), objects()
    wanted = DetectionCriterion(4, STRIDES)(raw, targets)
    junk = torch.tensor([0.0, 0.0, 96.0, 64.0]).expand(2, 3, 4)
    padded = Targets(
        torch.cat((torch.zeros(2, 3, dtype=torch.int64), targets.classes), 1),
        torch.cat((junk, targets.boxes), 1),
        torch.cat((torch.zeros(2, 3, dtype=torch.bool), targets.mask), 1),
        size=targets.size,
    )
    report = DetectionCriterion(4, STRIDES)(raw, padded)
    torch.testing.assert_close(report.parts, wanted.parts)


def test_ignored_regions_are_no_background():
    raw, targets = raw_output(), objects(n=2)
    criterion = DetectionCriterion(4, STRIDES)
    plain = criterion(raw, targets)
    fg_mask = criterion.match(raw, targets).fg_mask
    targets.ignore = torch.zeros(2, 2, 4)
    targets.ignore[0, 0] = torch.tensor([0.0, 0.0, 48.0, 64.0])
    report = criterion(raw, targets)
    _, scores = gradients(raw, report)
    untouched = scores.abs().sum(1) == 0

    x = (raw["points"] * raw["strides"])[:, 0]
    wanted = torch.zeros_like(fg_mask)
    wanted[0] = (x < 48) & ~fg_mask[0]
    assert torch.equal(untouched, wanted)
    assert report.parts["cls"] < plain.parts["cls"]
    assert report.parts["box"] == plain.parts["box"]
    targets.ignore = torch.zeros(2, 0, 4)
    torch.testing.assert_close(criterion(raw, targets).parts, plain.parts)


def test_plain_distances_have_no_dfl_term():
    raw, targets = raw_output(reg_max=1), objects()
    criterion = DetectionCriterion(4, STRIDES, reg_max=1)
    report = criterion(raw, targets)
    assert tuple(report.parts) == criterion.names == ("box", "cls")
    boxes, _ = gradients(raw, report)
    assert boxes.abs().sum() > 0
    distances = raw["boxes"].mT
    torch.testing.assert_close(criterion.distances(raw["boxes"]), distances)


@pytest.mark.parametrize("layout", ["anchors last", "classes last"])
def test_gradient_by_differences(layout):
    raw, targets = raw_output(size=(32, 32), batch=1), objects(size=(32, 32), batch=1, n=2)
    criterion = DetectionCriterion(4, STRIDES)
    positives = criterion.match(raw, targets)  # fixed: an assignment has no gradient
    if layout == "classes last":
        raw = raw | {k: raw[k].detach().mT.contiguous().mT for k in ("boxes", "scores")}
    raw = {key: value.detach().double() for key, value in raw.items()}

    def loss(boxes, scores):
        changed = raw | {"boxes": boxes, "scores": scores}
        terms = criterion.terms(changed, targets, positives)
        return terms["cls"], terms["dfl"]

    inputs = raw["boxes"].requires_grad_(), raw["scores"].requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_worked_out_in_single(dtype):
    raw, targets = raw_output(), objects()
    half = {k: v.detach().to(dtype).requires_grad_() for k, v in raw.items() if v.ndim == 3}
    single = raw | {k: v.detach().float() for k, v in half.items()}
    wanted = DetectionCriterion(4, STRIDES)(single, targets)
    with torch.autocast("cpu", torch.bfloat16):
        report = DetectionCriterion(4, STRIDES)(raw | half, targets)
    assert report.total.dtype == torch.float32
    torch.testing.assert_close(report.parts, wanted.parts, rtol=0, atol=0)
    report.total.backward()
    assert half["boxes"].grad.dtype == dtype


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("n", [0, 4, 60])
@pytest.mark.parametrize("ignore", [False, True])
def test_no_data_dependent_shape_and_no_copy_to_the_host(n, ignore):
    with FakeTensorMode():
        raw = {
            "boxes": torch.randn(2, 64, 126, requires_grad=True),
            "scores": torch.randn(2, 4, 126, requires_grad=True),
            "points": torch.rand(126, 2),
            "strides": torch.rand(126, 1),
        }
        mask = torch.ones(2, n, dtype=torch.bool)
        regions = torch.rand(2, 3, 4) if ignore else None
        targets = Targets(mask.long(), torch.rand(2, n, 4), mask, regions, (64, 96))
        report = DetectionCriterion(4, STRIDES)(raw, targets)
        report.total.backward()
    assert report.total.shape == ()
    assert raw["boxes"].grad.shape == (2, 64, 126)


def test_normaliser_goes_through_all_ranks():
    raw, targets = raw_output(), objects(n=60)
    plain = DetectionCriterion(4, STRIDES)(raw, targets)
    two = DetectionCriterion(4, STRIDES, sum_over_ranks=lambda s: 2 * s)(raw, targets)
    assert DetectionCriterion(4, STRIDES).match(raw, targets).normaliser > 1
    torch.testing.assert_close(two.parts["cls"] * 2, plain.parts["cls"])
    torch.testing.assert_close(two.total, plain.total)  # half the terms, twice the images


def test_parts_are_detached_and_add_up():
    report = DetectionCriterion(4, STRIDES)(raw_output(), objects())
    assert not any(part.requires_grad for part in report.parts.values())
    torch.testing.assert_close(report.total, 2 * sum(report.parts.values()))


def test_parts_by_name(monkeypatch):
    monkeypatch.setitem(CLASS_LOSSES._parts, "double", lambda x, t: 2 * bce_loss(x, t))
    raw, targets = raw_output(), objects()
    plain = DetectionCriterion(4, STRIDES)(raw, targets)
    own = DetectionCriterion(
        4, STRIDES, cls_loss="double", assigner={"name": "task_aligned", "topk": 10}
    )
    torch.testing.assert_close(own(raw, targets).parts["cls"], 2 * plain.parts["cls"])
    few = DetectionCriterion(4, STRIDES, assigner=TaskAlignedAssigner(topk=1))
    assert few.match(raw, targets).mask.sum() <= 8


def test_a_step_down_the_gradient_lowers_the_loss():
    raw, targets = raw_output(), objects()
    criterion = DetectionCriterion(4, STRIDES)
    report = criterion(raw, targets)
    boxes, scores = gradients(raw, report)
    moved = raw | {"boxes": raw["boxes"] - 0.02 * boxes, "scores": raw["scores"] - 0.02 * scores}
    positives = criterion.match(raw, targets)
    before, after = (criterion.terms(r, targets, positives) for r in (raw, moved))
    assert all(after[name] < before[name] for name in criterion.names)
