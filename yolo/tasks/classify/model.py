# SPDX-License-Identifier: Apache-2.0
"""The classifier: a network whose last row is a `Classify` head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from yolo.nn.model import BaseModel
from yolo.tasks.classify import head  # noqa: F401 - imported so that `Classify` is registered

BN_EPS, BN_MOMENTUM = 1e-5, 0.1
"""Torch's own defaults, with which the published classifiers were trained (golden numbers); the
networks of the box tasks have others."""


class ClassificationModel(BaseModel):
    """A YOLOv8 classifier.

    Args:
        cfg: a network's name or path, or its description.
        ch: channels of the image; None takes the description's `ch`, else 3.
        nc: number of classes; None takes the description's.
        verbose: log the table of layers.
    """

    def __init__(
        self,
        cfg: str | Path | Mapping[str, Any] = "yolov8n-cls.yaml",
        ch: int | None = None,
        nc: int | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(cfg, ch, nc, verbose)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = BN_EPS, BN_MOMENTUM
