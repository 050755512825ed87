# SPDX-License-Identifier: Apache-2.0
"""Training of pose estimators."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from yolo.nn.losses import Targets
from yolo.tasks.detect.train import DetectionTrainer


class PoseTrainer(DetectionTrainer):
    """Train a pose estimator on data with keypoints."""

    def build_model(self) -> Any:
        """Build the network for the data's classes and keypoints."""
        self.network = {**self.network, "kpt_shape": list(self.data.keypoint_shape())}
        return super().build_model()

    def build_criterion(self) -> nn.Module:
        """Build the criterion with the gains of the options and the data's sigmas."""
        head, args = self.model.head, self.args
        criterion: nn.Module = self.spec.criterion(
            self.model.nc,
            self.model.stride,
            head.reg_max,
            kpt_shape=head.kpt_shape,
            sigmas=self.data.kpt_oks_sigmas,
            box=args.box,
            pose=args.pose,
            kobj=args.kobj,
            cls=args.cls,
            dfl=args.dfl,
        )
        return criterion.to(self.device)

    def resize_targets(self, targets: Targets, size: tuple[int, int]) -> Targets:
        """Scale boxes, ignored regions and keypoints to (h, w)."""
        (old_h, old_w), (h, w) = targets.size, size
        x, y, visibility = targets.extras["keypoints"].unbind(-1)
        resized = super().resize_targets(targets, size)
        points = torch.stack((x * (w / old_w), y * (h / old_h), visibility), -1)
        resized.extras = {**resized.extras, "keypoints": points}
        return resized
