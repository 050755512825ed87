# SPDX-License-Identifier: Apache-2.0
"""From network output to rotated boxes in the original image, with and without torch."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from yolo.cfg.schema import PredictConfig
from yolo.data.labels import LabelRules, parse_labels, to_pixels
from yolo.data.letterbox import letterbox
from yolo.nn.rotated import xywhr_to_corners
from yolo.tasks.obb.data import CornerLabels
from yolo.tasks.obb.predict import OBBPredictor, to_original

ROOT = Path(__file__).parents[2]
SPEC = SimpleNamespace(name="obb")


class Backend:
    """Reports one box twice, and another across it; then one that hangs over the edge."""

    names = {0: "plane", 1: "ship"}  # noqa: RUF012 - read only
    stride, imgsz, channels, task, dynamic, kpt_shape = 32, (64, 64), 3, "obb", True, None
    rows = np.array(
        [
            [32, 32, 24, 4, 0.1, 0.9, 0.5],
            [32, 32, 24, 4, 0.1, 0.8, 0.5],
            [32, 32, 24, 4, 0.1, 0.7, 0.5 + math.pi / 2],
            [60, 20, 30, 6, 0.6, 0.1, 2.2],
        ],
        np.float32,
    )

    def __init__(self, tensors=False):
        self.tensors = tensors

    def __call__(self, images):
        outputs = np.repeat(self.rows.T[None], len(images), 0)
        return torch.from_numpy(outputs) if self.tensors else outputs


def predict(source, tensors=False, **options):
    config = PredictConfig(**{"imgsz": 64, "verbose": False, **options})
    return OBBPredictor(config, SPEC, Backend(tensors))(source)


@pytest.fixture
def image():
    return np.full((120, 160, 3), 50, np.uint8)  # canvas 64 x 64: gain 0.4, 8 rows of padding


@pytest.mark.parametrize("tensors", [False, True])
def test_boxes_are_in_original_pixels(image, tensors):
    (result,) = predict(image, tensors)
    assert (result.boxes, result.masks, result.keypoints) == (None, None, None)
    assert isinstance(result.obb.data, torch.Tensor if tensors else np.ndarray)
    found = np.asarray(result.obb.data)
    assert found.dtype == np.float32
    expected = [
        [80, 60, 60, 10, 0.5, 0.9, 1],
        [80, 60, 60, 10, 0.5 + math.pi / 2, 0.7, 1],
        [150, 30, 75, 15, 2.2, 0.6, 0],
    ]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(result.obb.xywhr, found[:, :5])
    corners = np.asarray(result.obb.xyxyxyxy)
    np.testing.assert_allclose(corners, xywhr_to_corners(np.array(expected)[:, :5]), atol=1e-3)
    np.testing.assert_allclose(result.obb.xyxyxyxyn, corners / [160, 120], atol=1e-6)
    hull = np.concatenate([corners.min(1), corners.max(1)], 1)
    np.testing.assert_allclose(result.obb.xyxy, hull)
    assert corners[2, :, 0].max() > 160  # not clipped
    assert np.asarray(result.obb.cls).tolist() == [1, 1, 0]
    assert result.obb.id is None
    assert "2 ships, 1 plane" in result.verbose() or "1 plane, 2 ships" in result.verbose()


def test_options(image):
    assert len(predict(image, conf=0.65)[0]) == 2
    assert len(predict(image, iou=1.0)[0]) == 4
    assert len(predict(image, max_det=1)[0]) == 1
    assert predict(image, classes=[0])[0].obb.cls.tolist() == [0]
    (none,) = predict(image, conf=0.95, all_scores=True)
    assert none.obb.xyxyxyxy.shape == (0, 4, 2)
    assert none.verbose() == "(no detections), "
    scores = predict(image, all_scores=True)[0].scores
    np.testing.assert_allclose(scores, [[0.1, 0.9], [0.1, 0.7], [0.6, 0.1]])


@pytest.mark.parametrize("conf", [False, True])
def test_label_files_are_read_back(image, tmp_path, conf):
    (result,) = predict(image)
    file = Path(result.save_txt(tmp_path / "a.txt", save_conf=conf))
    rows = [row.split() for row in file.read_text().splitlines()]
    assert {len(row) for row in rows} == {10 if conf else 9}
    if conf:
        assert [row[-1] for row in rows] == ["0.9", "0.7", "0.6"]
    text = "\n".join(" ".join(row[:9]) for row in rows)
    read, problems = parse_labels(text.encode(), "a.txt", CornerLabels(), LabelRules(2))
    assert problems == []
    assert read.classes.tolist() == [1, 1, 0]
    assert np.abs(read.corners - result.obb.xyxyxyxyn).max() < 5e-6
    assert np.abs(to_pixels(read, (120, 160)).corners - result.obb.xyxyxyxy).max() < 1e-3


def test_summary_has_four_corners(image):
    rows = predict(image)[0].summary()
    assert list(rows[0]) == ["name", "class", "confidence", "box"]
    assert list(rows[0]["box"]) == ["x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4"]


@pytest.mark.parametrize("shape", [(120, 160), (31, 700), (640, 480)])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_mapping_back_undoes_the_letterbox(shape, kind):
    """Corners, put on the canvas, are those of the box on it, though both axes' gains differ."""
    _, placement = letterbox(np.zeros((*shape, 3), np.uint8), (640, 640))
    rng = np.random.default_rng(0)
    angles = np.repeat([0.0, math.pi / 2, 0.7], 10)[:, None]
    boxes = np.concatenate([rng.uniform(0, 640, (30, 2)), rng.uniform(5, 90, (30, 2)), angles], 1)
    back = np.asarray(to_original(placement, kind(boxes)))
    again = xywhr_to_corners(back) * [placement.gain_x, placement.gain_y]
    again += [placement.pad_left, placement.pad_top]
    tight = np.abs(again - xywhr_to_corners(boxes)).max((1, 2))
    assert tight[:20].max() < 1e-9  # upright ones exactly
    assert tight.max() < 1.5


def test_pictures_show_turned_boxes(image):
    picture = predict(image)[0].plot(labels=False)
    assert picture.shape == image.shape
    changed = (picture != image).any(-1)
    assert changed[60, 80] == False  # noqa: E712 - a NumPy bool
    corner = xywhr_to_corners(np.array([80, 60, 60, 10, 0.5])).mean(0)
    assert np.allclose(corner, [80, 60])
    end = np.array([80 + 30 * math.cos(0.5), 60 + 30 * math.sin(0.5)]).round().astype(int)
    assert changed[end[1] - 2 : end[1] + 3, end[0] - 2 : end[0] + 3].any()


@pytest.mark.processes
def test_everything_runs_with_torch_absent(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        """
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None
import numpy as np
from yolo import TASKS
from yolo.cfg.schema import PredictConfig

class Backend:
    names, stride, imgsz, channels, dynamic = {0: "cat", 1: "dog"}, 32, (64, 64), 3, True
    task, kpt_shape = "obb", None

    def __call__(self, images):
        row = np.array([[32, 32, 24, 4, 0.1, 0.9, 0.5]], np.float32)
        return np.repeat(row.T[None], len(images), 0)

spec = TASKS["obb"]
config = PredictConfig(imgsz=64, verbose=False, all_scores=True, batch=2)
(result,) = spec.predictor(config, spec, Backend())(np.zeros((120, 160, 3), np.uint8))
result.save("out.jpg"), result.save_txt("out.txt"), result.save_crop("crops"), result.to_json()
result.obb.xyxyxyxyn, result.obb.xyxy, result[0], list(result), result.cpu()
print(result.obb.xywhr.round(3).tolist())
assert sys.modules["torch"] is None
"""
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[[80.0, 60.0, 60.0, 10.0, 0.5]]"
