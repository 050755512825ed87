# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from yolo.engine import nms
from yolo.engine.nms import filter_rows, non_max_suppression

CASES = (
    "agnostic",
    "class_aware",
    "classes_filter",
    "defaults_predict",
    "masks",
    "masks_multi_label",
    "max_nms_20",
    "multi_label_maxdet",
    "multi_label_val",
    "none_pass",
    "single_class_multi_label",
)
NAMES = {"conf_thres": "conf", "iou_thres": "iou"}


def stored(golden, case):
    numbers = golden("nms.npz")
    options = {NAMES.get(k, k): v for k, v in json.loads(str(numbers[f"{case}/kwargs"])).items()}
    pred = numbers[f"{case}/pred"]
    return pred, options, [numbers[f"{case}/out{b}"] for b in range(len(pred))]


def on_device(image: torch.Tensor, **options):
    """Run the path for accelerators on the CPU."""
    nc = options.get("nc") or len(image) - 4
    rule = {
        "conf": 0.25, "iou": 0.7, "nc": nc, "classes": None, "agnostic": False, "rotated": False,
        "multi_label": False, "max_det": 300, "max_nms": 30000, **options,
    }  # fmt: skip
    rule["multi_label"] &= nc > 1
    return nms._suppress_on_device(image, nms._Rule(**rule))


def crowd(seed=0, classes=4, anchors=400, size=100.0):
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, size, (2, anchors))
    sides = rng.uniform(5, size / 2, (2, anchors))
    # Few distinct scores, so that ties are everywhere.
    scores = np.round(rng.uniform(0, 1, (classes, anchors)) ** 3, 2)
    return np.concatenate((centre, sides, scores)).astype(np.float32)[None]


def by_definition(image, conf, iou, max_det, agnostic=False):
    """Greedy suppression of multi-label candidates as the textbook has it."""
    boxes = np.concatenate((image[:2] - image[2:4] / 2, image[:2] + image[2:4] / 2)).T
    found = [
        (-score, anchor, label)
        for label, row in enumerate(image[4:])
        for anchor, score in enumerate(row)
        if score > conf
    ]
    kept: list[tuple[int, int]] = []
    for _, anchor, label in sorted(found):
        b, rivals = boxes[anchor], boxes[[k for k, c in kept if agnostic or c == label]]
        size = np.minimum(b[2:], rivals[:, 2:]) - np.maximum(b[:2], rivals[:, :2])
        overlap = np.maximum(size, 0).prod(1)
        union = np.prod(b[2:] - b[:2]) + (rivals[:, 2:] - rivals[:, :2]).prod(1) - overlap
        if not (overlap > iou * union).any():
            kept.append((anchor, label))
        if len(kept) == max_det:
            break
    return kept


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES)
def test_equals_stored_results_exactly(golden, case):
    pred, options, wanted = stored(golden, case)
    for rows, expected in zip(non_max_suppression(pred, **options), wanted, strict=True):
        np.testing.assert_array_equal(rows, expected)
    for rows, expected in zip(
        non_max_suppression(torch.from_numpy(pred), **options), wanted, strict=True
    ):
        np.testing.assert_array_equal(rows.numpy(), expected)
    for image, expected in zip(torch.from_numpy(pred), wanted, strict=True):
        np.testing.assert_array_equal(on_device(image, **options)[0].numpy(), expected)


@pytest.mark.golden
def test_finished_rows_are_only_filtered(golden):
    pred, options, wanted = stored(golden, "end2end")
    for rows, expected in zip(filter_rows(pred, **options), wanted, strict=True):
        np.testing.assert_array_equal(rows, expected)
    (only,) = filter_rows(torch.from_numpy(pred[:1]), conf=0.3, classes=[3])
    assert only[:, 5].tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("max_det", [5, 300, 10_000])
def test_equals_the_definition_over_many_blocks(agnostic, max_det):
    pred = crowd()
    options = {"conf": 0.02, "iou": 0.4, "max_det": max_det, "agnostic": agnostic}
    rows, places = non_max_suppression(pred, multi_label=True, return_indices=True, **options)
    wanted = by_definition(pred[0], **options)
    assert list(zip(places[0].tolist(), rows[0][:, 5].astype(int).tolist(), strict=True)) == wanted
    assert (pred[0, 4:] > 0.02).sum() > 4 * nms.BLOCK
    device_rows, device_places = on_device(torch.from_numpy(pred[0]), multi_label=True, **options)
    np.testing.assert_array_equal(device_rows.numpy(), rows[0])
    np.testing.assert_array_equal(device_places.numpy(), places[0])


def test_indices_lead_back_to_all_scores():
    pred = crowd(seed=1)
    rows, places = non_max_suppression(pred, conf=0.5, iou=0.5, return_indices=True)
    scores = pred[0, 4:][:, places[0]].T
    np.testing.assert_array_equal(scores.max(1), rows[0][:, 4])
    np.testing.assert_array_equal(scores.argmax(1), rows[0][:, 5])
    tensor = torch.from_numpy(pred)
    _, tensor_places = non_max_suppression(tensor, conf=0.5, iou=0.5, return_indices=True)
    assert tensor_places[0].dtype == torch.int64
    np.testing.assert_array_equal(tensor[0, 4:][:, tensor_places[0]].T.numpy(), scores)


def test_images_do_not_influence_each_other():
    batch = np.concatenate([crowd(seed=s) for s in range(3)])
    together = non_max_suppression(batch, conf=0.1, iou=0.5)
    for image, rows in zip(batch, together, strict=True):
        np.testing.assert_array_equal(non_max_suppression(image[None], conf=0.1, iou=0.5)[0], rows)


def test_ties_go_to_the_lower_anchor_then_class():
    pred = np.zeros((1, 6, 3), dtype=np.float32)
    pred[0, :4] = [[50, 50, 50], [50, 50, 50], [20, 20, 20], [20, 20, 20]]
    pred[0, 4:] = 0.5
    rows, places = non_max_suppression(
        pred, conf=0.1, iou=0.5, multi_label=True, return_indices=True
    )
    assert places[0].tolist() == [0, 0]
    assert rows[0][:, 5].tolist() == [0.0, 1.0]


def test_max_nms_cuts_ties_in_order():
    pred = np.zeros((1, 5, 40), dtype=np.float32)
    pred[0, :4] = [np.arange(40) * 30, np.zeros(40), np.full(40, 9), np.full(40, 9)]
    pred[0, 4] = 0.5
    pred[0, 4, 30] = 0.9
    _, places = non_max_suppression(pred, conf=0.1, iou=0.5, max_nms=4, return_indices=True)
    assert places[0].tolist() == [30, 0, 1, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("multi_label", [False, True])
def test_what_is_not_finite_is_never_kept(bad, multi_label):
    pred = np.zeros((1, 6, 4), dtype=np.float32)
    pred[0, :4] = [[10, 50, 90, 130], [10] * 4, [8] * 4, [8] * 4]
    pred[0, 4] = [0.9, 0.8, 0.7, 0.6]
    pred[0, 4, 0] = bad  # the anchor's other class must survive
    pred[0, 5, 0] = 0.5
    pred[0, 2, 1] = bad
    options = {"conf": 0.25, "iou": 0.5, "multi_label": multi_label}
    rows, places = non_max_suppression(pred, return_indices=True, **options)
    assert places[0].tolist() == [2, 3, 0]
    assert np.isfinite(rows[0]).all()
    np.testing.assert_array_equal(on_device(torch.from_numpy(pred[0]), **options)[0], rows[0])


def test_no_anchors_and_half_precision():
    assert non_max_suppression(np.zeros((2, 9, 0), np.float32))[1].shape == (0, 6)
    half = non_max_suppression(crowd().astype(np.float16), conf=0.5)[0]
    assert half.dtype == np.float32
    assert len(half)
    assert non_max_suppression(torch.from_numpy(crowd()).bfloat16(), conf=0.5)[0].dtype == (
        torch.float32
    )


def test_input_is_left_alone():
    pred = crowd()
    before = pred.copy()
    non_max_suppression(pred)[0][:] = -1
    np.testing.assert_array_equal(pred, before)


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="expected predictions"):
        non_max_suppression(np.zeros((84, 100), np.float32))
    with pytest.raises(ValueError, match=r"4 \+ 80"):
        non_max_suppression(np.zeros((1, 10, 100), np.float32), nc=80)


@pytest.mark.processes
def test_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None\n"
        "import numpy as np\n"
        "from yolo.engine.nms import non_max_suppression\n"
        "pred = np.array([[10, 10, 8, 8, .9], [50, 10, 8, 8, .8]], np.float32).T[None]\n"
        "assert len(non_max_suppression(pred)[0]) == 2\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
def test_cuda_gives_the_same_rows():
    pred = crowd()
    options = {"conf": 0.02, "iou": 0.4, "multi_label": True, "return_indices": True}
    rows, places = non_max_suppression(pred, **options)
    device_rows, device_places = non_max_suppression(torch.from_numpy(pred).cuda(), **options)
    np.testing.assert_array_equal(device_rows[0].cpu().numpy(), rows[0])
    np.testing.assert_array_equal(device_places[0].cpu().numpy(), places[0])
