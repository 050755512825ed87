# SPDX-License-Identifier: Apache-2.0
"""Metrics of detection: one part, the boxes."""

from __future__ import annotations

import numpy as np

from yolo.engine.metrics import PartMetrics, TaskMetrics


class DetMetrics(TaskMetrics):
    """Box scores, confusion matrix, times and tables of a validated detector."""

    def make_parts(self, sigmas: np.ndarray | None) -> tuple[PartMetrics, ...]:
        """Return the box part alone."""
        return (PartMetrics("B", "Box", "bbox"),)

    @property
    def box(self) -> PartMetrics:
        """Scores of the boxes."""
        return self.parts[0]
