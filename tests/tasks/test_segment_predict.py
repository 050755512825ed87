# SPDX-License-Identifier: Apache-2.0
"""Masks in results: at both sizes, with and without torch, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from yolo.tasks.segment.config import SegmentPredictConfig
from yolo.tasks.segment.predict import SegmentationPredictor

ROOT = Path(__file__).parents[2]
SPEC = SimpleNamespace(name="segment")


class Discs:
    """A "network" that finds two discs on a 64 x 64 canvas, with a prototype for each."""

    names = {0: "cat", 1: "dog"}  # noqa: RUF012 - read only
    stride = 32
    imgsz = (64, 64)
    channels = 3
    task = "segment"
    dynamic = True
    kpt_shape = None

    def __init__(self, tensors=False):
        self.tensors = tensors

    def __call__(self, images):
        y, x = np.mgrid[:16, :16] * 4 + 2.0
        proto = np.stack([r - np.hypot(x - cx, y - 32) for cx, r in ((20, 10), (44, 8))])
        rows = np.zeros((1, 8, 3), np.float32)
        rows[0, :, 0] = [20, 32, 20, 20, 0.1, 0.9, 1, 0]
        rows[0, :, 1] = [44, 32, 16, 8, 0.8, 0.1, 0, 1]  # a box too flat
        outputs = np.repeat(rows, len(images), 0), np.stack([proto] * len(images)).astype("f4")
        return tuple(map(torch.from_numpy, outputs)) if self.tensors else outputs


def predict(source, backend=None, **options):
    options = {"imgsz": 64, "verbose": False, **options}
    return SegmentationPredictor(SegmentPredictConfig(**options), SPEC, backend or Discs())(source)


@pytest.fixture
def image():
    return np.full((96, 128, 3), 50, np.uint8)  # canvas 64 x 64: gain 0.5, 8 rows of padding


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("retina", [False, True])
def test_masks_at_the_canvas_s_and_the_image_s_size(image, tensors, retina):
    (result,) = predict(image, Discs(tensors), retina_masks=retina, rect=False)
    masks = result.masks
    assert masks.shape == ((2, 96, 128) if retina else (2, 64, 64))
    assert isinstance(masks.data, torch.Tensor if tensors else np.ndarray)
    assert str(masks.data.dtype).endswith("uint8")
    gain = 2 if retina else 1
    first, second = np.asarray(masks.data).astype(bool)
    assert first.sum() == pytest.approx(np.pi * (10 * gain) ** 2, rel=0.1)
    columns, rows = np.flatnonzero(second.any(0)), np.flatnonzero(second.any(1))
    assert len(rows) == 8 * gain  # cut to the box
    assert columns.mean() + 0.5 == pytest.approx(44 * gain, abs=0.5)
    top = 8 if not retina else 0
    assert rows.mean() + 0.5 == pytest.approx(32 if not retina else (32 - 8) * 2, abs=0.5), top
    for i, outline in enumerate(masks.xy):
        full = masks.full(i)
        assert full.shape == (96, 128)
        y, x = np.nonzero(full)
        np.testing.assert_allclose(outline.min(0), [x.min(), y.min()], atol=2.5)
        np.testing.assert_allclose(outline.max(0), [x.max(), y.max()], atol=2.5)
        np.testing.assert_allclose(masks.xyn[i] * [128, 96], outline, rtol=1e-5)
    assert len(result[1].masks) == 1
    assert result.summary()[0]["segments"]["x"]
    assert result.plot().shape == image.shape


def test_batches_and_nothing_found(image):
    results = predict([image, image[:64, :64]], batch=2)
    assert [r.masks.shape for r in results] == [(2, 64, 64), (2, 64, 64)]
    (empty,) = predict(image, conf=0.95)
    assert empty.masks is None
    assert len(empty) == 0


def test_text_rows_hold_outlines(image, tmp_path):
    (result,) = predict(image)
    rows = Path(result.save_txt(tmp_path / "a.txt", save_conf=True)).read_text().splitlines()
    assert [row.split()[0] for row in rows] == ["1", "0"]
    assert all(len(row.split()) % 2 == 0 for row in rows)
    assert float(rows[0].split()[-1]) == pytest.approx(0.9)


class Crowd(Discs):
    """Finds 300 objects, each as large as the image, of smooth random outline."""

    imgsz = (640, 640)

    def __call__(self, images):
        rng = np.random.default_rng(0)
        rows = np.zeros((1, 6 + 16, 300), np.float32)
        rows[0, :4] = np.array([[320], [320], [640], [640]])
        rows[0, 4] = rng.uniform(0.5, 1, 300)
        rows[0, 6:] = rng.standard_normal((16, 300))
        low = rng.standard_normal((16, 8, 8)).astype(np.float32)
        return rows, np.kron(low, np.ones((20, 20), np.float32))[None]


@pytest.mark.slow
@pytest.mark.parametrize("retina", [False, True])
def test_300_masks_on_a_large_image_stay_below_250_megabytes(retina):
    """As a whole array at the size of the image they would take 1200."""
    image = np.zeros((2000, 2000, 3), np.uint8)
    tracemalloc.start()
    (result,) = predict(image, Crowd(), imgsz=640, iou=1.0, retina_masks=retina)
    outlines = result.masks.xy
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(outlines) == 300
    assert result.masks.shape == (300, *((2000, 2000) if retina else (640, 640)))
    assert peak < 250e6


@pytest.mark.processes
def test_everything_runs_with_torch_absent(tmp_path):
    code = """
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None
import numpy as np
from yolo import TASKS

class Backend:
    names, stride, imgsz, channels, task = {0: "cat", 1: "dog"}, 32, (64, 64), 3, "segment"
    dynamic, kpt_shape = True, None

    def __call__(self, images):
        rows = np.array([[32, 32, 20, 30, 0.1, 0.9, 1.0]], np.float32).T[None]
        return np.repeat(rows, len(images), 0), np.ones((len(images), 1, 16, 16), np.float32)

spec = TASKS["segment"]
predictor = spec.predictor(spec.predict_config(imgsz=64, retina_masks=True), spec, Backend())
(result,) = predictor(np.zeros((64, 64, 3), np.uint8))
assert result.masks.data.sum() == 20 * 30
assert result.masks.xy[0].min(0).tolist() == [22, 17]
result.save(sys.argv[1] + "/out.jpg")
result.save_txt(sys.argv[1] + "/out.txt")
result.to_json(), result[0], result.cpu(), result.numpy()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
