# SPDX-License-Identifier: Apache-2.0
"""Random labels and detections, their scores by pycocotools, and a box metric to try them on."""

from __future__ import annotations

import contextlib
import io

import numpy as np

from yolo.data.sample import Instances
from yolo.engine.coco_eval import Objects
from yolo.engine.metrics import ImageRecord, PartMetrics, TaskMetrics

NAMES = {0: "none", 1: "cat", 2: "dog", 3: "bird"}


class BoxMetrics(TaskMetrics):
    def make_parts(self, sigmas):
        return (PartMetrics(),)


def records(truths, founds):
    return [
        ImageRecord(i, i, f"/data/{i}/same.jpg", (400, 500), found, truth)
        for i, (truth, found) in enumerate(zip(truths, founds, strict=True))
    ]


def scored(metrics, images):
    for image in images:
        metrics.update(image)
    return metrics.process()


def objects_of(rows, category_ids, labelled):
    """Turn COCO rows of one image into Objects."""
    ltwh = np.array([r["bbox"] for r in rows], dtype=float).reshape(-1, 4)
    boxes = np.concatenate([ltwh[:, :2], ltwh[:, :2] + ltwh[:, 2:]], axis=1)
    kinds = {}
    if rows and "segmentation" in rows[0]:
        kinds["rles"] = [r["segmentation"] for r in rows]
    if rows and "keypoints" in rows[0]:
        kinds["keypoints"] = np.array([r["keypoints"] for r in rows], float).reshape(
            len(rows), -1, 3
        )
    classes = np.array([category_ids.index(r["category_id"]) for r in rows], dtype=np.int64)
    if not labelled:
        return Objects.found(classes, boxes, [r["score"] for r in rows], **kinds)
    return Objects(
        classes,
        boxes,
        ignore=np.array([r.get("iscrowd", 0) for r in rows], dtype=bool),
        area=np.array([r["area"] for r in rows], dtype=float),
        **kinds,
    )


def from_coco(gt, dt):
    ids = [c["id"] for c in gt["categories"]]
    images = [i["id"] for i in gt["images"]]

    def by_image(rows, image):
        return [r for r in rows if r["image_id"] == image]

    truths = [objects_of(by_image(gt["annotations"], i), ids, True) for i in images]
    founds = [objects_of(by_image(dt, i), ids, False) for i in images]
    return truths, founds, len(ids)


def reference(truths, founds, classes) -> tuple[np.ndarray, np.ndarray]:
    """pycocotools' twelve numbers and AP by threshold and class."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, results = [], []
    for image, (truth, found) in enumerate(zip(truths, founds, strict=True)):
        for k in range(len(truth)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(truth.classes[k]),
                    "bbox": truth.boxes_ltwh[k].tolist(),
                    "area": float(truth.area[k]),
                    "iscrowd": int(truth.crowd[k]),
                }
            )
        for k in range(len(found)):
            results.append(
                {
                    "image_id": image,
                    "category_id": int(found.classes[k]),
                    "bbox": found.boxes_ltwh[k].tolist(),
                    "score": float(found.scores[k]),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = {
            "images": [{"id": i} for i in range(len(truths))],
            "annotations": annotations,
            "categories": [{"id": c} for c in range(classes)],
        }
        gt.createIndex()
        judge = COCOeval(gt, gt.loadRes(results) if results else COCO(), "bbox")
        judge.params.imgIds = list(range(len(truths)))
        judge.params.catIds = list(range(classes))
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    precision = judge.eval["precision"][:, :, :, 0, -1]
    return judge.stats, np.where(precision[:, 0] > -1, precision.mean(axis=1), np.nan)


def random_set(rng, images=7, classes=4, most=6):
    """Draw labels and detections near them; class 0 has no label, scores tie, some are crowds."""
    truths, founds = [], []
    for _ in range(images):
        n = int(rng.integers(0, most))
        corner = rng.uniform(0, 300, (n, 2))
        boxes = np.concatenate([corner, corner + rng.choice([12, 50, 150], (n, 1))], axis=1)
        truth = Instances.from_boxes(rng.integers(1, classes, n), boxes)
        truth.ignore = rng.random(n) < 0.2
        truth.area = truth.area * rng.uniform(0.3, 1.2, n)
        truths.append(Objects.labelled(truth))
        copies = np.concatenate([boxes, boxes, boxes + 3]) + rng.normal(0, 4, (3 * n, 4))
        noise = rng.uniform(0, 200, (3, 4))
        noise[:, 2:] += noise[:, :2]
        founds.append(
            Objects.found(
                np.concatenate([np.tile(truth.classes, 3), rng.integers(0, classes, 3)]),
                np.concatenate([copies, noise]),
                np.round(rng.random(3 * n + 3), 1),
            )
        )
    return truths, founds, classes
