# SPDX-License-Identifier: Apache-2.0
"""Batches as pictures: a tidy grid within its limits."""

from __future__ import annotations

import cv2
import numpy as np

from yolo.engine.draw import Marks, color_of
from yolo.engine.sheet import draw_batch, save_batch

NAMES = {0: "cat"}


def canvas(height, width):
    return np.full((height, width, 3), 128, np.uint8)


def test_batch_is_a_tidy_grid():
    images = [canvas(96, 128), canvas(64, 64), canvas(128, 96), canvas(96, 128), canvas(50, 50)]
    found = [Marks(np.array([[10, 10, 40, 40]], np.float32), np.zeros(1, int)) for _ in images]
    sheet = draw_batch(images, found, NAMES, [f"{i}.jpg" for i in range(5)])
    assert sheet.ndim == 3
    assert max(sheet.shape) <= 1920
    blue = (sheet == np.array(color_of(0))).all(-1)
    columns = np.array_split(blue, 3, axis=1)
    rows = [half for column in columns for half in np.array_split(column, 2, axis=0)]
    assert [bool(cell.any()) for cell in rows] == [True, True, True, True, True, False]


def test_batch_limits():
    images = [canvas(600, 800)] * 20
    sheet = draw_batch(images, [Marks()] * 20, NAMES, max_side=640)
    assert max(sheet.shape) <= 640
    assert draw_batch([], [], NAMES).size


def test_a_loader_s_batch_is_rgb(tmp_path):
    images = np.zeros((2, 64, 64, 3), np.uint8)
    images[..., 0] = 250
    save_batch(tmp_path / "batch.jpg", images, [Marks()] * 2, NAMES, ["a/x.png", "y.png"])
    blue, _, red = cv2.imread(str(tmp_path / "batch.jpg")).reshape(-1, 3).max(0)
    assert red > 240
    assert (cv2.imread(str(tmp_path / "batch.jpg"))[..., 0] > 128).mean() < 0.1
    assert blue < 256


def test_deep_images_of_four_channels_are_shown(tmp_path):
    images = np.full((1, 64, 64, 4), 40000, np.uint16)
    save_batch(tmp_path / "batch.jpg", images, [Marks()], NAMES, ["x.tif"])
    assert cv2.imread(str(tmp_path / "batch.jpg")).max() > 140
