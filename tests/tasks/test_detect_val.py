# SPDX-License-Identifier: Apache-2.0
"""Detection's validator: its files hold what was scored."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from rectangles import SHAPES, Finder, draw_dataset, loader_of, validator
from yolo.tasks.detect.metrics import DetMetrics


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("rectangles"))


def truth_of_labels(root: Path, id_of) -> dict:
    """Read the label files anew, without the package, into COCO's form."""
    content = {"images": [], "annotations": [], "categories": [{"id": i} for i in (1, 2, 3)]}
    for file in sorted((root / "images").rglob("*.png")):
        height, width = cv2.imread(str(file)).shape[:2]
        image_id = id_of(file)
        content["images"].append({"id": image_id, "width": width, "height": height})
        labels = root / "labels" / file.relative_to(root / "images").with_suffix(".txt")
        for row in labels.read_text().splitlines():
            class_id, x, y, w, h = map(float, row.split())
            w, h = w * width, h * height
            box = [x * width - w / 2, y * height - h / 2, w, h]
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": image_id, "iscrowd": 0,
                 "category_id": int(class_id) + 1, "bbox": box, "area": w * h}
            )  # fmt: skip
    return content


def score(truth: dict, rows: list) -> np.ndarray:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = truth
        gt.createIndex()
        judge = COCOeval(gt, gt.loadRes(rows), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats


def test_predictions_score_as_reported(data, tmp_path):
    metrics = validator(tmp_path, save_json=True).run(Finder(), loader_of(data))
    assert isinstance(metrics, DetMetrics)
    rows = json.loads((tmp_path / "predictions.json").read_text())
    # Two images are called 1.png, in different folders.
    ids = {"left/1", "right/1", "2", "a", "b", "c"}
    truth = truth_of_labels(
        data.parent, lambda f: f"{f.parent.name}/1" if f.stem == "1" else f.stem
    )
    assert {row["image_id"] for row in rows} <= ids
    assert list(rows[0]) == ["image_id", "file_name", "category_id", "bbox", "score"]
    stats = score(truth, rows)
    assert metrics.box.map == pytest.approx(stats[0], abs=1e-6)
    assert metrics.box.map50 == pytest.approx(stats[1], abs=1e-6)
    assert metrics.box.map75 == pytest.approx(stats[2], abs=1e-6)
    assert 0.3 < stats[0] < 1


def test_predictions_are_the_scored_detections_unrounded(data, tmp_path):
    metrics = validator(tmp_path, save_json=True).run(Finder(), loader_of(data))
    rows = json.loads((tmp_path / "predictions.json").read_text())
    boxes = np.concatenate([r.found.boxes_ltwh for r in metrics.records])
    scores = np.concatenate([r.found.scores for r in metrics.records])
    np.testing.assert_array_equal([row["bbox"] for row in rows], boxes)
    np.testing.assert_array_equal([row["score"] for row in rows], scores)


def test_boxes_lie_in_the_original_image(data, tmp_path):
    metrics = validator(tmp_path).run(Finder(), loader_of(data))
    for record in metrics.records:
        height, width = record.shape
        assert (height, width) in SHAPES
        assert (record.found.boxes >= 0).all()
        assert (record.found.boxes <= [width, height, width, height]).all()
        sure = record.found.boxes[record.found.scores > 0.5]
        # The finder's boxes are too narrow, but neither too low nor too high.
        ours, theirs = (b[np.argsort(b[:, 0])][:, [1, 3]] for b in (sure, record.truth.boxes))
        np.testing.assert_allclose(ours, theirs, atol=2)


def test_coco_json_keeps_its_ids(data, tmp_path):
    truth = truth_of_labels(data.parent, lambda f: 1000 + sum(map(ord, str(f.name))) + len(str(f)))
    files = sorted((data.parent / "images").rglob("*.png"))
    for i, (image, file) in enumerate(zip(truth["images"], files, strict=True)):
        old, new = image["id"], 10 * i + 5
        image.update(id=new, file_name=str(file))
        for row in truth["annotations"]:
            if row["image_id"] == old and "moved" not in row:
                row.update(image_id=new, moved=True)
    for row in truth["annotations"]:
        row["category_id"] *= 7
    truth["categories"] = [
        {"id": 7 * i, "name": name} for i, name in ((1, "red"), (2, "green"), (3, "blue"))
    ]
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(truth))
    loader = loader_of(str(file))
    metrics = validator(tmp_path, save_json=True).run(Finder(), loader)
    rows = json.loads((tmp_path / "predictions.json").read_text())
    assert {row["category_id"] for row in rows} <= {7, 14, 21}
    assert {row["image_id"] for row in rows} <= {5, 15, 25, 35, 45, 55}
    assert metrics.box.map == pytest.approx(score(truth, rows)[0], abs=1e-6)


@pytest.mark.parametrize("conf", [False, True])
def test_text_files(data, tmp_path, conf):
    metrics = validator(tmp_path, save_txt=True, save_conf=conf).run(Finder(), loader_of(data))
    files = sorted(f.name for f in (tmp_path / "labels").iterdir())
    assert files == ["1-2.txt", "1.txt", "2.txt", "a.txt", "b.txt"]  # c has no detections
    record = next(r for r in metrics.records if Path(r.path).stem == "a")
    rows = [r.split() for r in (tmp_path / "labels" / "a.txt").read_text().splitlines()]
    assert {len(row) for row in rows} == {6 if conf else 5}
    values = np.array(rows, dtype=float)
    assert values[:, 0].tolist() == record.found.classes.tolist()
    width = record.shape[1]
    centre = (record.found.boxes[:, 0] + record.found.boxes[:, 2]) / 2 / width
    np.testing.assert_allclose(values[:, 1], centre, rtol=1e-5)
    assert (values[:, 1:] <= 1).all()


def test_options_reach_nms(data, tmp_path):
    few = validator(tmp_path, max_det=1).run(Finder(), loader_of(data))
    assert max(len(r.found) for r in few.records) == 1
    sure = validator(tmp_path, conf=0.6).run(Finder(), loader_of(data))
    assert min(r.found.scores.min(initial=1) for r in sure.records) > 0.6


def test_classes_that_are_left_out_are_not_found_either(data, tmp_path):
    every = validator(tmp_path).run(Finder(), loader_of(data))
    first = validator(tmp_path, classes=[0]).run(Finder(), loader_of(data, classes=[0]))
    assert {c for r in every.records for c in r.found.classes.tolist()} == {0, 1, 2}
    assert {c for r in first.records for c in r.found.classes.tolist()} == {0}
    assert first.box.ap.tolist() == every.box.ap[:1].tolist()
    assert first.confusion_matrix.matrix[1:3].sum() == 0


def test_a_model_of_several_classes_is_scored_on_objects_alone(data, tmp_path):
    loader = loader_of(data, single_cls=True)
    one = validator(tmp_path, single_cls=True, iou=0.9).run(Finder(), loader)
    assert {c for r in one.records for c in r.found.classes.tolist()} == {0}
    assert one.box.nc == 3
    assert one.box.ap_class_index.tolist() == [0]
    assert 0.7 < one.box.map50 <= 1
