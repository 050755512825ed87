# SPDX-License-Identifier: Apache-2.0
"""The criterion of oriented boxes: stored losses and gradients, and what must hold for any."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from golden_weights import fill
from yolo.nn.anchors import anchor_points
from yolo.nn.losses import Targets
from yolo.nn.rotated import boxes_to_ltrb, prob_iou
from yolo.tasks.obb.loss import OBBCriterion
from yolo.tasks.obb.model import OBBModel

STRIDES = (8, 16, 32)
CASES = [(name, floor) for name in ("empty2nd", "nonsq", "noobj") for floor in (True, False)]
CASES += [("tiny", False)]  # the later build's rule for small boxes isn't taken over
HEADS = ("boxes", "scores", "angle")


def stored_targets(numbers, case, batch):
    h, w = numbers[f"{case}/imgsz"].tolist() if f"{case}/imgsz" in numbers else (64, 96)
    place = numbers[f"{case}/batch/batch_idx"].astype(int)
    most = int(np.bincount(place, minlength=batch).max())
    boxes, classes = torch.zeros(batch, most, 5), torch.zeros(batch, most, dtype=torch.int64)
    mask = torch.zeros(batch, most, dtype=torch.bool)
    for b in range(batch):
        own = torch.from_numpy(numbers[f"{case}/batch/bboxes"][place == b])
        boxes[b, : len(own)] = own * torch.tensor([w, h, w, h, 1.0])
        classes[b, : len(own)] = torch.from_numpy(numbers[f"{case}/batch/cls"][place == b, 0])
        mask[b, : len(own)] = True
    return Targets(classes, torch.zeros(batch, most, 4), mask, None, (h, w), {"rotated": boxes})


def raw_output(size=(64, 96), batch=2, classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    points, strides = anchor_points([(size[0] // s, size[1] // s) for s in STRIDES], STRIDES)
    boxes = torch.randn(batch, 64, len(points), generator=g)
    scores = torch.randn(batch, classes, len(points), generator=g) - 2
    angle = torch.rand(batch, 1, len(points), generator=g) * math.pi - math.pi / 4
    raw = {"boxes": boxes, "scores": scores, "angle": angle}
    return {k: v.requires_grad_() for k, v in raw.items()} | {"points": points, "strides": strides}


def objects(size=(64, 96), batch=2, n=4, classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    centre = torch.rand(batch, n, 2, generator=g) * torch.tensor([size[1], size[0]])
    sides = 6 + torch.rand(batch, n, 2, generator=g) * 30
    angle = torch.rand(batch, n, 1, generator=g) * math.pi - math.pi / 4
    labels = torch.randint(0, classes, (batch, n), generator=g)
    mask = torch.ones(batch, n, dtype=torch.bool)
    boxes = torch.cat((centre, sides, angle), -1)
    return Targets(labels, torch.zeros(batch, n, 4), mask, None, size, {"rotated": boxes})


def gradients(raw, report):
    return torch.autograd.grad(report.total, [raw[key] for key in HEADS])


@pytest.mark.golden
@pytest.mark.parametrize(("name", "floor"), CASES)
def test_equals_stored_loss_and_gradients(golden, name, floor):
    """The later build's items without its angle term; without the floor also its other numbers.

    `switched_off` are those without variance floor and without the rule for small boxes. The
    angle's gradient is the earlier build's, which has no angle term; its distribution term has
    other targets, so the boxes' gradient is the later build's.
    """
    numbers, case = golden("losses.npz"), f"obb_{name}"

    def stored(key, build):
        value = numbers.get(f"{case}/{key}", numbers.get(f"{case}/{key}@{build}"))
        return torch.from_numpy(np.asarray(value))

    size = tuple(numbers[f"{case}/imgsz"].tolist())
    points, strides = anchor_points([(size[0] // s, size[1] // s) for s in STRIDES], STRIDES)
    raw = {k: stored(f"pred/{k}", "").clone().requires_grad_() for k in HEADS}
    raw |= {"points": points, "strides": strides}
    meta = json.loads(str(numbers[f"{case}/meta"]))
    criterion = OBBCriterion(
        meta["nc"], meta["strides"], 16, **{k: meta["gains"][k] for k in ("box", "cls", "dfl")}
    )
    if not floor:
        criterion.box_loss = lambda pred, target: 1 - prob_iou(pred, target)
    targets = stored_targets(numbers, case, len(raw["boxes"]))

    report = criterion(raw, targets)
    assert tuple(report.parts) == criterion.names == ("box", "cls", "dfl")
    items = torch.stack(list(report.parts.values()))
    expected = stored("items", "v8.4") if floor else stored("switched_off/items", "")
    torch.testing.assert_close(items, expected[:3], rtol=1e-4, atol=1e-5)
    boxes, scores, angle = gradients(raw, report)
    close = {"rtol": 1e-3, "atol": 1e-6}
    torch.testing.assert_close(scores, stored("grad/scores", "v8.2"), **close)
    if floor:
        torch.testing.assert_close(boxes, stored("grad/boxes", "v8.4"), **close)
    else:
        torch.testing.assert_close(angle, stored("grad/angle", "v8.2"), **close)

    large = (targets.extras["rotated"][..., 2:4] >= 2).all(-1)
    seen = Targets(targets.classes, targets.extras["rotated"], targets.mask & large)
    positives = criterion.match(raw, seen)
    total_quality = stored("assign/target_scores_sum", "v8.2")
    torch.testing.assert_close(positives.quality.sum(), total_quality, rtol=1e-4, atol=1e-6)
    wanted = stored("assign/fg_mask", "v8.2").bool()
    assert torch.equal(positives.fg_mask, wanted)
    found = torch.zeros_like(stored("assign/target_gt_idx", "v8.2"))
    found.scatter_(1, positives.index, positives.gt_index * positives.mask)
    assert torch.equal(found[wanted], stored("assign/target_gt_idx", "v8.2")[wanted])


@pytest.mark.golden
def test_whole_network_equals_stored_loss(golden):
    numbers = golden("losses.npz")
    meta = json.loads(str(numbers["model_obb/meta"]))
    model = fill(OBBModel(meta["cfg"], nc=meta["nc"])).train()
    x = torch.from_numpy(numbers["model_obb/x"])
    targets = stored_targets(numbers, "model_obb", len(x))
    report = OBBCriterion(meta["nc"], model.stride)(model(x), targets)
    report.total.backward()
    items = torch.stack(list(report.parts.values())).numpy()
    np.testing.assert_allclose(items, numbers["model_obb/items@v8.4"][:3], rtol=1e-4, atol=1e-5)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("n", [0, 3])
def test_without_objects_the_loss_is_finite_and_boxes_learn_nothing(n):
    raw, targets = raw_output(), objects(n=n)
    targets.mask[:] = False
    report = OBBCriterion(4, STRIDES)(raw, targets)
    boxes, scores, angle = gradients(raw, report)
    assert report.parts["box"] == report.parts["dfl"] == 0
    assert (boxes == 0).all()
    assert (angle == 0).all()
    assert (scores > 0).all()


def test_a_batch_of_two_is_two_singles():
    raw, targets = raw_output(), objects()
    both = OBBCriterion(4, STRIDES)(raw, targets)
    rotated = Targets(targets.classes, targets.extras["rotated"], targets.mask)
    total = OBBCriterion(4, STRIDES).match(raw, rotated).normaliser
    shares = []
    for b in range(2):
        one = {k: v[b : b + 1] if v.ndim == 3 else v for k, v in raw.items()}
        own = targets.map(lambda t, b=b: t[b : b + 1])
        shares.append(
            OBBCriterion(
                4, STRIDES, sum_over_ranks=lambda _: torch.stack((total, torch.tensor(2.0)))
            )(one, own)
        )
    torch.testing.assert_close(both.total, shares[0].total + shares[1].total)


def test_padding_and_slivers_learn_nothing():
    raw, targets = raw_output(), objects()
    wanted = OBBCriterion(4, STRIDES)(raw, targets)
    sliver = torch.tensor([[40.0, 30, 60, 1.9, 0.3]]).expand(2, 1, 5)
    junk = torch.zeros(2, 2, 5)
    mask = torch.tensor([[False, False, True]]).expand(2, 3)
    padded = Targets(
        torch.cat((torch.zeros(2, 3, dtype=torch.int64), targets.classes), 1),
        torch.zeros(2, 7, 4),
        torch.cat((mask, targets.mask), 1),
        size=targets.size,
        extras={"rotated": torch.cat((junk, sliver, targets.extras["rotated"]), 1)},
    )
    report = OBBCriterion(4, STRIDES)(raw, padded)
    torch.testing.assert_close(report.parts, wanted.parts)


def test_other_names_of_a_box_mean_the_same():
    """A quarter turn with sides swapped: box and class terms see no difference."""
    raw, targets = raw_output(), objects()
    wanted = OBBCriterion(4, STRIDES)(raw, targets)
    turn = torch.tensor([0, 0, 0, 0, math.pi / 2])
    targets.extras["rotated"] = targets.extras["rotated"][..., [0, 1, 3, 2, 4]] + turn
    report = OBBCriterion(4, STRIDES)(raw, targets)
    for name in ("box", "cls"):
        torch.testing.assert_close(report.parts[name], wanted.parts[name], rtol=1e-4, atol=1e-5)


def perfect(raw, targets, criterion):
    """Logits whose distances and angles are the assigned objects'."""
    seen = Targets(targets.classes, targets.extras["rotated"], targets.mask)
    positives = criterion.match(raw, seen)
    index, boxes = positives.index, positives.boxes
    stride = raw["strides"][index]
    dist = boxes_to_ltrb(
        torch.cat((boxes[..., :4] / stride, boxes[..., 4:]), -1), raw["points"][index]
    )
    bins = torch.arange(16.0)
    low = dist.floor()[..., None]
    share = dist[..., None] - low
    logits = torch.where(bins == low, (1 - share).clamp(1e-9).log(), -50.0)
    logits = torch.where(bins == low + 1, share.clamp(1e-9).log(), logits)
    made = {key: raw[key].detach().clone() for key in ("boxes", "angle")}
    sides = logits.flatten(2).mT
    made["boxes"].scatter_(2, index[:, None].expand(-1, 64, -1), sides)
    made["angle"].scatter_(2, index[:, None], boxes[..., 4:].mT)
    return raw | made, positives


def test_perfect_predictions_have_no_box_loss():
    """So decoding, targets and overlap share one frame."""
    raw, targets = raw_output(), objects()
    criterion = OBBCriterion(4, STRIDES)
    better, positives = perfect(raw, targets, criterion)
    before, after = (criterion.box_terms(r, positives)["box"] for r in (raw, better))
    assert after < 0.02 * before


def test_a_step_down_the_gradient_lowers_the_loss():
    raw, targets = raw_output(), objects()
    criterion = OBBCriterion(4, STRIDES)
    slopes = gradients(raw, criterion(raw, targets))
    moved = raw | {k: raw[k] - 0.02 * s for k, s in zip(HEADS, slopes, strict=True)}
    seen = Targets(targets.classes, targets.extras["rotated"], targets.mask)
    positives = criterion.match(raw, seen)
    before, after = (criterion.terms(r, seen, positives) for r in (raw, moved))
    assert all(after[name] < before[name] for name in criterion.names)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_worked_out_in_single(dtype):
    raw, targets = raw_output(), objects()
    half = {k: raw[k].detach().to(dtype).requires_grad_() for k in HEADS}
    wanted = OBBCriterion(4, STRIDES)(
        raw | {k: v.detach().float() for k, v in half.items()}, targets
    )
    with torch.autocast("cpu", torch.bfloat16):
        report = OBBCriterion(4, STRIDES)(raw | half, targets)
    torch.testing.assert_close(report.parts, wanted.parts, rtol=0, atol=0)


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("n", [0, 4, 60])
def test_no_data_dependent_shape_and_no_copy_to_the_host(n):
    with FakeTensorMode():
        raw = {
            "boxes": torch.randn(2, 64, 126, requires_grad=True),
            "scores": torch.randn(2, 4, 126, requires_grad=True),
            "angle": torch.rand(2, 1, 126, requires_grad=True),
            "points": torch.rand(126, 2),
            "strides": torch.rand(126, 1),
        }
        mask = torch.ones(2, n, dtype=torch.bool)
        extras = {"rotated": torch.rand(2, n, 5)}
        targets = Targets(mask.long(), torch.rand(2, n, 4), mask, None, (64, 96), extras)
        report = OBBCriterion(4, STRIDES)(raw, targets)
        report.total.backward()
    assert report.total.shape == ()
    assert raw["angle"].grad.shape == (2, 1, 126)


def test_plain_distances_have_no_dfl_term():
    raw, targets = raw_output(), objects()
    raw["boxes"] = (raw["boxes"][:, :4].detach().abs() * 3).requires_grad_()
    criterion = OBBCriterion(4, STRIDES, reg_max=1)
    report = criterion(raw, targets)
    assert tuple(report.parts) == ("box", "cls")
    assert gradients(raw, report)[2].abs().sum() > 0
