# SPDX-License-Identifier: Apache-2.0
"""Validation of poses: keypoints back to the original image, compared by their similarity."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from yolo.engine.coco_eval import Objects
from yolo.errors import DataError
from yolo.tasks.detect.val import DRAWN_CONFIDENCE, DetectionValidator
from yolo.tasks.pose.data import oks_sigmas
from yolo.tasks.pose.metrics import PoseMetrics

if TYPE_CHECKING:
    from yolo.data.loader import Batch
    from yolo.engine.draw import Marks
    from yolo.engine.metrics import ImageRecord


class PoseValidator(DetectionValidator):
    """Scores a pose estimator.

    Attributes:
        kpt_shape: (K, D) of the model, once it runs.
        sigmas: (K,) spreads by which keypoints are compared: the data's own, or the usual ones.
    """

    kpt_shape: tuple[int, int] = (17, 3)
    sigmas: np.ndarray | None = None

    def run(self, model: Any, loader: Any, *args: Any, **options: Any) -> Any:
        """Validate as `Validator.run` does.

        Raises:
            DataError: if the labels have another number of keypoints than the model.
        """
        self.kpt_shape, found = model.kpt_shape, loader.index.kpt_shape
        count, numbers = self.kpt_shape
        if found is None or found[0] != count:
            raise DataError(
                f"the model has {count} keypoints, the data {found[0] if found else 'none'} (the "
                "key kpt_shape of the dataset's YAML); validate on data like those of its training"
            )
        self.sigmas = oks_sigmas(count, numbers, loader.index.kpt_oks_sigmas)
        return super().run(model, loader, *args, **options)

    def make_metrics(self) -> PoseMetrics:
        """Return empty metrics of boxes and keypoints."""
        return PoseMetrics(self.names, self.save_dir, self.sigmas)

    def to_objects(self, batch: Batch, i: int, output: np.ndarray) -> Objects:
        """Map boxes and keypoints to the original image, in double precision, clipped to it.

        The box gives a detection's area, as in the results that pycocotools reads from
        predictions.json.
        """
        rows, place = output.astype(np.float64), batch.placements[i]
        boxes = place.to_original(rows[:, :4])
        points = place.points_to_original(self.keypoints(rows))
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        return Objects.found(rows[:, 5], boxes, rows[:, 4], area=area, keypoints=points)

    def keypoints(self, rows: np.ndarray) -> np.ndarray:
        """Return the keypoints (n, K, 3) of finished rows; visibility 1 where none is predicted."""
        points = rows[:, 6:].reshape(len(rows), *self.kpt_shape)
        missing = np.ones((*points.shape[:2], 3 - points.shape[2]), dtype=points.dtype)
        return np.concatenate([points, missing], axis=2)

    def json_rows(self, record: ImageRecord) -> list[dict[str, Any]]:
        """Return COCO's result rows with keypoints: x, y in pixels, visibility 0..1."""
        assert record.found.keypoints is not None
        flat = record.found.keypoints.reshape(-1, 3 * self.kpt_shape[0]).tolist()
        rows = zip(super().json_rows(record), flat, strict=True)
        return [{**row, "keypoints": points} for row, points in rows]

    def text_shapes(self, record: ImageRecord) -> np.ndarray:
        """Return `cx cy w h`, then `x y [v]` of each keypoint."""
        assert record.found.keypoints is not None
        shares = record.found.keypoints / [record.shape[1], record.shape[0], 1]
        points = shares[..., : self.kpt_shape[1]].reshape(len(shares), -1)
        return np.concatenate([super().text_shapes(record), points], axis=1)

    def label_marks(self, batch: Batch, i: int) -> Marks:
        """Return the boxes and keypoints that the model was to find."""
        real = batch.targets.mask[i].cpu().numpy()
        points = batch.targets.extras["keypoints"][i].cpu().numpy()[real]
        return replace(super().label_marks(batch, i), keypoints=points)

    def output_marks(self, output: np.ndarray) -> Marks:
        """Return the poses that are sure enough to be worth drawing."""
        sure = output[output[:, 4] > DRAWN_CONFIDENCE]
        return replace(super().output_marks(output), keypoints=self.keypoints(sure))
