# SPDX-License-Identifier: Apache-2.0
"""Validation of instance segmentation: masks at the size of the original image, as COCO has them.

Labels become run lengths by COCO's own rule, detections as soon as their masks are made; a mask
then costs some hundred bytes, so that those of a whole set fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from yolo.data.images import cv2
from yolo.data.masks import decode_rle, encode_rle, joined_ring, mask_rings, polygon_rle
from yolo.engine.coco_eval import Objects
from yolo.tasks.detect.val import DRAWN_CONFIDENCE, DetectionValidator
from yolo.tasks.segment.masks import Grid, instance_masks
from yolo.tasks.segment.metrics import SegmentMetrics

if TYPE_CHECKING:
    from yolo.data.loader import Batch
    from yolo.engine.draw import Marks
    from yolo.engine.metrics import ImageRecord


@dataclass(frozen=True, slots=True)
class Segments:
    """What was found in one image, on its canvas.

    Attributes:
        rows: (n, 6 + K) boxes_xyxy in pixels, confidence, class, mask coefficients.
        proto: (K, h, w) prototypes.
    """

    rows: np.ndarray
    proto: np.ndarray


class SegmentationValidator(DetectionValidator):
    """Scores an instance segmenter."""

    def make_metrics(self) -> SegmentMetrics:
        """Return empty metrics of boxes and masks."""
        return SegmentMetrics(self.names, self.save_dir)

    def postprocess(self, decoded: Any) -> list[Any]:
        """Suppress overlapping boxes; their masks are made later, one by one.

        Args:
            decoded: (B, 4 + C + K, A) predictions, and (B, K, h, w) prototypes.

        Returns:
            B Segments.
        """
        predictions, prototypes = decoded
        rows = super().postprocess(predictions)
        return [Segments(*pair) for pair in zip(rows, prototypes.cpu().numpy(), strict=True)]

    def to_objects(self, batch: Batch, i: int, output: Any) -> Objects:
        """Map boxes and masks to the original image."""
        rows, place = output.rows, batch.placements[i]
        boxes = place.to_original(rows[:, :4].astype(np.float64))
        canvas = batch.images.shape[1], batch.images.shape[2]
        grid = Grid.of_original(place, canvas, output.proto.shape)
        masks = instance_masks(rows[:, 6:], output.proto, boxes, grid)
        rles = [encode_rle(mask, top, left, grid.size) for top, left, mask in masks]
        return Objects.found(rows[:, 5], boxes, rows[:, 4], rles=rles)

    def label_objects(self, index: int) -> Objects:
        """Return the labels of one image with their masks."""
        instances, shape = self.index.instances(index), self.index.shape(index)
        rles = [polygon_rle(polygon, shape) for polygon in instances.polygons or []]
        return Objects.labelled(instances, rles)

    def json_rows(self, record: ImageRecord) -> list[dict[str, Any]]:
        """Return COCO's result rows with masks as packed run lengths."""
        rows = zip(super().json_rows(record), record.found.rles or [], strict=True)
        return [
            {**row, "segmentation": {**rle, "counts": rle["counts"].decode("ascii")}}
            for row, rle in rows
        ]

    def text_shapes(self, record: ImageRecord) -> Iterator[np.ndarray]:
        """Yield `x1 y1 ... xn yn`: the border of the mask's pixels, nothing for an empty mask.

        Parts and holes are joined over bridges.
        """
        for rle in record.found.rles or []:
            rings = mask_rings(decode_rle(rle))
            yield joined_ring(rings) / record.shape[::-1] if rings else np.zeros(0)

    def label_marks(self, batch: Batch, i: int) -> Marks:
        """Return the boxes and masks that the model was to find."""
        masks = batch.targets.extras["masks"][i].cpu().numpy()
        canvas = batch.images.shape[1], batch.images.shape[2]

        def mask(row: int) -> np.ndarray:
            return _smooth(masks == row + 1 if masks.ndim == 2 else masks[row] > 0, canvas)

        return replace(super().label_marks(batch, i), mask=mask)

    def output_marks(self, output: Any) -> Marks:
        """Return the objects that are sure enough to be worth drawing."""
        sure = output.rows[output.rows[:, 4] > DRAWN_CONFIDENCE]
        grid = Grid.of_canvas(self.canvas, output.proto.shape)

        def mask(row: int) -> np.ndarray:
            one = sure[row : row + 1]
            ((top, left, window),) = instance_masks(one[:, 6:], output.proto, one[:, :4], grid)
            whole = np.zeros(grid.size, dtype=bool)
            whole[top : top + window.shape[0], left : left + window.shape[1]] = window
            return whole

        return replace(super().output_marks(output.rows), mask=mask)


def _smooth(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarge a small mask to (h, w) with smooth borders."""
    large = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(large > 0.5)
