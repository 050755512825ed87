# SPDX-License-Identifier: Apache-2.0
"""The containers' views, on NumPy arrays and on tensors alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from yolo.engine.containers import OBB, Boxes, Keypoints, Masks, Probs, trace_outline

SHAPE = (60, 80)
ROWS = np.array(
    [[10, 20, 30, 50, 0.9, 1], [0, 0, 80, 60, 0.5, 0], [5, 6, 7, 9, 0.3, 2]], np.float32
)
KINDS = [np.asarray, torch.as_tensor]


def same(found, expected):
    if isinstance(found, torch.Tensor):
        assert found.dtype == torch.float32
        found = found.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_box_views(kind):
    boxes = Boxes(kind(ROWS), SHAPE)
    same(boxes.xyxy, ROWS[:, :4])
    same(boxes.xywh[0], [20, 35, 20, 30])
    same(boxes.xyxyn[1], [0, 0, 1, 1])
    same(boxes.xywhn[0], [0.25, 35 / 60, 0.25, 0.5])
    same(boxes.conf, ROWS[:, 4])
    same(boxes.cls, ROWS[:, 5])
    assert boxes.id is None
    assert not boxes.is_track
    assert type(boxes.xywh) is type(kind(ROWS))


def test_box_conversions_equal_golden(golden):
    stored = golden("geometry.npz")
    xywh = stored["fmt/xyxy2xywh"]
    # the stored results give the corners back
    corners = np.concatenate([xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2], 1)
    rows = np.concatenate([corners, np.ones((len(corners), 2), corners.dtype)], 1)
    boxes = Boxes(rows, (90, 80))
    np.testing.assert_allclose(boxes.xywh, xywh, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(boxes.xywhn, stored["fmt/xyxy2xywhn_w80_h90"], rtol=1e-4, atol=1e-5)


def test_tracked_boxes():
    data = np.insert(ROWS, 4, [7, 8, 9], axis=1)
    boxes = Boxes(data, SHAPE)
    assert boxes.is_track
    assert boxes.id.tolist() == [7, 8, 9]
    same(boxes.conf, ROWS[:, 4])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (0, [0]),
        (-1, [2]),
        (np.int64(1), [1]),
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        ([], []),
        ([True, False, True], [0, 2]),
        (np.array([False, True, False]), [1]),
        (torch.tensor([2, 1]), [2, 1]),
        (torch.tensor([True, True, False]), [0, 1]),
    ],
)
def test_indexing_keeps_class_and_rank(kind, index, rows):
    picked = Boxes(kind(ROWS), SHAPE)[index]
    assert isinstance(picked, Boxes)
    same(picked.data, ROWS[rows])
    assert picked.orig_shape == SHAPE


@pytest.mark.parametrize("kind", KINDS)
def test_iteration_gives_rows(kind):
    boxes = Boxes(kind(ROWS), SHAPE)
    assert len(boxes) == 3
    assert [float(box.conf[0]) for box in boxes] == pytest.approx([0.9, 0.5, 0.3])
    assert [box.shape for box in boxes] == [(1, 6)] * 3
    with pytest.raises(IndexError):
        boxes[3]


def test_moving():
    boxes = Boxes(torch.as_tensor(ROWS), SHAPE)
    arrays = boxes.numpy()
    assert isinstance(arrays.xyxy, np.ndarray)
    assert type(boxes.xyxy) is torch.Tensor
    assert boxes.to(torch.float64).data.dtype == torch.float64
    assert arrays.cpu().numpy().data is arrays.data
    assert arrays.to("cpu").data is arrays.data
    with pytest.raises(TypeError, match="from_numpy"):
        arrays.cuda()
    with pytest.raises(TypeError, match="from_numpy"):
        arrays.to("cuda")
    assert arrays.to(torch.device("cpu")).data is arrays.data


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("part", [Boxes, OBB])
def test_ids_are_put_in_and_replaced(kind, part):
    rows = np.arange(2 * (part.geometry + 2), dtype=np.float32).reshape(2, -1)
    plain = part(kind(rows), SHAPE)
    tracked = plain.with_ids(np.array([4, 7]))
    assert not plain.is_track
    assert tracked.id.tolist() == [4, 7]
    for name in ("xyxy", "conf", "cls"):
        assert getattr(tracked, name).tolist() == getattr(plain, name).tolist()
    again = tracked.with_ids(np.array([1, 2]))
    assert again.data.shape == tracked.data.shape
    assert again.id.tolist() == [1, 2]
    assert again.data.dtype == plain.data.dtype
    assert plain[[]].with_ids(np.zeros(0)).is_track


@pytest.mark.parametrize("data", [np.zeros((2, 5)), np.zeros((2, 8)), np.zeros((1, 2, 6))])
def test_wrong_columns_are_refused(data):
    with pytest.raises(ValueError, match="x1 y1 x2 y2"):
        Boxes(data, SHAPE)


def test_one_row_and_lists_are_accepted():
    assert Boxes(ROWS[0], SHAPE).shape == (1, 6)
    assert Boxes(ROWS.tolist(), SHAPE).shape == (3, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_makes_new_boxes(kind):
    data = kind(np.array([[-5, -5, 100, 30, 1, 0]], np.float32))
    same(Boxes(data, SHAPE).clipped().xyxy, [[0, 0, 80, 30]])
    assert float(data[0, 0]) == -5


@pytest.mark.parametrize("kind", KINDS)
def test_rotated_corners_equal_golden(kind, golden):
    stored = golden("geometry.npz")
    xywhr = stored["probiou/obb1"]
    rows = kind(np.concatenate([xywhr, np.ones((len(xywhr), 2), np.float32)], 1))
    obb = OBB(rows, SHAPE)
    corners = np.asarray(obb.xyxyxyxy)
    np.testing.assert_allclose(corners, stored["rotated/xywhr2corners"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(obb.xyxy[:, :2], corners.min(1), atol=1e-5)
    np.testing.assert_allclose(obb.xyxy[:, 2:], corners.max(1), atol=1e-5)
    np.testing.assert_allclose(np.asarray(obb.xyxyxyxyn) * [80, 60], corners, rtol=1e-5)
    assert obb.xywhr.shape == (64, 5)
    assert obb.id is None


@pytest.mark.parametrize("kind", KINDS)
def test_keypoints(kind):
    data = np.random.default_rng(0).uniform(0, 50, (2, 5, 3)).astype(np.float32)
    points = Keypoints(kind(data), SHAPE)
    same(points.xy, data[..., :2])
    same(points.xyn, data[..., :2] / [80, 60])
    same(points.conf, data[..., 2])
    flat = Keypoints(kind(data[..., :2].copy()), SHAPE)
    same(flat.conf, np.ones((2, 5)))
    assert points.has_visible
    assert not flat.has_visible
    assert points[0].shape == (1, 5, 3)
    assert Keypoints(kind(data[:0]), SHAPE).shape == (0, 5, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_probs(kind):
    probs = Probs(kind(np.array([0.1, 0.5, 0.05, 0.2, 0.1, 0.05], np.float32)), SHAPE)
    assert probs.top1 == 1
    assert probs.top5 == [1, 3, 0, 4, 2]
    assert float(probs.top1conf) == 0.5
    assert probs.top1conf.ndim == 0
    same(probs.top5conf, [0.5, 0.2, 0.1, 0.1, 0.05])
    assert len(probs) == 6
    assert Probs(kind(np.array([0.4, 0.6], np.float32)), SHAPE).top5 == [1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_mask_outlines_undo_the_letterbox(kind):
    # 60 x 80 in a 64 x 64 canvas: gain 0.8, 48 rows of image from row 8 on
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, 8 + 12 : 8 + 36, 16:48] = 1
    masks = Masks(kind(mask), SHAPE)
    outline = masks.xy[0]
    np.testing.assert_allclose(outline.min(0), [20, 15], atol=1.5)
    np.testing.assert_allclose(outline.max(0), [60, 45], atol=1.5)
    np.testing.assert_allclose(masks.xyn[0] * [80, 60], outline, rtol=1e-5)
    full = masks.full(0)
    assert full.shape == SHAPE
    assert abs(int(full.sum()) - 40 * 30) < 60


def test_masks_at_image_size_are_taken_as_they_are():
    data = np.random.default_rng(0).integers(0, 2, (2, *SHAPE)).astype(np.uint8)
    masks = Masks(data, SHAPE)
    assert np.array_equal(masks.full(1), data[1].astype(bool))
    assert masks.data.dtype == np.uint8


def test_parts_of_a_mask_become_one_polygon():
    import cv2

    mask = np.zeros((40, 60), np.uint8)
    mask[5:15, 5:20] = 1
    mask[25:35, 30:50] = 1
    outline = trace_outline(mask)
    drawn = np.zeros_like(mask)
    cv2.fillPoly(drawn, [outline.astype(np.int32)], 1)
    assert mask[drawn == 0].sum() == 0
    assert (drawn != mask).sum() <= 45  # the bridge
    area = abs(float(cv2.contourArea(outline)))
    assert area == pytest.approx(9 * 14 + 9 * 19)
    assert trace_outline(np.zeros((4, 4), np.uint8)).shape == (0, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Masks(np.zeros((1, 2, 3, 4)), SHAPE),
        lambda: Keypoints(np.zeros((1, 2, 4)), SHAPE),
        lambda: Probs(np.zeros((2, 2)), SHAPE),
        lambda: OBB(np.zeros((1, 6)), SHAPE),
    ],
)
def test_wrong_shapes_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()
