# SPDX-License-Identifier: Apache-2.0
"""Metrics of poses: boxes by overlap, and keypoints by their similarity."""

from __future__ import annotations

import numpy as np

from yolo.engine.metrics import PartMetrics
from yolo.tasks.detect.metrics import DetMetrics


class PoseMetrics(DetMetrics):
    """Box and keypoint scores; `fitness` is the sum of both."""

    def make_parts(self, sigmas: np.ndarray | None) -> tuple[PartMetrics, ...]:
        """Return boxes and poses."""
        return (*super().make_parts(sigmas), PartMetrics("P", "Pose", "keypoints", sigmas))

    @property
    def pose(self) -> PartMetrics:
        """Scores of the keypoints."""
        return self.parts[1]
