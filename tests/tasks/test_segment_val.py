# SPDX-License-Identifier: Apache-2.0
"""The segmentation validator: its files hold what was scored, and pycocotools scores them alike."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from faster_coco_eval import mask as coco
from torch import nn

from yolo.data.cache import ImageStore
from yolo.data.datasets import read_dataset
from yolo.data.figures import NAMES
from yolo.data.index import build_index
from yolo.data.labels import LabelRules, parse_labels, to_pixels
from yolo.data.loader import ValLoader
from yolo.data.masks import decode_rle, fill_polygons
from yolo.data.shapes import write_shapes
from yolo.tasks.segment import TASK
from yolo.tasks.segment.config import SegmentValConfig
from yolo.tasks.segment.data import MaskTargets, PolygonLabels
from yolo.tasks.segment.metrics import SegmentMetrics
from yolo.tasks.segment.val import SegmentationValidator


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("outlines") / "set"
    return read_dataset(write_shapes(root, train=1, val=7, size=(100, 128), kind="polygons"))


def loader_of(data, overlap=False):
    index, _ = build_index(data, "val", PolygonLabels)
    store = ImageStore(index, (128, 128), channels=3)
    targets = MaskTargets(overlap, 4)
    return ValLoader(index, store, batch=3, size=(128, 128), stride=32, extras=targets)


class Copycat(nn.Module):
    """Says the labels again, batch by batch: a prototype an object, all numbers garbled."""

    stride = (8, 16)

    def __init__(self, loader, names=NAMES, noise=1.0):
        super().__init__()
        self.names = dict(names)
        rng = np.random.default_rng(0)
        self.outputs = [self.garble(batch.targets, rng, noise) for batch in loader]
        self.calls = -1

    def garble(self, targets, rng, noise):
        boxes, masks = targets.boxes.numpy(), targets.extras["masks"].numpy()
        count, slots = boxes.shape[:2]
        out = np.zeros((count, 4 + len(self.names) + slots, 2 * slots), np.float32)
        for twin in (0, 1):  # two detections an object, the second one worse
            rows = np.s_[:, :, twin * slots : (twin + 1) * slots]
            near = boxes + rng.normal(0, noise * (1 + 9 * twin), boxes.shape)
            centre, sides = (near[..., :2] + near[..., 2:]) / 2, near[..., 2:] - near[..., :2]
            out[rows][:, :4] = np.moveaxis(np.concatenate([centre, sides], 2), 2, 1)
            sure = rng.random((count, slots)) < (0.8 if noise else 1)
            ids = np.where(sure, targets.classes.numpy(), 0)
            scores = rng.uniform(0.1, 1, (count, slots)) * targets.mask.numpy()
            np.put_along_axis(out[rows][:, 4 : 4 + len(self.names)], ids[:, None],
                              scores[:, None], 1)  # fmt: skip
            out[rows][:, 4 + len(self.names) :] = np.eye(slots) * (1 - 0.2 * twin)
        proto = 4.0 * masks - 2 + rng.normal(0, noise, masks.shape)
        return torch.from_numpy(out), torch.from_numpy(proto.astype(np.float32))

    def raw(self, x):
        self.calls = (self.calls + 1) % len(self.outputs)
        return {"call": torch.tensor(self.calls)}

    def decode(self, raw):
        return self.outputs[int(raw["call"])]


def run(data, folder, names=NAMES, noise=1.0, **options):
    config = SegmentValConfig(**{"plots": False, **options})
    validator = SegmentationValidator(config, TASK, None, None, folder)
    loader = loader_of(data)
    return validator.run(Copycat(loader, names, noise), loader), loader.index


def score(truth, rows, iou_type):
    """Score rows of predictions.json by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if iou_type == "segm":  # with boxes in the rows, pycocotools takes their areas for the masks'
        rows = [{key: value for key, value in row.items() if key != "bbox"} for row in rows]
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = json.loads(json.dumps(truth))
        gt.createIndex()
        judge = COCOeval(gt, gt.loadRes(rows), iou_type)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats


def check_scores(metrics, truth, rows):
    for part, iou_type in ((metrics.box, "bbox"), (metrics.seg, "segm")):
        stats = score(truth, rows, iou_type)
        np.testing.assert_allclose(part.coco.stats, stats, rtol=0, atol=1e-6)
        assert part.map == pytest.approx(stats[0], abs=1e-6)
        assert 0.2 < stats[0] < 0.95


def truth_of_labels(index):
    """Read the label files anew, without the package, as outlines in COCO's form."""
    content = {"images": [], "annotations": [], "categories": [{"id": i + 1} for i in NAMES]}
    for i in range(len(index)):
        h, w = index.shape(i)
        content["images"].append({"id": index.image_id(i), "width": w, "height": h})
        file = index.path(i).replace("/images/", "/labels/").replace(".jpg", ".txt")
        for row in Path(file).read_text(encoding="utf-8").splitlines():
            class_id, *numbers = map(float, row.split())
            x, y = (np.array(numbers).reshape(-1, 2) * [w, h]).T
            area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": index.image_id(i),
                 "category_id": int(class_id) + 1, "iscrowd": 0, "area": area,
                 "bbox": [x.min(), y.min(), np.ptp(x), np.ptp(y)],
                 "segmentation": [np.stack([x, y], 1).ravel().tolist()]}
            )  # fmt: skip
    return content


def test_predictions_score_as_reported(data, tmp_path):
    metrics, index = run(data, tmp_path, save_json=True)
    rows = json.loads((tmp_path / "predictions.json").read_text())
    assert list(rows[0]["segmentation"]) == ["size", "counts"]
    assert rows[0]["segmentation"]["size"] == list(index.shape(0))
    check_scores(metrics, truth_of_labels(index), rows)


def coco_set(root, index):
    """Write COCO JSON: outlines in one or more parts, some overlapping, run lengths, crowds."""
    content = truth_of_labels(index)
    content["categories"] = [{"id": 7 * i + 3, "name": name} for i, name in NAMES.items()]
    sizes = {}
    for i, image in enumerate(content["images"]):
        image["file_name"] = Path(index.path(i)).name
        sizes[image["id"]] = (image["height"], image["width"])
    for number, entry in enumerate(content["annotations"]):
        entry["category_id"] = 7 * entry["category_id"] - 4
        size = sizes[entry["image_id"]]
        packed = coco.frPyObjects(entry["segmentation"], *size)[0]
        if number % 4 == 1:
            entry["segmentation"] = {**packed, "counts": packed["counts"].decode()}
        elif number % 4 == 2:
            flat = coco.decode(packed).T.ravel()
            edges = np.flatnonzero(np.diff(flat, prepend=0))
            counts = np.diff(edges, prepend=0, append=flat.size).tolist()
            entry["segmentation"] = {"size": list(size), "counts": counts}
            entry["iscrowd"] = number % 3 == 0
        elif number % 4 == 3:
            part = np.array(entry["segmentation"][0]).reshape(-1, 2)
            entry["segmentation"].append(((part + part.mean(0)) / 2 + 3).ravel().tolist())
    file = root / "instances.json"
    file.write_text(json.dumps(content))
    folder = str(Path(index.path(0)).parent)
    return {"train": str(file), "val": str(file), "images": folder}, content


def test_masks_of_coco_json_score_as_by_pycocotools(data, tmp_path):
    index, _ = build_index(data, "val", PolygonLabels)
    keys, truth = coco_set(tmp_path, index)
    metrics, index = run(read_dataset(keys), tmp_path, save_json=True)
    assert index.report.problems == []
    assert index.report.ignored >= 2
    assert {len(p) for i in range(len(index)) for p in index.instances(i).polygons} >= {1, 2}
    rows = json.loads((tmp_path / "predictions.json").read_text())
    assert {row["category_id"] for row in rows} <= {3, 10, 17, 24, 31}
    check_scores(metrics, truth, rows)


def test_the_masks_found_are_the_network_s(data, tmp_path):
    """Without noise, at the size of the original, cut to the boxes."""
    metrics, index = run(data, tmp_path, noise=0.0)
    assert metrics.box.map > 0.95
    shares, offsets = [], []
    for record in metrics.records:
        instances = index.instances(record.index)
        parts = list(fill_polygons(instances.polygons, record.shape))
        for box, rle in zip(record.found.boxes, record.found.rles, strict=True):
            mask = decode_rle(rle)
            x0, y0, x1, y1 = np.ceil(box).astype(int)
            outside = mask.copy()
            outside[y0:y1, x0:x1] = 0
            assert not outside.any()
            row = int(abs(instances.boxes - box).max(1).argmin())
            top, left, window = parts[row]
            wanted = np.zeros(record.shape, np.uint8)
            wanted[top : top + window.shape[0], left : left + window.shape[1]] = window
            shares.append((mask & wanted).sum() / (mask | wanted).sum())
            offsets.append(np.argwhere(mask).mean(0) - np.argwhere(wanted).mean(0))
    assert len(shares) > 15
    assert min(shares) > 0.3  # objects of a few pixels, at a quarter of the size
    assert np.median(shares) > 0.7
    assert abs(np.mean(offsets, axis=0)).max() < 0.2


@pytest.mark.parametrize("conf", [False, True])
def test_text_files_are_read_back_as_the_same_masks(data, tmp_path, conf):
    metrics, _ = run(data, tmp_path, save_txt=True, save_conf=conf)
    record = metrics.records[0]
    text = (tmp_path / "labels" / f"{Path(record.path).stem}.txt").read_bytes()
    if conf:
        rows = text.splitlines()
        scores = [float(row.split()[-1]) for row in rows]
        assert scores == pytest.approx(record.found.scores, rel=1e-5)
        text = b"\n".join(b" ".join(row.split()[:-1]) for row in rows)
    found, problems = parse_labels(text, "a.txt", PolygonLabels(), LabelRules(len(NAMES)))
    assert problems == []
    assert found.classes.tolist() == record.found.classes.tolist()
    instances = to_pixels(found, record.shape)
    for (top, left, window), rle in zip(
        fill_polygons(instances.polygons, record.shape), record.found.rles, strict=True
    ):
        mask = decode_rle(rle)
        assert mask.sum() == window.sum()
        assert np.array_equal(
            mask[top : top + window.shape[0], left : left + window.shape[1]], window
        )


@pytest.mark.parametrize("overlap", [False, True])
def test_pictures_show_masks(data, tmp_path, monkeypatch, overlap):
    monkeypatch.setattr(SegmentMetrics, "plot", lambda *_: [])  # tested elsewhere, and slow
    loader = loader_of(data, overlap)
    validator = SegmentationValidator(SegmentValConfig(), TASK, None, None, tmp_path)
    validator.run(Copycat(loader_of(data)), loader)
    batch = next(iter(loader))
    marks = validator.label_marks(batch, 0)
    outlines = loader.index.instances(batch.indices[0]).polygons
    drawn = [marks.mask(i) for i in range(len(marks))]
    assert len(drawn) == len(outlines)
    assert {mask.shape for mask in drawn} == {tuple(batch.images.shape[1:3])}
    assert all(mask.any() for mask in drawn)
    (output,) = validator.postprocess(
        tuple(part[:1] for part in Copycat(loader_of(data)).outputs[0])
    )
    found = validator.output_marks(output)
    assert (found.conf > 0.25).all()
    assert found.mask(0).shape == tuple(batch.images.shape[1:3])
    x0, y0, x1, y1 = found.boxes[0].round().astype(int)
    assert (
        found.mask(0).sum()
        == found.mask(0)[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1].sum()
        > 0
    )
    for kind in ("labels", "pred"):
        assert cv2.imread(str(tmp_path / f"val_batch0_{kind}.jpg")) is not None
