# SPDX-License-Identifier: Apache-2.0
"""The pose validator: its files hold what was scored, and pycocotools scores them alike."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from yolo.cfg.schema import ValConfig
from yolo.data.cache import ImageStore
from yolo.data.datasets import read_dataset
from yolo.data.figures import NAMES
from yolo.data.index import build_index
from yolo.data.labels import LabelRules, parse_labels
from yolo.data.loader import ValLoader
from yolo.data.shapes import write_shapes
from yolo.errors import DataError
from yolo.tasks.pose import TASK
from yolo.tasks.pose.data import BODY_SHARE, KeypointLabels, KeypointTargets
from yolo.tasks.pose.val import PoseValidator

SIGMAS = (0.05, 0.1, 0.2, 0.08)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("poses") / "set"
    return read_dataset(write_shapes(root, train=1, val=8, size=128, kind="keypoints"))


def loader_of(data):
    index, _ = build_index(data, "val", KeypointLabels)
    store = ImageStore(index, (128, 128), channels=3)
    extras = KeypointTargets(data.kpt_shape[0])
    return ValLoader(index, store, batch=3, size=(128, 128), stride=32, extras=extras)


class Copycat(nn.Module):
    """Says the labels again, batch by batch, with an error of its own in every number."""

    def __init__(self, loader, numbers=3, noise=1.5):
        super().__init__()
        self.names, self.kpt_shape = dict(NAMES), (4, numbers)
        rng = np.random.default_rng(0)
        self.outputs = [self.garble(batch.targets, rng, noise) for batch in loader]
        self.calls = -1

    def garble(self, targets, rng, noise):
        boxes, points = targets.boxes.numpy(), targets.extras["keypoints"].numpy()
        count, slots = boxes.shape[:2]
        out = np.zeros((count, 4 + 5 + 4 * self.kpt_shape[1], slots))
        boxes = boxes + rng.normal(0, noise, boxes.shape)
        points = points + rng.normal(0, noise, points.shape)
        points[..., 2] = rng.random(points.shape[:3])
        out[:, :2] = np.moveaxis((boxes[..., :2] + boxes[..., 2:]) / 2, 2, 1)
        out[:, 2:4] = np.moveaxis(boxes[..., 2:] - boxes[..., :2], 2, 1)
        flat = points[..., : self.kpt_shape[1]].reshape(count, slots, -1)
        out[:, 9:] = np.moveaxis(flat, 2, 1)
        ids = np.where(rng.random((count, slots)) < 0.8, targets.classes.numpy(), 0)
        scores = rng.uniform(0.1, 1, (count, slots)) * targets.mask.numpy()
        np.put_along_axis(out[:, 4:9], ids[:, None], scores[:, None], 1)
        return torch.from_numpy(out).float()

    def raw(self, x):
        self.calls = (self.calls + 1) % len(self.outputs)
        return {"y": self.outputs[self.calls]}

    def decode(self, raw):
        return raw["y"]


def run(data, folder, numbers=3, **options):
    loader = loader_of(data)
    validator = PoseValidator(ValConfig(plots=False, **options), TASK, None, None, folder)
    return validator.run(Copycat(loader, numbers), loader), loader.index


def score(index, rows, iou_type, sigmas):
    """Score predictions.json by pycocotools, with labels read anew from the files."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    content = {"images": [], "annotations": [], "categories": [{"id": i + 1} for i in NAMES]}
    for i in range(len(index)):
        h, w = index.shape(i)
        content["images"].append({"id": index.image_id(i), "width": w, "height": h})
        file = index.path(i).replace("/images/", "/labels/").replace(".jpg", ".txt")
        for row in Path(file).read_text(encoding="utf-8").splitlines():
            class_id, x, y, bw, bh, *points = map(float, row.split())
            box = [(x - bw / 2) * w, (y - bh / 2) * h, bw * w, bh * h]
            points = np.array(points).reshape(-1, 3) * [w, h, 1]
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": index.image_id(i),
                 "category_id": int(class_id) + 1, "iscrowd": 0, "bbox": box,
                 "area": BODY_SHARE * box[2] * box[3], "keypoints": points.ravel().tolist(),
                 "num_keypoints": int((points[:, 2] > 0).sum())}
            )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = content
        gt.createIndex()
        judge = COCOeval(gt, gt.loadRes(rows), iou_type)
        judge.params.kpt_oks_sigmas = np.array(sigmas)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats


@pytest.mark.parametrize("sigmas", [None, SIGMAS])
@pytest.mark.parametrize("numbers", [2, 3])
def test_predictions_score_as_reported(data, tmp_path, sigmas, numbers):
    metrics, index = run(
        replace(data, kpt_oks_sigmas=sigmas), tmp_path, numbers=numbers, save_json=True
    )
    rows = json.loads((tmp_path / "predictions.json").read_text())
    stats = score(index, rows, "keypoints", sigmas or [1 / 4] * 4)
    np.testing.assert_allclose(metrics.pose.coco.stats, stats, rtol=0, atol=1e-6)
    assert 0.2 < stats[0] < 0.99
    boxes = score(index, rows, "bbox", SIGMAS)
    np.testing.assert_allclose(metrics.box.coco.stats, boxes, rtol=0, atol=1e-6)
    assert metrics.fitness == pytest.approx(stats[0] + boxes[0])


def test_own_sigmas_change_the_score_of_poses_alone(data, tmp_path):
    plain, _ = run(data, tmp_path)
    strict, _ = run(replace(data, kpt_oks_sigmas=(0.01,) * 4), tmp_path)
    assert strict.pose.map < plain.pose.map
    assert strict.box.map == plain.box.map


def test_keypoints_lie_in_the_original_image(data, tmp_path):
    metrics, _ = run(data, tmp_path)
    distances = []
    for record in metrics.records:
        height, width = record.shape
        points = record.found.keypoints
        assert (points[..., :2] >= 0).all()
        assert (points[..., :2] <= [width, height]).all()
        for box, found in zip(record.found.boxes, points, strict=True):
            nearest = np.abs(record.truth.boxes - box).sum(1).argmin()
            seen = record.truth.keypoints[nearest, :, 2] > 0
            gap = found[seen, :2] - record.truth.keypoints[nearest, seen, :2]
            distances += np.linalg.norm(gap, axis=1).tolist()
    assert np.median(distances) < 3


@pytest.mark.parametrize("conf", [False, True])
@pytest.mark.parametrize("numbers", [2, 3])
def test_text_files_are_labels(data, tmp_path, numbers, conf):
    """What is written is read back, but for the digits."""
    metrics, _ = run(data, tmp_path, numbers, save_txt=True, save_conf=conf)
    rules = LabelRules(5, (4, numbers))
    read = 0
    for record in metrics.records:
        file = tmp_path / "labels" / f"{record.path[-10:-4]}.txt"
        text = file.read_text()
        if conf:
            scores = [float(row.rpartition(" ")[2]) for row in text.splitlines()]
            np.testing.assert_allclose(scores, record.found.scores, rtol=1e-4)
            text = "\n".join(row.rpartition(" ")[0] for row in text.splitlines())
        found, problems = parse_labels(text.encode(), "x", KeypointLabels(), rules)
        assert not problems
        h, w = record.shape
        expected = record.found.keypoints / [w, h, 1]
        if numbers == 3:
            expected[..., 2] = 2 * (expected[..., 2] >= 0.5)
            expected[expected[..., 2] == 0] = 0
        else:
            expected[..., 2] = 2
        np.testing.assert_allclose(found.keypoints, expected, atol=1e-5)
        read += len(found)
    assert read > 10


def test_pictures_show_the_keypoints(data, tmp_path):
    loader = loader_of(data)
    validator = PoseValidator(ValConfig(plots=False), TASK, None, None, tmp_path)
    model = Copycat(loader)
    validator.run(model, loader)
    batch = next(iter(loader))
    marks = validator.label_marks(batch, 0)
    assert marks.keypoints.shape == (len(marks.boxes), 4, 3)
    rows = validator.postprocess(model.outputs[0])[0]
    drawn = validator.output_marks(rows)
    assert 0 < len(drawn.keypoints) == (rows[:, 4] > 0.25).sum()


def test_data_with_other_keypoints_are_refused(data, tmp_path):
    loader = loader_of(data)
    model = Copycat(loader)
    model.kpt_shape = (17, 3)
    validator = PoseValidator(ValConfig(plots=False), TASK, None, None, tmp_path)
    with pytest.raises(DataError, match="the model has 17 keypoints, the data 4"):
        validator.run(model, loader)
