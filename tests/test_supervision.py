# SPDX-License-Identifier: Apache-2.0
"""The package `supervision` reads our results as it reads the peer's, with torch and without."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nano
from squares import FRAMES, found_by, frame
from yolo import YOLO
from yolo.engine.results import Results
from yolo.tasks.spec import TASKS

sv = pytest.importorskip("supervision")

KINDS = pytest.mark.parametrize("tensors", [True, False], ids=["torch", "numpy"])
SQUARES = ((2, 30, 10, 24, 0.9), (0, 70, 50, 32, 0.6))
IMAGE = frame(*SQUARES, shape=(96, 128))  # letterboxed by half, 8 rows of padding
XYXY = [[30, 10, 54, 34], [70, 50, 102, 82]]


@pytest.fixture
def predict(monkeypatch, tmp_path):
    def call(task, tensors, image=IMAGE, **options):
        model = found_by(monkeypatch, YOLO(nano.task_network(tmp_path, TASKS[task])), tensors)
        return model.predict(image, verbose=False, rect=False, **options)[0]

    return call


def check_rows(found):
    assert len(found) == 2
    assert np.abs(found.xyxy - XYXY).max() < 1e-3
    assert found.confidence == pytest.approx([0.9, 0.6], abs=2e-3)
    assert found.class_id.tolist() == [2, 0]
    assert found.class_id.dtype == int
    assert found["class_name"].tolist() == ["blue", "red"]


@KINDS
def test_boxes(predict, tensors):
    found = sv.Detections.from_ultralytics(predict("detect", tensors))
    check_rows(found)
    assert found.mask is None
    assert found.tracker_id is None


@KINDS
@pytest.mark.parametrize("retina", [False, True])
def test_masks(predict, tensors, retina):
    found = sv.Detections.from_ultralytics(predict("segment", tensors, retina_masks=retina))
    check_rows(found)
    assert found.mask.shape == (2, 96, 128)
    for mask, (x1, y1, x2, y2) in zip(found.mask, XYXY, strict=True):
        truth = np.zeros((96, 128), bool)
        truth[y1:y2, x1:x2] = True
        assert (mask & truth).sum() / (mask | truth).sum() > 0.7


@KINDS
def test_rotated_boxes(predict, tensors):
    result = predict("obb", tensors)
    found = sv.Detections.from_ultralytics(result)
    check_rows(found)
    corners = found.data["xyxyxyxy"]
    assert corners.shape == (2, 4, 2)
    assert np.abs(corners - result.numpy().obb.xyxyxyxy).max() < 1e-4


@KINDS
def test_keypoints(predict, tensors):
    found = sv.KeyPoints.from_ultralytics(predict("pose", tensors))
    assert found.xy.shape == (2, 4, 2)
    assert np.abs(found.xy[:, 0] - np.array(XYXY)[:, :2]).max() < 1e-3
    assert found.class_id.tolist() == [2, 0]
    check_rows(sv.Detections.from_ultralytics(predict("pose", tensors)))


@KINDS
def test_keypoints_without_visibility(tensors):
    """They have confidence one: readers ask for it."""
    rows = np.array([[0, 0, 9, 9, 0.9, 0]], np.float32)
    points = np.ones((1, 4, 2), np.float32)
    parts = {"boxes": rows, "keypoints": points}
    if tensors:
        parts = {name: torch.from_numpy(part) for name, part in parts.items()}
    found = sv.KeyPoints.from_ultralytics(Results(IMAGE, "a", {0: "x"}, **parts))
    assert found.xy.shape == (1, 4, 2)
    assert np.asarray(found.keypoint_confidence).tolist() == [[1, 1, 1, 1]]


@KINDS
def test_probabilities(tensors):
    probs = np.array([0.1, 0.7, 0.2], np.float32)
    probs = torch.from_numpy(probs) if tensors else probs
    found = sv.Classifications.from_ultralytics(Results(IMAGE, "a", {0: "x"}, probs=probs))
    classes, scores = found.get_top_k(2)
    assert classes.tolist() == [1, 2]
    assert scores == pytest.approx([0.7, 0.2])


@KINDS
@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
def test_nothing_found(predict, tensors, task):
    result = predict(task, tensors, np.zeros((96, 128, 3), np.uint8))
    assert len(sv.Detections.from_ultralytics(result)) == 0
    if task == "pose":
        assert len(sv.KeyPoints.from_ultralytics(result)) == 0


@KINDS
@pytest.mark.parametrize("task", ["detect", "segment", "obb"])
def test_track_ids(monkeypatch, tmp_path, tensors, task):
    pytest.importorskip("trackers")
    model = found_by(monkeypatch, YOLO(nano.task_network(tmp_path, TASKS[task])), tensors)
    for result in model.track(FRAMES[:3], verbose=False):
        found = sv.Detections.from_ultralytics(result)
        assert found.tracker_id.tolist() == [1, 2]
        assert found.tracker_id.dtype.kind == "i"


def test_annotating(predict):
    """The usual next step."""
    found = sv.Detections.from_ultralytics(predict("detect", True))
    drawn = sv.LabelAnnotator().annotate(sv.BoxAnnotator().annotate(IMAGE.copy(), found), found)
    assert (drawn != IMAGE).any()
