# SPDX-License-Identifier: Apache-2.0
"""COCO's scores: average precision and recall of boxes, masks or keypoints, by its definition.

The counting is faster-coco-eval's, whose numbers equal those of pycocotools. Both keep, for each
image and class, the 100 most confident detections (20 for keypoints), whatever the caller's cap.
Rotated boxes, which COCO doesn't have, are counted by the same rules.

Shape letters: N objects of an image, K keypoints, T 10 overlap thresholds, R 101 recall levels,
C classes, A object sizes.

Source: Lin et al., Microsoft COCO, arXiv:1405.0312; the definition is at
https://cocodataset.org/#detection-eval and #keypoints-eval.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from yolo.engine.overlaps import COCO_SIGMAS, IouType, rotated_overlaps
from yolo.nn.rotated import corners_to_xywhr

if TYPE_CHECKING:
    from yolo.data.sample import Instances

LOGGER = logging.getLogger(__name__)

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e5**2)}
"""Object areas in square pixels of the original image, both ends included."""


@dataclass(slots=True)
class Objects:
    """What was found in one image, or what is labelled there, in pixels of the original image.

    Attributes:
        classes: (N,) int64 class ids.
        boxes: (N, 4) float64 boxes_xyxy.
        scores: (N,) float64 confidence, falling; None for labels.
        ignore: (N,) bool crowd regions among labels, or None for none.
        area: (N,) float64; None means that of what is compared (box, mask, or the keypoints'
            bounding box), as pycocotools takes it for results.
        rles: N masks as COCO run-length dictionaries (compressed or lists of counts), or None.
        keypoints: (N, K, 3) x, y, visibility, or None.
        rotated: (N, 5) float64 boxes_xywhr, or None.
    """

    classes: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray | None = None
    ignore: np.ndarray | None = None
    area: np.ndarray | None = None
    rles: list[dict[str, Any]] | None = None
    keypoints: np.ndarray | None = None
    rotated: np.ndarray | None = None

    @classmethod
    def labelled(cls, instances: Instances, rles: list[dict[str, Any]] | None = None) -> Objects:
        """Take the labels of one image, in its original pixels."""
        corners = instances.corners
        return cls(
            classes=np.asarray(instances.classes),
            boxes=np.asarray(instances.boxes, dtype=np.float64),
            ignore=np.asarray(instances.ignore),
            area=np.asarray(instances.area, dtype=np.float64),
            rles=rles,
            keypoints=instances.keypoints,
            rotated=None if corners is None else corners_to_xywhr(np.asarray(corners, np.float64)),
        )

    @classmethod
    def found(cls, classes: Any, boxes: Any, scores: Any, **kinds: Any) -> Objects:
        """Take detections; they are put in order of falling confidence, ties as they came."""
        ids = np.asarray(classes).reshape(-1).astype(np.int64)
        xyxy = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        confidence = np.asarray(scores, dtype=np.float64).reshape(-1)
        objects = cls(ids, xyxy, confidence, **kinds)
        order = np.argsort(-confidence, kind="stable")
        return objects if np.array_equal(order, np.arange(len(ids))) else objects.select(order)

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def boxes_ltwh(self) -> np.ndarray:
        """(N, 4) left, top, width, height, as COCO's files have them."""
        return np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)

    @property
    def crowd(self) -> np.ndarray:
        """(N,) bool, False everywhere when nothing is to be ignored."""
        return np.zeros(len(self), dtype=bool) if self.ignore is None else self.ignore

    def excused(self, iou_type: IouType) -> np.ndarray:
        """(N,) bool labels that are neither missed nor wrong to find.

        Crowds; and when keypoints are compared, objects of which none is labelled.
        """
        if iou_type != "keypoints" or self.keypoints is None:
            return self.crowd
        return np.asarray(self.crowd | ~(self.keypoints[..., 2] > 0).any(axis=1))

    def packed_masks(self) -> list[dict[str, Any]]:
        """Return `rles` with their counts packed, the form that comparisons take."""
        from faster_coco_eval import mask

        return [
            mask.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else rle
            for rle in self.rles or []
        ]

    def select(self, which: np.ndarray) -> Objects:
        """Return the objects at `which` (indices or a boolean mask), in that order."""
        rows = np.flatnonzero(which) if which.dtype == bool else which

        def pick(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[rows]

        return Objects(
            self.classes[rows],
            self.boxes[rows],
            pick(self.scores),
            pick(self.ignore),
            pick(self.area),
            None if self.rles is None else [self.rles[i] for i in rows],
            pick(self.keypoints),
            pick(self.rotated),
        )


@dataclass(frozen=True)
class CocoScores:
    """COCO's result arrays; -1 stands where a class has no object of that size.

    Attributes:
        iou_type: what was compared.
        precision: (T, R, C, A) interpolated precision at COCO's cap of detections.
        recall: (T, C, A) final recall at COCO's cap of detections.
        recall_by_cap: (M, T, C) final recall of objects of all sizes at each cap.
        sizes: names of the A sizes; the first is "all".
    """

    iou_type: IouType
    precision: np.ndarray
    recall: np.ndarray
    recall_by_cap: np.ndarray
    sizes: tuple[str, ...]

    @property
    def ap(self) -> np.ndarray:
        """(T, C) average precision over objects of all sizes; NaN for a class without objects."""
        present = self.precision[0, 0, :, 0] > -1
        return np.where(present, self.precision[:, :, :, 0].mean(axis=1), np.nan)

    def mean_precision(self, size: str = "all", threshold: int | None = None) -> float:
        """Average over classes with such objects (and thresholds); -1 when there are none."""
        values = self.precision[..., self.sizes.index(size)]
        return _mean_valid(values if threshold is None else values[threshold])

    def mean_recall(self, size: str = "all", threshold: int | None = None) -> float:
        """Average over classes with such objects (and thresholds); -1 when there are none."""
        values = self.recall[..., self.sizes.index(size)]
        return _mean_valid(values if threshold is None else values[threshold])

    @property
    def stats(self) -> np.ndarray:
        """The twelve numbers that COCO prints, in its order (ten for keypoints)."""
        at75 = 5
        sizes = self.sizes[1:]
        numbers = [self.mean_precision(threshold=t) for t in (None, 0, at75)]
        numbers += [self.mean_precision(size) for size in sizes]
        if self.iou_type == "keypoints":
            numbers += [self.mean_recall(threshold=t) for t in (None, 0, at75)]
        else:
            numbers += [_mean_valid(values) for values in self.recall_by_cap]
        return np.array(numbers + [self.mean_recall(size) for size in sizes])


def _mean_valid(values: np.ndarray) -> float:
    """Average the entries above -1, or return -1."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0


def coco_scores(
    truths: Sequence[Objects],
    founds: Sequence[Objects],
    num_classes: int,
    iou_type: IouType = "bbox",
    sigmas: np.ndarray | None = None,
) -> CocoScores:
    """Score the detections of a whole set of images.

    Args:
        truths: labels, one entry an image; `area` decides the object's size class.
        founds: detections, one entry an image, in the same order.
        num_classes: classes are 0 .. num_classes - 1; other detections don't count.
        iou_type: "bbox" compares boxes, "segm" the masks in `rles`, "keypoints" the keypoints,
            "rotated" the rotated boxes.
        sigmas: (K,) keypoint spreads; None means COCO's, for 17 points.

    Returns:
        Precision and recall by threshold, class and size.

    Raises:
        ValueError: if the two sequences have different lengths.
    """
    from faster_coco_eval import COCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    if len(truths) != len(founds):
        raise ValueError(
            f"expected as many labelled images as scored ones, got {len(truths)} "
            f"and {len(founds)}; pass one entry an image in both"
        )
    rows = _Rows(iou_type)
    gt = COCO(rows.dataset(truths, num_classes), print_function=LOGGER.debug)
    dt = COCO(rows.dataset(founds, num_classes), print_function=LOGGER.debug)
    judge = COCOeval_faster(
        gt,
        dt,
        iouType="bbox" if iou_type == "rotated" else iou_type,
        print_function=LOGGER.debug,
        kpt_oks_sigmas=COCO_SIGMAS if sigmas is None else np.asarray(sigmas, dtype=np.float64),
    )
    judge.params.catIds = list(range(num_classes))

    def compare(image: int, class_id: int) -> np.ndarray:
        found, truth = (o[image].select(o[image].classes == class_id) for o in (founds, truths))
        found = found.select(np.arange(min(len(found), judge.params.maxDets[-1])))
        return rotated_overlaps(found, truth)

    if iou_type == "rotated":
        judge.computeIoU = compare  # the package knows no such overlap
    judge.evaluate()
    judge.accumulate()
    shape = judge.eval["counts"]
    precision = np.asarray(judge.eval["precision"]).reshape(shape)
    recall = np.asarray(judge.eval["recall"]).reshape([shape[0], *shape[2:]])
    return CocoScores(
        iou_type,
        precision[..., -1],
        recall[..., -1],
        np.moveaxis(recall[:, :, 0, :], -1, 0),
        tuple(judge.params.areaRngLbl),
    )


@dataclass
class _Rows:
    """Builds the dictionaries that the COCO classes work on, plain Python numbers throughout."""

    iou_type: IouType
    serial: int = field(default=0)

    def dataset(self, images: Sequence[Objects], num_classes: int) -> dict[str, Any]:
        """Return images, categories and annotations; ids of annotations start at 1.

        An id of 0 would read as "not matched" in COCO's own bookkeeping.
        """
        self.serial = 0
        return {
            "images": [{"id": i, **_mask_size(image)} for i, image in enumerate(images)],
            "categories": [{"id": i, "name": str(i)} for i in range(num_classes)],
            "annotations": [row for i, image in enumerate(images) for row in self._image(i, image)],
        }

    def _image(self, image_id: int, objects: Objects) -> list[dict[str, Any]]:
        boxes = objects.boxes_ltwh
        area = _area(objects, self.iou_type)
        scores = np.zeros(len(objects)) if objects.scores is None else objects.scores
        start, self.serial = self.serial + 1, self.serial + len(objects)
        rows = [
            {
                "id": i,
                "image_id": image_id,
                "category_id": c,
                "bbox": b,
                "area": a,
                "score": s,
                "iscrowd": k,
            }
            for i, (c, b, a, s, k) in enumerate(
                zip(
                    objects.classes.tolist(),
                    boxes.tolist(),
                    area.tolist(),
                    scores.tolist(),
                    objects.crowd.astype(int).tolist(),
                    strict=True,
                ),
                start=start,
            )
        ]
        if self.iou_type == "segm":
            for row, rle in zip(rows, objects.packed_masks(), strict=True):
                row["segmentation"] = rle
        elif self.iou_type == "keypoints" and rows:
            assert objects.keypoints is not None
            for row, points in zip(rows, objects.keypoints, strict=True):
                row["keypoints"] = points.reshape(-1).tolist()
                row["num_keypoints"] = int((points[:, 2] > 0).sum())
        return rows


def _area(objects: Objects, iou_type: IouType) -> np.ndarray:
    """Return the objects' areas, (N,) square pixels."""
    if objects.area is not None:
        return objects.area
    if iou_type == "segm" and objects.rles:
        from faster_coco_eval import mask

        return np.asarray(mask.area(objects.packed_masks()), dtype=np.float64)
    if iou_type == "rotated" and objects.rotated is not None:
        return np.asarray(objects.rotated[:, 2] * objects.rotated[:, 3])
    if iou_type == "keypoints" and objects.keypoints is not None:
        sides = np.ptp(objects.keypoints[..., :2], axis=1)
        return np.asarray(sides[:, 0] * sides[:, 1])
    ltwh = objects.boxes_ltwh
    return np.asarray(ltwh[:, 2] * ltwh[:, 3])


def _mask_size(objects: Objects) -> dict[str, int]:
    """Say how large the image's masks are, where it has any."""
    if not objects.rles:
        return {}
    height, width = objects.rles[0]["size"]
    return {"height": int(height), "width": int(width)}
