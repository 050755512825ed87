# SPDX-License-Identifier: Apache-2.0
"""Training of instance segmenters."""

from __future__ import annotations

from yolo.nn.losses import Targets
from yolo.tasks.detect.train import DetectionTrainer
from yolo.tasks.segment.data import resize_masks


class SegmentationTrainer(DetectionTrainer):
    """Train an instance segmenter."""

    def resize_targets(self, targets: Targets, size: tuple[int, int]) -> Targets:
        """Scale boxes, ignored regions and masks to (h, w)."""
        resized = super().resize_targets(targets, size)
        ratio = self.args.mask_ratio
        shape = max(size[0] // ratio, 1), max(size[1] // ratio, 1)
        masks = resize_masks(targets.extras["masks"], shape, "nearest-exact")
        resized.extras["masks"] = masks
        return resized
