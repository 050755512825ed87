# SPDX-License-Identifier: Apache-2.0
"""Poses: from the network's output to boxes and keypoints. Runs on NumPy arrays without torch."""

from __future__ import annotations

from typing import Any

from yolo.engine.predictor import Prepared
from yolo.engine.results import Results
from yolo.errors import ModelError
from yolo.tasks.detect.predict import DetectionPredictor


class PosePredictor(DetectionPredictor):
    """Finds boxes with keypoints; the backend says their `kpt_shape`."""

    def make_result(self, rows: Any, item: Prepared, outputs: Any, i: int) -> Results:
        """Return the Results of one image.

        Args:
            rows: (N, 6 + K*D) x1 y1 x2 y2 conf cls, then x y [visibility] by keypoint, canvas
                pixels, surest first.
            item: the image.
            outputs: what the backend returned.
            i: the image's row in `outputs`.

        Raises:
            ModelError: if the backend doesn't say how many keypoints there are, or is wrong.
        """
        shape, numbers = self.backend.kpt_shape, rows.shape[1] - 6
        if shape is None or shape[0] * shape[1] != numbers:
            raise ModelError(
                f"expected the model to say its kpt_shape, of {numbers} numbers in all, found "
                f"{shape}; export it again"
            )
        points = rows[:, 6:].reshape(len(rows), *shape)
        result = super().make_result(rows, item, outputs, i)
        result.update(keypoints=item.placement.points_to_original(points))
        return result
