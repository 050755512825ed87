# SPDX-License-Identifier: Apache-2.0
"""The segmentation network: one whose last row is a `Segment` head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolo.tasks.detect.model import DetectionModel
from yolo.tasks.segment import head  # noqa: F401 - imported so that `Segment` is registered


class SegmentationModel(DetectionModel):
    """A YOLOv8 instance segmenter; arguments as in `DetectionModel`."""

    def __init__(
        self,
        cfg: str | Path | Mapping[str, Any] = "yolov8n-seg.yaml",
        ch: int | None = None,
        nc: int | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(cfg, ch, nc, verbose)
