# SPDX-License-Identifier: Apache-2.0
"""From network output to probabilities, with and without torch."""

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
from yolo.data.crop import center_crop
from yolo.tasks.classify.predict import ClassificationPredictor

ROOT = Path(__file__).parents[2]
SPEC = SimpleNamespace(name="any")


class Scores:
    """A "network" with fixed probabilities; keeps what it was given."""

    stride = 1
    imgsz = (32, 32)
    channels = 3
    task = "any"
    dynamic = True
    kpt_shape = None
    takes_tensors = True

    def __init__(self, rows, tensors=False):
        self.rows = np.asarray(rows, np.float32)
        self.names = {i: f"c{i}" for i in range(self.rows.shape[-1])}
        self.tensors = tensors
        self.given = None

    def __call__(self, images):
        self.given = images
        rows = np.repeat(self.rows[None], len(images), 0)
        return torch.from_numpy(rows) if self.tensors else rows


def predict(source, backend, **options):
    options = {"imgsz": 32, "verbose": False, **options}
    return ClassificationPredictor(PredictConfig(**options), SPEC, backend)(source)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)


@pytest.mark.parametrize("tensors", [False, True])
def test_results_hold_probabilities_alone(image, tensors):
    (result,) = predict(image, Scores([0.1, 0.02, 0.5, 0.08, 0.05, 0.25], tensors))
    assert result.boxes is result.masks is result.keypoints is result.obb is None
    assert isinstance(result.probs.data, torch.Tensor if tensors else np.ndarray)
    assert len(result) == len(result.probs) == 6
    assert result.probs.top1 == 2
    assert result.probs.top5 == [2, 5, 0, 3, 4]
    assert float(result.probs.top1conf) == 0.5
    assert np.asarray(result.probs.top5conf).tolist() == pytest.approx([0.5, 0.25, 0.1, 0.08, 0.05])
    assert result.verbose().startswith("c2 0.50, c5 0.25, ")
    assert [row["name"] for row in result.summary()] == ["c2", "c5", "c0", "c3", "c4"]
    assert "box" not in result.summary()[0]
    assert result.orig_shape == (50, 70)
    result.probs.data[0] = 1  # an ordinary array or tensor
    picture = result.plot()
    assert picture.shape == image.shape
    assert (picture != image).any()
    assert (result.plot(probs=False) == image).all()


def test_fewer_than_five_classes(image, tmp_path):
    (result,) = predict(image, Scores([0.4, 0.6]))
    assert result.probs.top5 == [1, 0]
    result.save_txt(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "0.60 c1\n0.40 c0\n"


def test_five_lines_of_text(image, tmp_path):
    (result,) = predict(image, Scores(np.arange(10) / 45))
    result.save_txt(tmp_path / "a.txt")
    lines = (tmp_path / "a.txt").read_text().splitlines()
    assert lines == ["0.20 c9", "0.18 c8", "0.16 c7", "0.13 c6", "0.11 c5"]


@pytest.mark.parametrize("size", [32, (32, 48)])
def test_images_are_cropped_in_the_centre(image, size):
    backend = Scores([0.4, 0.6])
    predict([image, image[:, :40]], backend, imgsz=size, batch=2)
    sides = (size, size) if isinstance(size, int) else size
    assert backend.given.shape == (2, *sides, 3)
    np.testing.assert_array_equal(backend.given[0], center_crop(image, sides)[0])


def test_exported_networks_keep_their_size(image):
    backend = Scores([0.4, 0.6])
    backend.dynamic = False
    predict(image, backend, imgsz=64)
    assert backend.given.shape == (1, 32, 32, 3)


def test_tensors_pass_as_they_are():
    backend = Scores([0.4, 0.6], tensors=True)
    x = torch.rand(2, 3, 40, 56)
    results = predict(x, backend, batch=2)
    assert torch.equal(backend.given, x)
    assert [r.orig_shape for r in results] == [(40, 56)] * 2


@pytest.mark.processes
def test_everything_runs_with_torch_absent(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        """
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None
import numpy as np
from yolo import TASKS

class Backend:
    names, stride, imgsz, channels, dynamic = {0: "cat", 1: "dog"}, 1, (32, 32), 3, True
    task, kpt_shape = "classify", None

    def __call__(self, images):
        assert images.shape == (1, 32, 32, 3)
        return np.array([[0.25, 0.75]], np.float32)

spec = TASKS["classify"]
predictor = spec.predictor(spec.predict_config(imgsz=32, verbose=False), spec, Backend())
(result,) = predictor(np.zeros((40, 64, 3), np.uint8))
result.save("out.jpg")
result.save_txt("out.txt")
result.to_json(), result.to_csv(), result.verbose(), result[0], list(result), result.cpu()
print(result.probs.top1, open("out.txt").read().split())
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
    assert done.stdout.strip() == "1 ['0.75', 'dog', '0.25', 'cat']"
