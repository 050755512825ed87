# SPDX-License-Identifier: Apache-2.0
"""The segmentation network: one whose last row is a `Segment` head."""

from __future__ import annotations

from yolo.tasks.detect.model import DetectionModel
from yolo.tasks.segment import head  # noqa: F401 - imported so that `Segment` is registered


class SegmentationModel(DetectionModel):
    """A YOLOv8 instance segmenter."""

    default_cfg = "yolov8n-seg.yaml"
