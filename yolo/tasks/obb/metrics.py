# SPDX-License-Identifier: Apache-2.0
"""Metrics of oriented boxes: COCO's, with the exact overlap of the rotated boxes."""

from __future__ import annotations

import numpy as np

from yolo.engine.metrics import PartMetrics
from yolo.tasks.detect.metrics import DetMetrics


class OBBMetrics(DetMetrics):
    """Box scores, confusion matrix, times and tables of a validated detector of oriented boxes."""

    def make_parts(self, sigmas: np.ndarray | None) -> tuple[PartMetrics, ...]:
        """Return the box part alone."""
        return (PartMetrics("B", "Box", "rotated"),)
