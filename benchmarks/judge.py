# SPDX-License-Identifier: Apache-2.0
"""The judge of every side: label files and predictions.json in, COCO's scores out.

Nothing here comes from the library: label files are read and the overlaps of rotated boxes are
worked out anew, and pycocotools does the counting, so that a fault in the library shows.

* boxes and keypoints: pycocotools; a keypoint label's area is 0.53 of its box (people fill about
  that share of theirs in COCO), spreads are COCO's for 17 points and 1/K for K others;
* masks: pycocotools; its polygon filling follows the even-odd rule, so that a hole that is joined
  to its outline by a bridge stays a hole;
* rotated boxes: pycocotools' counting on exact intersections of convex polygons.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Fields = dict[str, Any]
KEYPOINT_AREA = 0.53
BODY_POINTS = 17  # pycocotools has their spreads


# ---------------------------------------------------------------------- labels


def ground_truth(images: Path, kind: str = "boxes") -> Fields:
    """Read one split's labels into COCO's form.

    Args:
        images: folder ROOT/images/SPLIT; the labels are in ROOT/labels/SPLIT.
        kind: of the label rows, a key of LABELS.

    Returns:
        COCO's dataset; image ids are the places of the sorted files, category ids class id + 1.
    """
    pictures, objects = [], []
    for number, file in enumerate(sorted(images.iterdir())):
        height, width = cv2.imread(str(file)).shape[:2]
        pictures.append({"id": number, "width": width, "height": height, "stem": file.stem})
        label = images.parents[1] / "labels" / images.name / f"{file.stem}.txt"
        for line in label.read_text().splitlines() if label.is_file() else []:
            class_id, *numbers = map(float, line.split())
            row = {
                "id": len(objects) + 1,
                "image_id": number,
                "category_id": int(class_id) + 1,
                "iscrowd": 0,
            }
            objects.append(row | LABELS[kind](np.array(numbers), width, height))
    ids = sorted({row["category_id"] for row in objects})
    categories = [{"id": i, "name": str(i)} for i in ids]
    return {"images": pictures, "annotations": objects, "categories": categories}


def _box(numbers: np.ndarray, width: int, height: int) -> Fields:
    x, y, w, h = numbers[:4]
    box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
    return {"bbox": box, "area": box[2] * box[3]}


def _hull(points: np.ndarray) -> list[float]:
    low = points.min(0)
    return [*low.tolist(), *(points.max(0) - low).tolist()]


def _polygon(numbers: np.ndarray, width: int, height: int) -> Fields:
    points = numbers.reshape(-1, 2) * (width, height)
    (rle,) = mask.frPyObjects([points.ravel().tolist()], height, width)
    return {"bbox": _hull(points), "segmentation": rle, "area": float(mask.area(rle))}


def _keypoints(numbers: np.ndarray, width: int, height: int) -> Fields:
    points = numbers[4:].reshape(-1, 3) * (width, height, 1)
    fields = _box(numbers, width, height)
    return fields | {
        "area": fields["area"] * KEYPOINT_AREA,
        "keypoints": points.ravel().tolist(),
        "num_keypoints": int((points[:, 2] > 0).sum()),
    }


def _corners(numbers: np.ndarray, width: int, height: int) -> Fields:
    points = numbers.reshape(4, 2) * (width, height)
    return {"bbox": _hull(points), "poly": points.ravel().tolist(), "area": abs(_area(points))}


LABELS: dict[str, Callable[[np.ndarray, int, int], Fields]] = {
    "boxes": _box,
    "polygons": _polygon,
    "keypoints": _keypoints,
    "corners": _corners,
}


# ---------------------------------------------------------------------- rotated boxes


def _area(points: np.ndarray) -> float:
    """Return the signed area of a polygon (P, 2), by the shoelace formula."""
    x, y = points.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def intersection(one: np.ndarray, other: np.ndarray) -> float:
    """Return the area that two convex polygons (P, 2) share.

    Source: Sutherland and Hodgman, Reentrant Polygon Clipping, CACM 17(1), 1974.
    """
    left = other if _area(other) > 0 else other[::-1]
    points = one
    for a, b in zip(left, np.roll(left, -1, 0), strict=True):
        # Positive on the inner side of the edge from a to b.
        side = (b[0] - a[0]) * (points[:, 1] - a[1]) - (b[1] - a[1]) * (points[:, 0] - a[0])
        kept: list[np.ndarray] = []
        for i in range(len(points)):
            before, here = side[i - 1], side[i]
            if (before >= 0) != (here >= 0):
                kept.append(points[i - 1] + before / (before - here) * (points[i] - points[i - 1]))
            if here >= 0:
                kept.append(points[i])
        if len(kept) < 3:
            return 0.0
        points = np.array(kept)
    return abs(_area(points))


def polygon_iou(one: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection over union of two convex polygons (P, 2); 0 where both are empty."""
    # Overlaps of far-off numbers cancel; about the first corner the coordinates are small.
    one, other = one - one[0], other - one[0]
    shared = intersection(one, other)
    union = abs(_area(one)) + abs(_area(other)) - shared
    return shared / union if union > 0 else 0.0


class PolygonEval(COCOeval):
    """pycocotools' evaluation of rows with `poly`, four corners, in place of boxes."""

    def computeIoU(self, image_id: int, category_id: int) -> Any:  # noqa: N802 - pycocotools' name
        """Return overlaps (detections, surest first; labels) of an image and class."""
        found = sorted(self._dts[image_id, category_id], key=lambda row: -row["score"])
        found = found[: self.params.maxDets[-1]]
        labels = self._gts[image_id, category_id]
        if not found or not labels:
            return []
        return np.array([[polygon_iou(_quad(a), _quad(b)) for b in labels] for a in found])


def _quad(row: Fields) -> np.ndarray:
    return np.array(row["poly"], dtype=np.float64).reshape(4, 2)


# ---------------------------------------------------------------------- scores

COMPARED = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints", "poly": "poly"}
"""What can be compared, and the field that holds it."""


def coco_scores(truth: Fields, rows: list[Fields], compared: str = "bbox") -> tuple[float, float]:
    """Return mAP50-95 and mAP50.

    Args:
        truth: from `ground_truth`, of labels that hold what is compared.
        rows: of predictions.json; files are told by the stem of `file_name`.
        compared: a key of COMPARED.
    """
    number = {picture["stem"]: picture["id"] for picture in truth["images"]}
    field = COMPARED[compared]
    results = []
    for row in rows:
        result = {key: row[key] for key in ("category_id", "score", field)}
        result["image_id"] = number[Path(row["file_name"]).stem]
        if compared == "poly":  # pycocotools wants one of its own fields beside
            result["bbox"] = _hull(_quad(row))
        results.append(result)
    if not results:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = truth
        gt.createIndex()
        scorer = _scorer(gt, gt.loadRes(results), compared)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return float(scorer.stats[0]), float(scorer.stats[1])


def _scorer(gt: COCO, found: COCO, compared: str) -> COCOeval:
    if compared == "poly":
        return PolygonEval(gt, found, "bbox")
    scorer = COCOeval(gt, found, compared)
    if compared == "keypoints":
        points = len(gt.dataset["annotations"][0]["keypoints"]) // 3
        if points != BODY_POINTS:
            scorer.params.kpt_oks_sigmas = np.ones(points) / points
    return scorer


def read_rows(file: Path) -> Any:
    """Return what a predictions.json holds."""
    return json.loads(file.read_text(encoding="utf-8"))


def top1(found: Mapping[str, str]) -> float:
    """Return the share of files whose class, the name of their folder, was found.

    Args:
        found: path -> name of the class that was found.
    """
    return sum(Path(path).parent.name == name for path, name in found.items()) / len(found)
