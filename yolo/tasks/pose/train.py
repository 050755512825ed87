# SPDX-License-Identifier: Apache-2.0
"""Training of pose estimators."""

from __future__ import annotations

from typing import Any

import torch

from yolo.nn.losses import Targets
from yolo.tasks.detect.train import DetectionTrainer


class PoseTrainer(DetectionTrainer):
    """Train a pose estimator on data with keypoints."""

    def build_model(self) -> Any:
        """Build the network for the data's classes and keypoints."""
        self.network = {**self.network, "kpt_shape": list(self.data.keypoint_shape())}
        return super().build_model()

    def criterion_options(self) -> dict[str, Any]:
        """Return the gains of the options, and the data's keypoints and sigmas."""
        return {
            **super().criterion_options(),
            "pose": self.args.pose,
            "kobj": self.args.kobj,
            "kpt_shape": self.model.head.kpt_shape,
            "sigmas": self.data.kpt_oks_sigmas,
        }

    def resize_targets(self, targets: Targets, size: tuple[int, int]) -> Targets:
        """Scale boxes, ignored regions and keypoints to (h, w)."""
        (old_h, old_w), (h, w) = targets.size, size
        x, y, visibility = targets.extras["keypoints"].unbind(-1)
        resized = super().resize_targets(targets, size)
        points = torch.stack((x * (w / old_w), y * (h / old_h), visibility), -1)
        resized.extras["keypoints"] = points
        return resized
