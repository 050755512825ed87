# SPDX-License-Identifier: Apache-2.0
"""Detection: from the network's output to boxes. Runs on NumPy arrays with torch absent.

B images, A anchor points, N kept boxes, C classes.
"""

from __future__ import annotations

from typing import Any

from yolo.engine.nms import filter_rows, non_max_suppression
from yolo.engine.predictor import Predictor, Prepared, class_filter
from yolo.engine.results import Results
from yolo.engine.tensors import on_cpu
from yolo.errors import ConfigError


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
                or (B, n, 6 + extra) rows after suppression; or a tuple that starts with it.
            prepared: the B images.
        """
        predictions = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
        kept, places = self.suppress(predictions)
        results = []
        for i, item in enumerate(prepared):
            result = self.make_result(on_cpu(kept[i]), item, outputs, i)
            if self.args.all_scores:
                scores = predictions[i, 4 : 4 + len(self.backend.names)][:, places[i]]
                result.scores = on_cpu(scores.T)
            results.append(result)
        return results

    def suppress(self, predictions: Any) -> tuple[list[Any], Any]:
        """Return the kept rows of each image, and the anchors that they came from.

        Raises:
            ConfigError: if a file that suppresses boxes itself is asked for what it left out.
        """
        args, names = self.args, self.backend.names
        classes = class_filter(args.classes, names)
        if not getattr(self.backend, "nms", False):
            found: tuple[list[Any], Any] = non_max_suppression(
                predictions,
                conf=args.conf,
                iou=args.iou,
                nc=len(names),
                classes=classes,
                agnostic=args.agnostic_nms,
                max_det=args.max_det,
                rotated=self.rotated,
                return_indices=True,
            )
            return found
        if args.all_scores:
            raise ConfigError("all_scores=True: a file exported with nms=True has the best alone")
        rows = filter_rows(predictions, conf=args.conf, max_det=args.max_det, classes=classes)
        return rows, None

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
