# SPDX-License-Identifier: Apache-2.0
"""The detector: a network whose last row is a `Detect` head."""

from __future__ import annotations

from yolo.nn.model import BaseModel
from yolo.tasks.detect import head  # noqa: F401 - imported so that `Detect` is registered


class DetectionModel(BaseModel):
    """A YOLOv8 detector."""
