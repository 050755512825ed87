# SPDX-License-Identifier: Apache-2.0
"""The options that masks add; the gain of the mask loss is that of the boxes, `box`."""

from __future__ import annotations

from yolo.cfg.schema import Config, PredictConfig, ValConfig, option
from yolo.tasks.detect.config import DetectTrainConfig


class _MaskOptions(Config):
    """How masks to learn are drawn; the validation's loss and pictures need them alike."""

    overlap_mask: bool = option(True, "one map an image, small objects on top; or a mask an object")
    mask_ratio: int = option(4, "pixels of the image per pixel of a mask to learn", ge=1)


class SegmentTrainConfig(DetectTrainConfig, _MaskOptions):
    """Training options of instance segmentation."""


class SegmentValConfig(ValConfig, _MaskOptions):
    """Validation options of instance segmentation."""


class SegmentPredictConfig(PredictConfig):
    """Prediction options of instance segmentation."""

    retina_masks: bool = option(False, "masks at the image's own size; else at the network's")
