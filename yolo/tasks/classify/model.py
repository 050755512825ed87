# SPDX-License-Identifier: Apache-2.0
"""The classifier: a network whose last row is a `Classify` head."""

from __future__ import annotations

from typing import Any

from torch import nn

from yolo.nn.model import BaseModel
from yolo.tasks.classify import head  # noqa: F401 - imported so that `Classify` is registered

BN_EPS, BN_MOMENTUM = 1e-5, 0.1
"""Torch's own defaults, with which the published classifiers were trained (golden numbers); the
networks of the box tasks have others."""


class ClassificationModel(BaseModel):
    """A YOLOv8 classifier; arguments as those of `BaseModel`."""

    default_cfg = "yolov8n-cls.yaml"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = BN_EPS, BN_MOMENTUM
