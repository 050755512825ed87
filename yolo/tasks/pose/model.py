# SPDX-License-Identifier: Apache-2.0
"""The pose estimator: a network whose last row is a `Pose` head."""

from __future__ import annotations

from typing import Any

from yolo.tasks.detect.model import DetectionModel
from yolo.tasks.pose import head  # noqa: F401 - imported so that `Pose` is registered


class PoseModel(DetectionModel):
    """A YOLOv8 pose estimator."""

    default_cfg = "yolov8n-pose.yaml"

    @property
    def kpt_shape(self) -> tuple[int, int]:
        """Keypoints of an object, and the numbers of each: 2, or 3 with visibility."""
        found: Any = self.head
        return (found.kpt_shape[0], found.kpt_shape[1])
