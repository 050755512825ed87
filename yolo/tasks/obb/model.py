# SPDX-License-Identifier: Apache-2.0
"""The detector of oriented boxes: a network whose last row is an `OBB` head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolo.tasks.detect.model import DetectionModel
from yolo.tasks.obb import head  # noqa: F401 - imported so that `OBB` is registered


class OBBModel(DetectionModel):
    """A YOLOv8 detector of oriented boxes; arguments as those of `DetectionModel`."""

    def __init__(
        self,
        cfg: str | Path | Mapping[str, Any] = "yolov8n-obb.yaml",
        ch: int | None = None,
        nc: int | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(cfg, ch, nc, verbose)
