# SPDX-License-Identifier: Apache-2.0
"""The pose criterion against stored numbers, and what its keypoint terms must do."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from golden_weights import fill
from yolo.engine.coco_eval import Objects
from yolo.engine.overlaps import keypoint_similarity
from yolo.nn.anchors import anchor_points
from yolo.nn.boxes import xywh_to_xyxy
from yolo.nn.losses import Targets
from yolo.tasks.pose.loss import PoseCriterion, keypoint_loss
from yolo.tasks.pose.model import PoseModel

STRIDES = (8, 16, 32)
CASES = ("17x3", "4x3_nonsq_inv", "5x2_vis2", "5x2_vis3", "noobj")
PREDICTIONS = ("boxes", "scores", "kpts")


def stored_targets(numbers, case, size, batch):
    """Pad stored flat labels; keypoints without a flag are visible unless a coordinate is < 0."""
    scale = np.array(size[::-1], np.float32)
    images = numbers[f"{case}/batch/batch_idx"].astype(int)
    boxes = xywh_to_xyxy(torch.from_numpy(numbers[f"{case}/batch/bboxes"])).numpy()
    points = numbers[f"{case}/batch/keypoints"]
    if points.shape[2] == 2:
        points = np.concatenate([points, np.ones_like(points[..., :1])], 2)
    slots = max(np.bincount(images, minlength=batch)) if len(images) else 0
    targets = Targets(
        torch.zeros(batch, slots, dtype=torch.int64),
        torch.zeros(batch, slots, 4),
        torch.zeros(batch, slots, dtype=torch.bool),
        size=size,
        extras={"keypoints": torch.zeros(batch, slots, *points.shape[1:])},
    )
    points = points * np.array([*scale, 1], np.float32)
    for image in range(batch):
        rows = images == image
        n = int(rows.sum())
        targets.classes[image, :n] = torch.from_numpy(numbers[f"{case}/batch/cls"][rows, 0]).long()
        targets.boxes[image, :n] = torch.from_numpy(boxes[rows] * np.tile(scale, 2))
        targets.mask[image, :n] = True
        targets.extras["keypoints"][image, :n] = torch.from_numpy(points[rows])
    return targets


def made_up(shape=(4, 3), n=3, size=(64, 96), batch=2, seed=0):
    """Raw output of two classes and labels of `n` objects an image."""
    g = torch.Generator().manual_seed(seed)
    points, strides = anchor_points([(size[0] // s, size[1] // s) for s in STRIDES], STRIDES)
    widths = {"boxes": 64, "scores": 2, "kpts": shape[0] * shape[1]}
    raw = {
        name: torch.randn(batch, width, len(points), generator=g).requires_grad_()
        for name, width in widths.items()
    }
    raw |= {"points": points, "strides": strides}
    limit = torch.tensor([size[1], size[0]])
    low = torch.rand(batch, n, 2, generator=g) * limit * 0.5
    high = low + 10 + torch.rand(batch, n, 2, generator=g) * limit * 0.4
    keypoints = torch.rand(batch, n, shape[0], 2, generator=g) * (high - low)[:, :, None]
    flags = torch.randint(0, 3, (batch, n, shape[0], 1), generator=g).float()
    keypoints = torch.cat((keypoints + low[:, :, None], flags), -1)
    mask = torch.ones(batch, n, dtype=torch.bool)
    boxes = torch.cat((low, high), -1)
    targets = Targets(mask.long() * 0, boxes, mask, size=size, extras={"keypoints": keypoints})
    return raw, targets


@pytest.mark.golden
@pytest.mark.parametrize("layout", ["anchors last", "numbers last"])
@pytest.mark.parametrize("name", CASES)
def test_equals_stored_loss_and_gradients(golden, name, layout):
    numbers, case = golden("losses.npz"), f"pose_{name}"

    def stored(key):
        value = numbers.get(f"{case}/{key}", numbers.get(f"{case}/{key}@v8.2"))
        return torch.from_numpy(np.asarray(value))

    meta = json.loads(str(numbers[f"{case}/meta"]))
    size = tuple(numbers[f"{case}/imgsz"].tolist())
    shapes = [(size[0] // s, size[1] // s) for s in meta["strides"]]
    points, strides = anchor_points(shapes, meta["strides"])
    raw = {key: stored(f"pred/{key}").clone() for key in PREDICTIONS}
    if layout == "numbers last":
        raw = {key: value.mT.contiguous().mT for key, value in raw.items()}
    raw = {key: value.requires_grad_() for key, value in raw.items()}
    criterion = PoseCriterion(
        meta["nc"], meta["strides"], kpt_shape=tuple(meta["kpt_shape"]), **meta["gains"]
    )
    targets = stored_targets(numbers, case, size, len(raw["boxes"]))
    report = criterion(raw | {"points": points, "strides": strides}, targets)

    assert list(report.parts) == json.loads(str(numbers[f"{case}/item_names"]))
    items = torch.stack(list(report.parts.values()))
    torch.testing.assert_close(items, stored("items"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(report.total, stored("total"), rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(report.total, list(raw.values()), materialize_grads=True)
    for key, grad in zip(raw, gradients, strict=True):
        torch.testing.assert_close(grad, stored(f"grad/{key}"), rtol=1e-3, atol=1e-6)


@pytest.mark.golden
def test_whole_network_equals_stored_loss_and_gradients(golden):
    numbers = golden("losses.npz")
    meta = json.loads(str(numbers["model_pose/meta"]))
    model = fill(PoseModel(meta["cfg"], nc=meta["nc"])).train()
    x = torch.from_numpy(numbers["model_pose/x"])
    targets = stored_targets(numbers, "model_pose", tuple(meta["imgsz"]), len(x))
    report = PoseCriterion(meta["nc"], model.stride)(model(x), targets)
    report.total.backward()

    items = torch.stack(list(report.parts.values())).numpy()
    np.testing.assert_allclose(items, numbers["model_pose/items"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(report.total.item(), numbers["model_pose/total"], rtol=1e-4)
    parameters = dict(model.named_parameters())
    names = json.loads(str(numbers["model_pose/param_names"]))
    norms = [parameters[name].grad.norm().item() for name in names]
    np.testing.assert_allclose(norms, numbers["model_pose/param_gradnorm"], rtol=5e-3, atol=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("key", "sigmas"),
    [("loss_coco_sigma", None), ("loss_uniform_sigma_1_over_17", torch.full((17,), 1 / 17))],
)
def test_stored_point_loss(golden, key, sigmas):
    numbers = golden("geometry.npz")
    pred, gt, area = (torch.from_numpy(numbers[f"kpt/{k}"]) for k in ("pred", "gt", "area"))
    sigmas = torch.from_numpy(numbers["kpt/coco_sigma"]) if sigmas is None else sigmas
    loss = keypoint_loss(pred[..., :2], gt[..., :2], (gt[..., 2] > 0).float(), area[:, 0], sigmas)
    np.testing.assert_allclose(loss.mean(), numbers[f"kpt/{key}"], rtol=1e-4, atol=1e-6)


def test_the_point_loss_is_one_minus_the_metric():
    """Loss and metric are one formula; where nothing is labelled, the loss is 0."""
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 30, (5, 4, 3))
    points[..., 2] = rng.integers(0, 3, (5, 4))
    points[0, :, 2], points[1:, 0, 2] = 0, 1
    found, sigmas = points + rng.normal(0, 2, points.shape), rng.uniform(0.02, 0.1, 4)
    area = rng.uniform(100, 900, 5)
    truth = Objects(np.zeros(5, int), np.zeros((5, 4)), area=area, keypoints=points)
    ours = Objects.found(np.zeros(5), np.zeros((5, 4)), np.ones(5), keypoints=found)
    expected = 1 - np.diag(keypoint_similarity(ours, truth, sigmas))
    loss = keypoint_loss(
        *(torch.from_numpy(x) for x in (found[..., :2], points[..., :2], points[..., 2] > 0)),
        torch.from_numpy(area),
        torch.from_numpy(sigmas),
    )
    np.testing.assert_allclose(loss[1:], expected[1:], rtol=1e-6)
    assert loss[0] == 0


def terms_of(raw, targets, criterion):
    report = criterion(raw, targets)
    return {name: float(value) for name, value in report.parts.items()}


def test_absent_keypoints_teach_no_place_but_their_absence():
    raw, targets = made_up()
    criterion = PoseCriterion(2, STRIDES, kpt_shape=(4, 3))
    before = terms_of(raw, targets, criterion)
    absent = targets.extras["keypoints"][..., 2] == 0
    assert absent.any()
    moved = targets.extras["keypoints"].clone()
    moved[absent] = torch.tensor([900.0, -400.0, 0.0])
    assert terms_of(raw, replace(targets, extras={"keypoints": moved}), criterion) == before
    moved[..., 2] = 0
    nothing = terms_of(raw, replace(targets, extras={"keypoints": moved}), criterion)
    assert nothing["pose"] == 0
    assert nothing["kobj"] > 0


def test_hidden_keypoints_count_as_visible_ones():
    raw, targets = made_up()
    criterion = PoseCriterion(2, STRIDES, kpt_shape=(4, 3))
    seen = targets.extras["keypoints"].clone()
    seen[..., 2] = (seen[..., 2] > 0) * 2
    other = replace(targets, extras={"keypoints": seen})
    assert terms_of(raw, other, criterion) == terms_of(raw, targets, criterion)


def test_without_predicted_visibility_there_is_no_such_loss():
    raw, targets = made_up(shape=(4, 2))
    targets.extras["keypoints"] = made_up()[1].extras["keypoints"]
    parts = PoseCriterion(2, STRIDES, kpt_shape=(4, 2))(raw, targets).parts
    assert parts["kobj"] == 0
    assert parts["pose"] > 0


def test_gains_and_sigmas_are_the_given_ones():
    raw, targets = made_up()
    plain = terms_of(raw, targets, PoseCriterion(2, STRIDES, kpt_shape=(4, 3), pose=1, kobj=1))
    more = terms_of(raw, targets, PoseCriterion(2, STRIDES, kpt_shape=(4, 3), pose=3, kobj=2))
    assert more["pose"] == pytest.approx(3 * plain["pose"])
    assert more["kobj"] == pytest.approx(2 * plain["kobj"])
    wide = PoseCriterion(2, STRIDES, kpt_shape=(4, 3), pose=1, sigmas=[9.0] * 4)
    assert terms_of(raw, targets, wide)["pose"] < plain["pose"] / 10
    assert "sigmas" not in wide.state_dict()


def test_a_step_down_the_gradient_lowers_the_keypoint_terms():
    raw, targets = made_up()
    criterion = PoseCriterion(2, STRIDES, kpt_shape=(4, 3))
    with torch.no_grad():  # start near the labels, where the similarity isn't flat
        wanted = criterion.match(raw, targets)
        raw["kpts"].mul_(0.1)
    report = criterion(raw, targets)
    (slope,) = torch.autograd.grad(report.total, [raw["kpts"]])
    assert slope.abs().sum() > 0
    off = ~wanted.fg_mask[:, None].expand_as(slope)
    assert (slope[off] == 0).all()
    lower = criterion(raw | {"kpts": raw["kpts"] - 0.05 * slope}, targets)
    assert lower.parts["pose"] < report.parts["pose"]
    assert lower.parts["kobj"] < report.parts["kobj"]


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize(("shape", "n"), [((4, 3), 0), ((4, 3), 60), ((5, 2), 4)])
def test_no_data_dependent_shape_and_no_copy_to_the_host(shape, n):
    with FakeTensorMode():
        numbers = shape[0] * shape[1]
        raw = {
            "boxes": torch.randn(2, 64, 126, requires_grad=True),
            "scores": torch.randn(2, 4, 126, requires_grad=True),
            "kpts": torch.randn(2, numbers, 126, requires_grad=True),
            "points": torch.rand(126, 2),
            "strides": torch.rand(126, 1),
        }
        mask = torch.ones(2, n, dtype=torch.bool)
        extras = {"keypoints": torch.rand(2, n, shape[0], 3)}
        targets = Targets(mask.long(), torch.rand(2, n, 4), mask, None, (64, 96), extras)
        criterion = PoseCriterion(4, STRIDES, kpt_shape=shape)
        criterion.sigmas = torch.rand(shape[0])
        report = criterion(raw, targets)
        report.total.backward()
    assert report.total.shape == ()
    assert raw["kpts"].grad.shape == (2, numbers, 126)


@pytest.mark.parametrize("n", [0, 2])
def test_without_objects_keypoints_learn_nothing(n):
    raw, targets = made_up(n=n)
    targets.mask[:] = False
    report = PoseCriterion(2, STRIDES, kpt_shape=(4, 3))(raw, targets)
    (slope,) = torch.autograd.grad(report.total, [raw["kpts"]])
    assert report.parts["pose"] == report.parts["kobj"] == 0
    assert (slope == 0).all()
    assert torch.isfinite(report.total)


def test_positives_are_counted_over_all_ranks():
    raw, targets = made_up()
    plain = PoseCriterion(2, STRIDES, kpt_shape=(4, 3))(raw, targets)
    two = PoseCriterion(2, STRIDES, kpt_shape=(4, 3), sum_over_ranks=lambda s: 2 * s)(raw, targets)
    torch.testing.assert_close(2 * two.parts["pose"], plain.parts["pose"])
