# SPDX-License-Identifier: Apache-2.0
"""Validation of detection: NMS, boxes back to the original image, label files and JSON rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from yolo.engine.coco_eval import Objects
from yolo.engine.draw import Marks
from yolo.engine.metrics import ImageRecord
from yolo.engine.nms import filter_rows, non_max_suppression
from yolo.engine.records import text_row
from yolo.engine.validator import Validator
from yolo.tasks.detect.metrics import DetMetrics

if TYPE_CHECKING:
    from yolo.data.loader import Batch

DRAWN_CONFIDENCE = 0.25


class DetectionValidator(Validator):
    """Scores a detector; box tasks refine it.

    Attributes:
        rotated: boxes have an angle, the last value of a prediction.
        text_digits: significant digits of the numbers in label files.
    """

    rotated = False
    text_digits = 6

    def make_metrics(self) -> DetMetrics:
        """Return empty box metrics."""
        return DetMetrics(self.names, self.save_dir)

    def postprocess(self, decoded: Tensor) -> list[np.ndarray]:
        """Suppress overlapping boxes of each class; a box may stand for several classes.

        Args:
            decoded: (B, 4 + C, A) xywh pixels of the canvas and scores; finished rows where a
                file suppresses boxes itself.

        Returns:
            B arrays (n, 6): xyxy pixels of the canvas, confidence, class.
        """
        args, single = self.args, self.args.single_cls
        classes = None if single else args.classes
        if self.finished:
            kept = filter_rows(decoded, conf=args.conf, max_det=args.max_det, classes=classes)
        else:
            kept = non_max_suppression(
                decoded,
                conf=args.conf,
                iou=args.iou,
                nc=len(self.names),
                classes=classes,
                agnostic=single or args.agnostic_nms,
                multi_label=True,
                max_det=args.max_det,
                rotated=self.rotated,
            )
        return [rows.cpu().numpy() for rows in kept]

    def to_objects(self, batch: Batch, i: int, output: np.ndarray) -> Objects:
        """Map boxes to the original image, in double precision, clipped to it."""
        rows = output.astype(np.float64)
        boxes = batch.placements[i].to_original(rows[:, :4])
        return Objects.found(rows[:, 5], boxes, rows[:, 4])

    def json_rows(self, record: ImageRecord) -> list[dict[str, Any]]:
        """Return COCO's result rows: the very numbers that were scored, unrounded.

        `category_id` is the original id where the data are COCO JSON, else class id + 1.
        """
        ids = self.index.category_ids or range(1, len(self.names) + 1)
        found = record.found
        assert found.scores is not None
        return [
            {
                "image_id": record.image_id,
                "file_name": Path(record.path).name,
                "category_id": int(ids[class_id]),
                "bbox": box,
                "score": score,
            }
            for class_id, box, score in zip(
                found.classes.tolist(),
                found.boxes_ltwh.tolist(),
                found.scores.tolist(),
                strict=True,
            )
        ]

    def text_rows(self, record: ImageRecord) -> list[str]:
        """Return `class`, the numbers of `text_shapes`, `[conf]`; an empty shape has no row."""
        found = record.found
        assert found.scores is not None
        rows = zip(found.classes, self.text_shapes(record), found.scores, strict=True)
        return [
            text_row(c, shape, *([score] if self.args.save_conf else []), digits=self.text_digits)
            for c, shape, score in rows
            if len(shape)
        ]

    def text_shapes(self, record: ImageRecord) -> Iterable[np.ndarray]:
        """Return what label files say of each object: `cx cy w h`, as shares of the image."""
        low, high = np.split(record.found.boxes, 2, axis=1)
        size = record.shape[::-1]
        return np.concatenate([(low + high) / 2 / size, (high - low) / size], axis=1)

    def output_marks(self, output: np.ndarray) -> Marks:
        """Return the boxes that are sure enough to be worth drawing."""
        sure = output[output[:, 4] > DRAWN_CONFIDENCE]
        return Marks(sure[:, :4], sure[:, 5].astype(np.int64), sure[:, 4])
