# SPDX-License-Identifier: Apache-2.0
"""Metrics of instance segmentation: boxes and masks."""

from __future__ import annotations

import numpy as np

from yolo.engine.metrics import PartMetrics
from yolo.tasks.detect.metrics import DetMetrics


class SegmentMetrics(DetMetrics):
    """Scores of boxes and of masks; `fitness` is the sum of both."""

    def make_parts(self, sigmas: np.ndarray | None) -> tuple[PartMetrics, ...]:
        """Return the box part and the mask part."""
        return (*super().make_parts(sigmas), PartMetrics("M", "Mask", "segm"))

    @property
    def seg(self) -> PartMetrics:
        """Scores of the masks."""
        return self.parts[1]
