# SPDX-License-Identifier: Apache-2.0
"""Segmentation: from the network's output to masks. Runs on NumPy arrays with torch absent."""

from __future__ import annotations

from typing import Any

import numpy as np

from yolo.engine.containers import Masks
from yolo.engine.masks import PackedMasks
from yolo.engine.predictor import Prepared
from yolo.engine.results import Results
from yolo.engine.tensors import to_numpy
from yolo.tasks.detect.predict import DetectionPredictor
from yolo.tasks.segment.config import SegmentPredictConfig
from yolo.tasks.segment.masks import Grid, instance_masks


class SegmentationPredictor(DetectionPredictor):
    """Finds boxes with masks, at the size of the canvas or, with `retina_masks`, of the image."""

    args: SegmentPredictConfig

    def make_result(self, rows: Any, item: Prepared, outputs: Any, i: int) -> Results:
        """Return the Results of one image.

        Args:
            rows: (N, 6 + K) x1 y1 x2 y2 conf cls and mask coefficients, canvas pixels, surest
                first.
            item: the image.
            outputs: predictions and prototypes (B, K, h, w).
            i: the image's row in `outputs`.
        """
        numbers, proto = np.array(to_numpy(rows)), to_numpy(outputs[1][i])
        result = super().make_result(rows, item, outputs, i)
        if not len(numbers):
            return result
        canvas, placement = self.inside(item)
        if self.args.retina_masks:
            grid = Grid.of_original(placement, canvas, proto.shape)
            boxes = item.placement.to_original(numbers[:, :4])
        else:
            grid, boxes = Grid.of_canvas(canvas, proto.shape), numbers[:, :4]
            if placement is not item.placement:  # rows are in the image's pixels
                gain = np.array([placement.gain_x, placement.gain_y] * 2, dtype=np.float32)
                boxes = boxes * gain + np.array([placement.pad_left, placement.pad_top] * 2)
        masks = instance_masks(numbers[:, 6:], proto, boxes, grid)
        packed = PackedMasks.pack(masks, grid.size, tensors=not isinstance(rows, np.ndarray))
        result.update(masks=Masks(packed, result.orig_shape))
        return result
