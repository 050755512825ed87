# SPDX-License-Identifier: Apache-2.0
"""From network output to poses in the original image, with and without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from yolo.backends.torch import TorchBackend
from yolo.cfg.schema import PredictConfig
from yolo.data.labels import LabelRules, parse_labels
from yolo.errors import ModelError
from yolo.tasks.pose.data import KeypointLabels
from yolo.tasks.pose.model import PoseModel
from yolo.tasks.pose.predict import PosePredictor

ROOT = Path(__file__).parents[2]
SPEC = SimpleNamespace(name="pose")


class Flies:
    """A "network" that reports one fly with two keypoints on a 64 x 64 canvas, twice."""

    names = {0: "fly", 1: "bee"}  # noqa: RUF012 - read only
    stride, imgsz, channels, task, dynamic = 32, (64, 64), 3, "pose", True

    def __init__(self, numbers=3, tensors=False, kpt_shape=None):
        self.kpt_shape = kpt_shape or (2, numbers)
        self.tensors = tensors
        points = np.array([[28, 26, 0.9], [200, 22, 0.3]])[:, :numbers]
        box = [32, 24, 16, 8, 0.1]
        rows = [[*box, score, *points.ravel()] for score in (0.9, 0.8)]
        self.rows = np.array(rows, np.float32)

    def __call__(self, images):
        outputs = np.repeat(self.rows.T[None], len(images), 0)
        return torch.from_numpy(outputs) if self.tensors else outputs


def predict(backend, **options):
    image = np.full((120, 160, 3), 50, np.uint8)  # gain 0.4, 8 rows of padding
    options = {"imgsz": 64, "verbose": False, **options}
    (result,) = PosePredictor(PredictConfig(**options), SPEC, backend)(image)
    return result


@pytest.mark.parametrize("tensors", [False, True])
def test_keypoints_are_in_original_pixels_and_clipped(tensors):
    found = predict(Flies(tensors=tensors)).keypoints
    assert isinstance(found.data, torch.Tensor if tensors else np.ndarray)
    np.testing.assert_allclose(np.asarray(found.xy), [[[70, 45], [160, 35]]], atol=1e-4)
    np.testing.assert_allclose(np.asarray(found.conf), [[0.9, 0.3]], atol=1e-6)
    np.testing.assert_allclose(np.asarray(found.xyn)[0, 0], [70 / 160, 45 / 120], atol=1e-6)
    assert found.has_visible


@pytest.mark.parametrize("tensors", [False, True])
def test_without_visibility_all_count(tensors):
    result = predict(Flies(numbers=2, tensors=tensors))
    assert result.keypoints.data.shape == (1, 2, 2)
    assert not result.keypoints.has_visible
    assert np.asarray(result.keypoints.conf).tolist() == [[1, 1]]
    assert result.summary()[0]["keypoints"]["visible"] == [1, 1]


@pytest.mark.parametrize("numbers", [2, 3])
def test_nothing_found_keeps_the_shape(numbers):
    result = predict(Flies(numbers), conf=0.95)
    assert result.keypoints.data.shape == (0, 2, numbers)
    assert len(result) == 0
    assert result.verbose() == "(no detections), "
    assert result.plot().shape == (120, 160, 3)


def test_results_are_boxes_and_keypoints():
    result = predict(Flies())
    assert len(result) == len(result.boxes) == len(result.keypoints) == 1
    assert result.masks is None
    assert result.obb is None
    assert result.verbose() == "1 bee, "
    row = result.summary()[0]
    assert list(row) == ["name", "class", "confidence", "box", "keypoints"]
    assert row["keypoints"]["x"] == pytest.approx([70, 160], abs=1e-4)


@pytest.mark.parametrize("numbers", [2, 3])
def test_saved_rows_are_labels(tmp_path, numbers):
    result = predict(Flies(numbers))
    file = Path(result.save_txt(tmp_path / "a.txt"))
    rules = LabelRules(2, (2, numbers))
    found, problems = parse_labels(file.read_bytes(), "a.txt", KeypointLabels(), rules)
    assert not problems
    assert found.classes.tolist() == [1]
    np.testing.assert_allclose(found.keypoints[0, 0], [70 / 160, 45 / 120, 2], atol=1e-5)
    assert found.keypoints[0, 1, 2] == (0 if numbers == 3 else 2)


@pytest.mark.parametrize("kpt_shape", [(3, 3), (2, 2)])
def test_a_backend_that_is_wrong_about_its_keypoints(kpt_shape):
    with pytest.raises(ModelError, match="expected the model to say its kpt_shape, of 6 numbers"):
        predict(Flies(kpt_shape=kpt_shape))


def test_the_torch_backend_says_its_keypoints():
    backend = TorchBackend(PoseModel({**PoseModel().yaml, "kpt_shape": [5, 2]}))
    assert backend.kpt_shape == (5, 2)
    result = predict(backend)
    assert result.keypoints.data.shape[1:] == (5, 2)


@pytest.mark.processes
def test_predicting_works_where_torch_is_absent():
    code = """
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None
import numpy as np
from yolo import TASKS

class Backend:
    names, stride, imgsz, channels, task, dynamic = {0: "a"}, 32, (64, 64), 3, "", True
    kpt_shape = (2, 3)
    def __call__(self, images):
        rows = np.array([[32, 32, 20, 10, 0.9, 30, 31, 0.8, 34, 33, 0.2]], np.float32)
        return rows.T[None]

spec = TASKS["pose"]
predictor = spec.predictor(spec.predict_config(imgsz=64), spec, Backend())
(result,) = predictor(np.zeros((64, 64, 3), np.uint8))
assert result.keypoints.xy.tolist() == [[[30, 31], [34, 33]]]
assert result.plot().shape == (64, 64, 3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
