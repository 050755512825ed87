# SPDX-License-Identifier: Apache-2.0
"""Instance segmentation: boxes with classes and masks."""

from __future__ import annotations

from yolo.tasks.spec import Outputs, TaskSpec, lazy_exports

TASK = TaskSpec(
    name="segment",
    suffix="-seg",
    heads=("yolo.tasks.segment.head:Segment",),
    model="yolo.tasks.segment.model:SegmentationModel",
    criterion="yolo.tasks.segment.loss:SegmentationCriterion",
    label_format="yolo.tasks.segment.data:PolygonLabels",
    extras="yolo.tasks.segment.data:mask_targets",
    trainer="yolo.tasks.segment.train:SegmentationTrainer",
    validator="yolo.tasks.segment.val:SegmentationValidator",
    predictor="yolo.tasks.segment.predict:SegmentationPredictor",
    train_config="yolo.tasks.segment.config:SegmentTrainConfig",
    val_config="yolo.tasks.segment.config:SegmentValConfig",
    predict_config="yolo.tasks.segment.config:SegmentPredictConfig",
    outputs=Outputs(
        extra=("value",),
        names=("output0", "output1"),
        axes=({2: "anchors"}, {2: "mask_height", 3: "mask_width"}),
    ),
)

__getattr__ = lazy_exports(TASK)
