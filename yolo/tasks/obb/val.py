# SPDX-License-Identifier: Apache-2.0
"""Validation of oriented boxes: to the original image, label files, JSON rows and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from yolo.engine.coco_eval import Objects
from yolo.engine.draw import Marks
from yolo.engine.metrics import ImageRecord
from yolo.nn.rotated import xywhr_to_corners
from yolo.tasks.detect.val import DRAWN_CONFIDENCE, DetectionValidator
from yolo.tasks.obb.metrics import OBBMetrics
from yolo.tasks.obb.predict import XYWHR, to_original

if TYPE_CHECKING:
    from yolo.data.loader import Batch


class OBBValidator(DetectionValidator):
    """Scores a detector of oriented boxes. Outputs are (n, 7): cx cy w h conf cls angle."""

    rotated = True
    text_digits = 9  # enough for 1e-4 px in any picture

    def make_metrics(self) -> OBBMetrics:
        """Return empty metrics of rotated boxes."""
        return OBBMetrics(self.names, self.save_dir)

    def to_objects(self, batch: Batch, i: int, output: np.ndarray) -> Objects:
        """Map boxes to the original image, in double precision; they may reach over its edge."""
        rows = output.astype(np.float64)
        rotated = to_original(batch.placements[i], rows[:, XYWHR])
        hulls = _hulls(xywhr_to_corners(rotated))
        return Objects.found(rows[:, 5], hulls, rows[:, 4], rotated=rotated)

    def json_rows(self, record: ImageRecord) -> list[dict[str, Any]]:
        """Return result rows with `rbox` [cx, cy, w, h, r] and `poly` [x1, y1 .. x4, y4]."""
        rotated = record.found.rotated
        assert rotated is not None
        corners = xywhr_to_corners(rotated).reshape(-1, 8)
        rows = super().json_rows(record)
        for row, rbox, poly in zip(rows, rotated.tolist(), corners.tolist(), strict=True):
            del row["bbox"]
            row |= {"rbox": rbox, "poly": poly}
        return rows

    def text_shapes(self, record: ImageRecord) -> np.ndarray:
        """Return `x1 y1 .. x4 y4`."""
        assert record.found.rotated is not None
        return xywhr_to_corners(record.found.rotated) / record.shape[::-1]

    def label_marks(self, batch: Batch, i: int) -> Marks:
        """Return the boxes that the model was to find."""
        targets = batch.targets
        real = targets.mask[i].cpu().numpy()
        rotated = targets.extras["rotated"][i].cpu().numpy()[real]
        return _marks(rotated, targets.classes[i].cpu().numpy()[real])

    def output_marks(self, output: np.ndarray) -> Marks:
        """Return the boxes that are sure enough to be worth drawing."""
        sure = output[output[:, 4] > DRAWN_CONFIDENCE]
        return _marks(sure[:, XYWHR], sure[:, 5].astype(np.int64), sure[:, 4])


def _hulls(corners: np.ndarray) -> np.ndarray:
    """Return the upright boxes_xyxy (N, 4) around corners (N, 4, 2)."""
    return np.concatenate([corners.min(1), corners.max(1)], axis=1)


def _marks(rotated: np.ndarray, classes: np.ndarray, conf: np.ndarray | None = None) -> Marks:
    corners = xywhr_to_corners(rotated)
    return Marks(_hulls(corners), classes, conf, corners=corners)
