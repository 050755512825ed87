# SPDX-License-Identifier: Apache-2.0
"""The validator of oriented boxes: its files hold what was scored, and are read back."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from yolo.data.cache import ImageStore
from yolo.data.datasets import read_dataset
from yolo.data.index import build_index
from yolo.data.labels import LabelRules, parse_labels, to_pixels
from yolo.data.loader import ValLoader
from yolo.nn.rotated import corners_to_xywhr, rotated_iou, xywhr_to_corners
from yolo.tasks.obb.data import CornerLabels, rotated_boxes
from yolo.tasks.spec import TASKS

BOXES = np.array([[60, 40, 70, 20, 0.4], [120, 80, 40, 24, 2.0]])
SHAPE = (120, 160)


class Finder(torch.nn.Module):
    """Says the boxes of every image a little too small, and one that is not there."""

    names = {0: "a", 1: "b"}  # noqa: RUF012 - read only

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)

    def raw(self, x):
        return {"x": x}

    def decode(self, raw):
        boxes = BOXES * [1, 1, 0.9, 0.95, 1]
        boxes = np.concatenate([boxes, [[100, 20, 30, 30, 0.2]]])
        found = np.zeros((3, 7))
        found[:, [0, 1, 2, 3, 6]] = boxes
        found[:, :2] *= 0.8  # the canvas is 96 x 128
        found[:, 2:4] *= 0.8
        found[[0, 1, 2], [4, 5, 4]] = [0.9, 0.8, 0.3]
        return torch.tensor(found.T, dtype=torch.float32).repeat(len(raw["x"]), 1, 1)


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    root = tmp_path_factory.mktemp("corners")
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    corners = xywhr_to_corners(BOXES) / SHAPE[::-1]
    rows = [f"{i} " + " ".join(f"{v:.9f}" for v in ring.ravel()) for i, ring in enumerate(corners)]
    for stem in ("7", "x"):
        cv2.imwrite(str(root / "images" / f"{stem}.png"), np.full((*SHAPE, 3), 90, np.uint8))
        (root / "labels" / f"{stem}.txt").write_text("\n".join(rows))
    (root / "data.yaml").write_text("train: images\nval: images\nnames: [a, b]\n")
    index, _ = build_index(read_dataset(root / "data.yaml"), "val", CornerLabels)
    store = ImageStore(index, (128, 128), channels=3)
    return ValLoader(index, store, batch=2, size=(128, 128), extras=rotated_boxes)


def run(loader, save_dir, **options):
    spec = TASKS["obb"]
    config = spec.val_config(**{"plots": False, "verbose": False, **options})
    return spec.validator(config, spec, save_dir=save_dir).run(Finder(), loader)


def test_scores_are_those_of_the_rotated_boxes(loader, tmp_path):
    metrics = run(loader, tmp_path)
    assert [len(r.found) for r in metrics.records] == [3, 3]
    overlap = rotated_iou(metrics.records[0].found.rotated, BOXES)
    assert overlap[0, 0] == pytest.approx(0.9 * 0.95, abs=1e-4)
    # 0.855: right up to 0.85, eight of ten thresholds, for one class with a wrong detection below.
    assert metrics.box.map50 == pytest.approx(1)
    assert metrics.box.map == pytest.approx(0.8, abs=1e-6)
    assert metrics.confusion_matrix.matrix.tolist() == [[2, 0, 2], [0, 2, 0], [0, 0, 0]]
    np.testing.assert_allclose(metrics.records[0].truth.rotated, BOXES, atol=1e-4)
    np.testing.assert_allclose(metrics.records[0].truth.area, BOXES[:, 2:4].prod(1), rtol=1e-5)


def test_predictions_file(loader, tmp_path):
    metrics = run(loader, tmp_path, save_json=True)
    rows = json.loads((tmp_path / "predictions.json").read_text())
    assert len(rows) == 6
    assert set(rows[0]) == {"image_id", "file_name", "category_id", "score", "rbox", "poly"}
    assert {row["image_id"] for row in rows} == {"7", "x"}
    assert [row["category_id"] for row in rows[:3]] == [1, 2, 1]
    rotated = np.concatenate([r.found.rotated for r in metrics.records])
    np.testing.assert_array_equal([row["rbox"] for row in rows], rotated)
    corners = np.array([row["poly"] for row in rows]).reshape(-1, 4, 2)
    np.testing.assert_allclose(corners_to_xywhr(corners), rotated, atol=1e-9)


@pytest.mark.parametrize("conf", [False, True])
def test_label_files_are_read_back(loader, tmp_path, conf):
    metrics = run(loader, tmp_path, save_txt=True, save_conf=conf)
    assert sorted(f.name for f in (tmp_path / "labels").iterdir()) == ["7.txt", "x.txt"]
    record = metrics.records[0]
    stem = Path(record.path).stem
    rows = [r.split() for r in (tmp_path / "labels" / f"{stem}.txt").read_text().splitlines()]
    assert {len(row) for row in rows} == {10 if conf else 9}
    text = "\n".join(" ".join(row[:9]) for row in rows)
    read, problems = parse_labels(text.encode(), "a", CornerLabels(), LabelRules(2))
    assert problems == []
    corners = to_pixels(read, SHAPE).corners
    assert np.abs(corners - xywhr_to_corners(record.found.rotated)).max() < 1e-4
    assert read.classes.tolist() == record.found.classes.tolist()


def test_marks_lie_on_the_canvas(loader, tmp_path):
    spec = TASKS["obb"]
    validator = spec.validator(spec.val_config(plots=False), spec, save_dir=tmp_path)
    batch = next(iter(loader))
    marks = validator.label_marks(batch, 0)
    np.testing.assert_allclose(
        corners_to_xywhr(marks.corners)[:, :4], BOXES[:, :4] * 0.8, atol=1e-3
    )
    assert marks.classes.tolist() == [0, 1]
    output = np.array([[50, 40, 20, 8, 0.9, 1, 0.4], [50, 40, 20, 8, 0.1, 0, 0.4]], np.float32)
    sure = validator.output_marks(output)
    assert (sure.classes.tolist(), sure.conf.tolist()) == ([1], [pytest.approx(0.9)])
    np.testing.assert_allclose(corners_to_xywhr(sure.corners)[0], [50, 40, 20, 8, 0.4], atol=1e-4)
