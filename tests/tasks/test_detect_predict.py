# SPDX-License-Identifier: Apache-2.0
"""From network output to boxes in the original image, with and without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from yolo.cfg.schema import PredictConfig
from yolo.errors import ConfigError
from yolo.tasks.detect.predict import DetectionPredictor

ROOT = Path(__file__).parents[2]
SPEC = SimpleNamespace(name="detect")


class Blobs:
    """A "network" that reports one box for each image, and two weaker ones.

    Canvas boxes (cx, cy, w, h): one of class 1, the same one again, one of class 0.
    """

    names = {0: "cat", 1: "dog"}  # noqa: RUF012 - read only
    stride = 32
    imgsz = (64, 64)
    channels = 3
    task = "detect"
    dynamic = True
    rows = np.array(
        [
            [32, 24, 16, 8, 0.1, 0.9],
            [32, 24, 16, 8, 0.2, 0.8],
            [10, 10, 30, 30, 0.6, 0.3],
            [50, 40, 10, 10, 0.01, 0.02],
        ],
        np.float32,
    )

    def __init__(self, tensors=False):
        self.tensors = tensors

    def __call__(self, images):
        outputs = np.repeat(self.rows.T[None], len(images), 0)
        return torch.from_numpy(outputs) if self.tensors else outputs


def predict(source, backend=None, **options):
    options = {"imgsz": 64, "verbose": False, **options}
    return DetectionPredictor(PredictConfig(**options), SPEC, backend or Blobs())(source)


@pytest.fixture
def image():
    return np.full((120, 160, 3), 50, np.uint8)  # canvas 64 x 64: gain 0.4, 8 rows of padding


@pytest.mark.parametrize("tensors", [False, True])
def test_boxes_are_in_original_pixels_and_clipped(image, tensors):
    (result,) = predict(image, Blobs(tensors))
    boxes = np.asarray(result.boxes.xyxy)
    np.testing.assert_allclose(boxes[0], [60, 30, 100, 50], atol=1e-4)
    np.testing.assert_allclose(boxes[1], [0, 0, 62.5, 42.5], atol=1e-4)
    assert np.asarray(result.boxes.cls).tolist() == [1, 0]
    assert np.asarray(result.boxes.conf).tolist() == pytest.approx([0.9, 0.6])
    assert isinstance(result.boxes.data, torch.Tensor if tensors else np.ndarray)
    assert str(result.boxes.data.dtype) in {"float32", "torch.float32"}
    assert result.masks is None
    assert result.scores is None


@pytest.mark.parametrize("tensors", [False, True])
def test_results_are_ordinary(image, tensors):
    (result,) = predict(image, Blobs(tensors))
    result.boxes.data[0, 0] = 5
    assert float(result.boxes.xyxy[0, 0]) == 5


def test_options_of_the_suppression(image):
    assert len(predict(image, conf=0.7)[0]) == 1
    assert len(predict(image, conf=0.01, iou=1.0)[0]) == 4
    assert len(predict(image, max_det=1)[0]) == 1
    assert predict(image, classes=[0])[0].boxes.cls.tolist() == [0]
    assert predict(image, conf=0.95)[0].verbose() == "(no detections), "
    with pytest.raises(ConfigError, match="no class 7"):
        predict(image, classes=[7])


@pytest.mark.parametrize("tensors", [False, True])
def test_all_scores(image, tensors):
    results = predict([image, image], Blobs(tensors), all_scores=True, batch=2)
    for result in results:
        scores = np.asarray(result.scores)
        assert scores.shape == (2, 2)
        assert scores.argmax(1).tolist() == np.asarray(result.boxes.cls).tolist()
        assert scores.max(1).tolist() == np.asarray(result.boxes.conf).tolist()
    empty = predict(image, Blobs(tensors), all_scores=True, conf=0.99)[0]
    assert tuple(empty.scores.shape) == (0, 2)


def test_outputs_with_further_parts(image):
    class Two(Blobs):
        def __call__(self, images):
            return super().__call__(images), np.zeros(3)

    assert len(predict(image, Two())[0]) == 2


@pytest.mark.processes
def test_everything_runs_with_torch_absent(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        """
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None
from types import SimpleNamespace
import numpy as np
from yolo.cfg.schema import PredictConfig
from yolo.data.images import cv2
from yolo.tasks.detect.predict import DetectionPredictor

class Backend:
    names, stride, imgsz, channels, dynamic = {0: "cat", 1: "dog"}, 32, (64, 64), 3, True
    task = "detect"

    def __call__(self, images):
        row = np.array([[32, 24, 16, 8, 0.1, 0.9]], np.float32)
        return np.repeat(row.T[None], len(images), 0)

cv2.imwrite("a.png", np.zeros((120, 160, 3), np.uint8))
config = PredictConfig(imgsz=64, verbose=False, all_scores=True, batch=2)
predictor = DetectionPredictor(config, SimpleNamespace(name="x"), Backend())
results = predictor(["a.png", np.zeros((64, 64), np.uint8), "a.png"])
for result in results:
    result.save("out.jpg")
    result.save_txt("out.txt")
    result.save_crop("crops")
    result.to_json(), result.to_csv(), result.verbose(), result[0], list(result), result.cpu()
print(results[0].boxes.xyxy.round().tolist(), len(results), results[0].scores.shape)
assert sys.modules["torch"] is None
"""
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[[60.0, 30.0, 100.0, 50.0]] 3 (1, 2)"
