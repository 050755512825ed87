# SPDX-License-Identifier: Apache-2.0
"""The options that poses add: the gains of the two keypoint terms."""

from __future__ import annotations

from yolo.cfg.schema import option
from yolo.tasks.detect.config import DetectTrainConfig


class PoseTrainConfig(DetectTrainConfig):
    """Training options of pose estimation."""

    pose: float = option(12.0, "gain of the keypoint position loss", ge=0)
    kobj: float = option(1.0, "gain of the keypoint visibility loss", ge=0)
