# SPDX-License-Identifier: Apache-2.0
"""Oriented boxes: from the network's output to rotated boxes. Runs without torch."""

from __future__ import annotations

from typing import Any

from yolo.data.letterbox import Placement
from yolo.engine.predictor import Prepared
from yolo.engine.results import Results
from yolo.nn.rotated import scale_boxes
from yolo.tasks.detect.predict import DetectionPredictor

XYWHR = [0, 1, 2, 3, 6]
"""Columns of the box in a row of the suppression, cx cy w h conf cls angle."""


class OBBPredictor(DetectionPredictor):
    """Finds oriented boxes."""

    rotated = True

    def make_result(self, rows: Any, item: Prepared, outputs: Any, i: int) -> Results:
        """Return the Results of one image, of rows (N, 7): cx cy w h conf cls angle."""
        found = rows[:, [*XYWHR, 4, 5]]
        found[:, :5] = to_original(item.placement, found[:, :5])
        return Results(item.image, item.frame.path, self.backend.names, obb=found)


def to_original(placement: Placement, boxes: Any) -> Any:
    """Map boxes_xywhr (N, 5) from the canvas back to the image; they may reach over its edge."""
    mapped = scale_boxes(boxes, 1 / placement.gain_x, 1 / placement.gain_y)
    mapped[:, :2] = placement.points_to_original(boxes[:, :2], clip=False)
    return mapped
