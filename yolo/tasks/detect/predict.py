# SPDX-License-Identifier: Apache-2.0
"""Detection: from the network's output to boxes. Runs on NumPy arrays with torch absent.

B images, A anchor points, N kept boxes, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from yolo.engine.nms import non_max_suppression
from yolo.engine.predictor import Predictor, Prepared, class_filter
from yolo.engine.results import Results


class DetectionPredictor(Predictor):
    """Finds boxes.

    Tasks whose rows carry more than a box (coefficients, keypoints) override `make_result`.

    Attributes:
        rotated: boxes have an angle, the last value of a prediction.
    """

    rotated = False

    def postprocess(self, outputs: Any, prepared: list[Prepared]) -> list[Results]:
        """Turn decoded output into results.

        Args:
            outputs: (B, 4 + C + extra, A) boxes_xywh in canvas pixels, scores 0..1, further values;
                or a tuple that starts with it.
            prepared: the B images.
        """
        predictions = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
        names = self.backend.names
        kept, places = non_max_suppression(
            predictions,
            conf=self.args.conf,
            iou=self.args.iou,
            nc=len(names),
            classes=class_filter(self.args.classes, names),
            agnostic=self.args.agnostic_nms,
            max_det=self.args.max_det,
            rotated=self.rotated,
            return_indices=True,
        )
        results = []
        for i, item in enumerate(prepared):
            result = self.make_result(on_cpu(kept[i]), item, outputs, i)
            if self.args.all_scores:
                scores = predictions[i, 4 : 4 + len(names)][:, places[i]]
                result.scores = on_cpu(scores.T)
            results.append(result)
        return results

    def make_result(self, rows: Any, item: Prepared, outputs: Any, i: int) -> Results:
        """Return the Results of one image.

        Args:
            rows: (N, 6 + extra) x1 y1 x2 y2 conf cls ..., canvas pixels, surest first.
            item: the image.
            outputs: what the backend returned.
            i: the image's row in `outputs`.
        """
        boxes = rows[:, :6]
        boxes[:, :4] = item.placement.to_original(boxes[:, :4])
        return Results(item.image, item.frame.path, self.backend.names, boxes=boxes)


def on_cpu(values: Any) -> Any:
    """Return a float32 copy on the CPU, of the same library."""
    if isinstance(values, np.ndarray):
        return np.array(values, dtype=np.float32, order="C")
    return values.detach().float().cpu().clone().contiguous()
