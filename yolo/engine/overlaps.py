# SPDX-License-Identifier: Apache-2.0
"""How much what was found overlaps what is labelled, as COCO has it: one matrix an image.

Shape letters: N objects of an image, K keypoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from yolo.nn.rotated import rotated_intersection

if TYPE_CHECKING:
    from yolo.engine.coco_eval import Objects

IouType = Literal["bbox", "segm", "keypoints", "rotated"]

COCO_SIGMAS = (
    np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
)
"""Keypoint spreads of the 17 body points (https://cocodataset.org/#keypoints-eval)."""


def overlaps(
    found: Objects,
    truth: Objects,
    iou_type: IouType = "bbox",
    sigmas: np.ndarray | None = None,
) -> np.ndarray:
    """Compare every detection of an image with every label, as COCO does.

    Returns:
        (N found, N truth) float64 in 0 .. 1: intersection over union, or keypoint similarity.
        Against a crowd region it is the intersection over the detection's own area.
    """
    if not len(found) or not len(truth):
        return np.zeros((len(found), len(truth)))
    if iou_type == "keypoints":
        return keypoint_similarity(found, truth, COCO_SIGMAS if sigmas is None else sigmas)
    if iou_type == "rotated":
        return rotated_overlaps(found, truth)
    from faster_coco_eval import mask

    crowd = truth.crowd.astype(int).tolist()
    if iou_type == "segm":
        return np.asarray(mask.iou(found.packed_masks(), truth.packed_masks(), crowd), np.float64)
    return np.asarray(mask.iou(found.boxes_ltwh, truth.boxes_ltwh, crowd), dtype=np.float64)


def rotated_overlaps(found: Objects, truth: Objects) -> np.ndarray:
    """Return the exact overlaps of rotated boxes, (N found, N truth), as `overlaps` does."""
    if found.rotated is None or truth.rotated is None:
        raise ValueError("expected rotated boxes in detections and labels, got none")
    shared = rotated_intersection(found.rotated, truth.rotated)
    own, other = (boxes[:, 2:4].prod(axis=1) for boxes in (found.rotated, truth.rotated))
    union = np.where(truth.crowd, own[:, None], own[:, None] + other - shared)
    return np.asarray(shared / np.maximum(union, np.finfo(np.float64).tiny))


def keypoint_similarity(found: Objects, truth: Objects, sigmas: np.ndarray) -> np.ndarray:
    """Return object keypoint similarity, (N found, N truth).

    For a label without visible points, distances count outside its doubled box, as in COCO.
    Source: https://cocodataset.org/#keypoints-eval
    """
    if found.keypoints is None or truth.keypoints is None:
        raise ValueError(
            "expected keypoints in detections and labels, got none; "
            "compare boxes with iou_type='bbox'"
        )
    points, labels = found.keypoints[:, None, :, :2], truth.keypoints[None, :, :, :2]
    visible = np.asarray(truth.keypoints[None, :, :, 2] > 0)
    ltwh = truth.boxes_ltwh
    low = (ltwh[:, :2] - ltwh[:, 2:])[None, :, None]
    high = (ltwh[:, :2] + 2 * ltwh[:, 2:])[None, :, None]
    outside = np.maximum(low - points, 0) + np.maximum(points - high, 0)
    none_visible = np.asarray(~visible.any(axis=-1, keepdims=True))
    offset = np.where(none_visible[..., None], outside, points - labels)
    area = ltwh[:, 2] * ltwh[:, 3] if truth.area is None else truth.area
    spread = (2 * np.asarray(sigmas)) ** 2 * (area[None, :, None] + np.spacing(1)) * 2
    likeness = np.exp(-(offset**2).sum(axis=-1) / spread)
    counted = visible | none_visible
    return np.asarray((likeness * counted).sum(axis=-1) / counted.sum(axis=-1))
