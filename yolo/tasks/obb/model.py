# SPDX-License-Identifier: Apache-2.0
"""The detector of oriented boxes: a network whose last row is an `OBB` head."""

from __future__ import annotations

from yolo.tasks.detect.model import DetectionModel
from yolo.tasks.obb import head  # noqa: F401 - imported so that `OBB` is registered


class OBBModel(DetectionModel):
    """A YOLOv8 detector of oriented boxes."""

    default_cfg = "yolov8n-obb.yaml"
