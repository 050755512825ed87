# SPDX-License-Identifier: Apache-2.0
"""The mask term: golden numbers and gradients, crops and whole maps alike."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from golden_weights import fill
from tasks.test_detect_loss import STRIDES, objects, raw_output, stored_targets
from yolo.nn.anchors import anchor_points
from yolo.nn.losses import Targets
from yolo.tasks.detect.loss import DetectionCriterion
from yolo.tasks.segment import loss as segment_loss
from yolo.tasks.segment.loss import SegmentationCriterion
from yolo.tasks.segment.model import SegmentationModel

CASES = ("fullres_masks", "nonsq", "noobj", "nooverlap", "overlap")
PREDICTED = ("boxes", "scores", "mask_coefficient", "proto")


def criterion(static=False, **options):
    made = SegmentationCriterion(4, STRIDES, **options)
    made.static = static
    return made


def masks_of(numbers, case, targets, overlap):
    """Stored masks as targets have them: one map an image, or (B, n, h, w)."""
    masks = torch.from_numpy(numbers[f"{case}/batch/masks"])
    if overlap:
        return masks
    index = torch.from_numpy(numbers[f"{case}/batch/batch_idx"]).long()
    padded = masks.new_zeros(*targets.mask.shape, *masks.shape[-2:])
    for b in range(len(padded)):
        padded[b, : (index == b).sum()] = masks[index == b]
    return padded


@pytest.mark.golden
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
@pytest.mark.parametrize("name", CASES)
def test_equals_stored_loss_and_gradients(golden, name, layout, static):
    numbers, case = golden("losses.npz"), f"segment_{name}"

    def stored(key):
        value = numbers.get(f"{case}/{key}", numbers.get(f"{case}/{key}@v8.2"))
        return torch.from_numpy(np.asarray(value))

    meta = json.loads(str(numbers[f"{case}/meta"]))
    size = tuple(numbers[f"{case}/imgsz"].tolist())
    raw = {key: stored(f"pred/{key}").clone() for key in PREDICTED}
    if layout == "channels last":
        raw = {key: value.mT.contiguous().mT for key, value in raw.items()}
        raw["proto"] = stored("pred/proto").contiguous(memory_format=torch.channels_last)
    raw = {key: value.requires_grad_() for key, value in raw.items()}
    cells = [(size[0] // s, size[1] // s) for s in meta["strides"]]
    points, strides = anchor_points(cells, meta["strides"])
    targets = stored_targets(numbers, case, size, len(raw["boxes"]))
    targets.extras["masks"] = masks_of(numbers, case, targets, meta["overlap_mask"])
    gains = {key: meta["gains"][key] for key in ("box", "cls", "dfl")}

    report = criterion(static, **gains)(raw | {"points": points, "strides": strides}, targets)
    assert list(report.parts) == json.loads(str(numbers[f"{case}/item_names"]))
    items = torch.stack(list(report.parts.values()))
    torch.testing.assert_close(items, stored("items"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(report.total, stored("total"), rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(report.total, list(raw.values()))
    for key, grad in zip(PREDICTED, found, strict=True):
        torch.testing.assert_close(grad, stored(f"grad/{key}"), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(grad.norm(), stored(f"gradnorm/{key}"), rtol=1e-3, atol=1e-6)


@pytest.mark.golden
def test_whole_network_equals_stored_loss_and_gradients(golden):
    numbers = golden("losses.npz")
    meta = json.loads(str(numbers["model_segment/meta"]))
    model = fill(SegmentationModel(meta["cfg"], nc=meta["nc"])).train()
    x = torch.from_numpy(numbers["model_segment/x"])
    targets = stored_targets(numbers, "model_segment", tuple(meta["imgsz"]), len(x))
    targets.extras["masks"] = masks_of(numbers, "model_segment", targets, True)
    report = SegmentationCriterion(meta["nc"], model.stride)(model(x), targets)
    report.total.backward()

    items = torch.stack(list(report.parts.values())).numpy()
    np.testing.assert_allclose(items, numbers["model_segment/items"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(report.total.item(), numbers["model_segment/total"], rtol=1e-4)
    parameters = dict(model.named_parameters())
    names = json.loads(str(numbers["model_segment/param_names"]))
    norms = [parameters[name].grad.norm().item() for name in names]
    np.testing.assert_allclose(norms, numbers["model_segment/param_gradnorm"], rtol=5e-3, atol=1e-4)


def scene(n=4, overlap=True, seed=0):
    """Random predictions and objects whose masks are the left halves of their boxes."""
    raw, targets = raw_output(seed=seed), objects(n=n, seed=seed)
    g = torch.Generator().manual_seed(seed)
    raw["mask_coefficient"] = torch.randn(2, 8, len(raw["points"]), generator=g).requires_grad_()
    raw["proto"] = torch.randn(2, 8, 16, 24, generator=g).requires_grad_()
    masks = torch.zeros(2, n, 16, 24, dtype=torch.uint8)
    for b in range(2):
        for j, (x1, y1, x2, y2) in enumerate((targets.boxes[b] / 4).round().long().tolist()):
            masks[b, j, y1:y2, x1 : (x1 + x2) // 2] = 1
    order = torch.arange(1, n + 1, dtype=torch.uint8)[:, None, None]
    flat = (masks * order).amax(1) if n else masks.sum(1, dtype=torch.uint8)
    targets.extras["masks"] = flat if overlap else masks
    return raw, targets


def mask_gradients(raw, report):
    return torch.autograd.grad(report.total, [raw["mask_coefficient"], raw["proto"]])


@pytest.mark.parametrize("overlap", [False, True])
def test_crops_whole_maps_and_chunks_agree(monkeypatch, overlap):
    raw, targets = scene(overlap=overlap)
    wanted = criterion()(raw, targets)
    slopes = mask_gradients(raw, wanted)
    for elements in (2**24, 3 * 16 * 24):
        monkeypatch.setattr(segment_loss, "_ELEMENTS", elements)
        report = criterion(static=True)(raw, targets)
        torch.testing.assert_close(report.parts, wanted.parts)
        torch.testing.assert_close(mask_gradients(raw, report), slopes, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("static", [False, True])
def test_the_gradient_is_the_loss_s_own(static):
    raw, targets = scene(n=2)
    made = criterion(static)
    positives = made.match(raw, targets)
    double = {k: v.detach().double() for k, v in raw.items()}

    def loss(coefficients, proto):
        changed = double | {"mask_coefficient": coefficients, "proto": proto}
        return made.mask_term(changed, targets, positives)

    inputs = [double[k].requires_grad_() for k in ("mask_coefficient", "proto")]
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("n", [0, 3])
def test_without_objects_masks_learn_nothing(n, overlap):
    raw, targets = scene(n, overlap)
    targets.mask[:] = False
    for static in (False, True):
        report = criterion(static)(raw, targets)
        assert report.parts["seg"] == 0
        assert all((slope == 0).all() for slope in mask_gradients(raw, report))


def test_only_pixels_in_the_box_of_a_positive_learn():
    raw, targets = scene(n=1)
    targets.boxes[:] = torch.tensor(
        [9.0, 17.0, 42.0, 49.0]
    )  # prototype pixels 2.25 4.25 10.5 12.25
    _, proto = mask_gradients(raw, criterion()(raw, targets))
    touched = torch.zeros(16, 24, dtype=torch.bool)
    touched[5:13, 3:11] = True  # whose number lies in the box, as in the reference builds
    assert torch.equal((proto != 0).any(1), touched.expand(2, -1, -1))


def test_the_other_terms_are_the_detector_s():
    raw, targets = scene()
    report, plain = criterion()(raw, targets), DetectionCriterion(4, STRIDES)(raw, targets)
    assert {name: report.parts[name] for name in plain.parts} == plain.parts
    doubled = criterion(box=15.0)(raw, targets)
    torch.testing.assert_close(doubled.parts["seg"], 2 * report.parts["seg"])


def test_the_normaliser_goes_through_all_ranks():
    raw, targets = scene()
    two = criterion(sum_over_ranks=lambda s: 2 * s)(raw, targets)
    torch.testing.assert_close(2 * two.parts["seg"], criterion()(raw, targets).parts["seg"])


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("n", [0, 4, 60])
@pytest.mark.parametrize("overlap", [False, True])
def test_no_data_dependent_shape_and_no_copy_to_the_host(n, overlap):
    """Off the CPU; on it nothing has to be waited for, and crops cost a tenth."""
    with FakeTensorMode():
        raw = {
            "boxes": torch.randn(2, 64, 126, requires_grad=True),
            "scores": torch.randn(2, 4, 126, requires_grad=True),
            "mask_coefficient": torch.randn(2, 8, 126, requires_grad=True),
            "proto": torch.randn(2, 8, 16, 24, requires_grad=True),
            "points": torch.rand(126, 2),
            "strides": torch.rand(126, 1),
        }
        mask = torch.ones(2, n, dtype=torch.bool)
        shape = (2, 32, 48) if overlap else (2, n, 32, 48)
        extras = {"masks": torch.zeros(shape, dtype=torch.uint8)}
        targets = Targets(mask.long(), torch.rand(2, n, 4), mask, None, (64, 96), extras)
        report = criterion(static=True)(raw, targets)
        report.total.backward()
    assert report.total.shape == ()
    assert raw["proto"].grad.shape == (2, 8, 16, 24)


def test_half_precision_is_worked_out_in_single():
    raw, targets = scene()
    half = {k: v.detach().bfloat16().requires_grad_() for k, v in raw.items() if k in PREDICTED}
    single = raw | {k: v.detach().float() for k, v in half.items()}
    with torch.autocast("cpu", torch.bfloat16):
        report = criterion()(raw | half, targets)
    torch.testing.assert_close(report.parts, criterion()(single, targets).parts, rtol=0, atol=0)
    report.total.backward()
    assert half["proto"].grad.dtype == torch.bfloat16
