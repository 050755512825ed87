# SPDX-License-Identifier: Apache-2.0
"""The detector: a network whose last row is a `Detect` head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolo.nn.model import BaseModel
from yolo.tasks.detect import head  # noqa: F401 - imported so that `Detect` is registered


class DetectionModel(BaseModel):
    """A YOLOv8 detector.

    Args:
        cfg: a network's name or path, or its description.
        ch: channels of the image; None takes the description's `ch`, else 3.
        nc: number of classes; None takes the description's.
        verbose: log the table of layers.
    """

    def __init__(
        self,
        cfg: str | Path | Mapping[str, Any] = "yolov8n.yaml",
        ch: int | None = None,
        nc: int | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(cfg, ch, nc, verbose)
