# SPDX-License-Identifier: Apache-2.0
"""Classification: from the network's output to probabilities. Runs with torch absent.

B images, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from yolo.data.crop import center_crop
from yolo.data.letterbox import Placement
from yolo.engine.predictor import Predictor, Prepared
from yolo.engine.results import Results
from yolo.engine.tensors import on_cpu


class ClassificationPredictor(Predictor):
    """Finds the class of each image."""

    def place(self, image: np.ndarray) -> tuple[np.ndarray, Placement]:
        """Resize an image (H, W, C) so that it covers the canvas, and cut out the centre."""
        return center_crop(image, self._size)

    def postprocess(self, outputs: Any, prepared: list[Prepared]) -> list[Results]:
        """Turn decoded output into results.

        Args:
            outputs: (B, C) probabilities, or a tuple that starts with them.
            prepared: the B images.
        """
        rows = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
        names = self.backend.names
        return [
            Results(item.image, item.frame.path, names, probs=on_cpu(row))
            for item, row in zip(prepared, rows, strict=True)
        ]
