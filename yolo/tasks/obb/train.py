# SPDX-License-Identifier: Apache-2.0
"""Training of oriented boxes: detection's, with one more target to resize."""

from __future__ import annotations

from yolo.nn.losses import Targets
from yolo.nn.rotated import scale_boxes
from yolo.tasks.detect.train import DetectionTrainer


class OBBTrainer(DetectionTrainer):
    """Train a detector of oriented boxes."""

    def resize_targets(self, targets: Targets, size: tuple[int, int]) -> Targets:
        """Scale a batch's targets to (h, w), the rotated boxes too."""
        (old_h, old_w), (h, w) = targets.size, size
        resized = super().resize_targets(targets, size)
        rotated = scale_boxes(targets.extras["rotated"], w / old_w, h / old_h)
        resized.extras["rotated"] = rotated
        return resized
