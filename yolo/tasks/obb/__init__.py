# SPDX-License-Identifier: Apache-2.0
"""Oriented boxes: rectangles that may be turned, with classes."""

from __future__ import annotations

from yolo.tasks.spec import Outputs, TaskSpec, lazy_exports

TASK = TaskSpec(
    name="obb",
    suffix="-obb",
    heads=("yolo.tasks.obb.head:OBB",),
    model="yolo.tasks.obb.model:OBBModel",
    criterion="yolo.tasks.obb.loss:OBBCriterion",
    label_format="yolo.tasks.obb.data:CornerLabels",
    extras="yolo.tasks.obb.data:rotated_targets",
    trainer="yolo.tasks.obb.train:OBBTrainer",
    validator="yolo.tasks.obb.val:OBBValidator",
    predictor="yolo.tasks.obb.predict:OBBPredictor",
    train_config="yolo.tasks.obb.config:OBBTrainConfig",
    val_config="yolo.tasks.obb.config:OBBValConfig",
    predict_config="yolo.cfg.schema:PredictConfig",
    outputs=Outputs(rotated=True, extra=("rad",)),
)

__getattr__ = lazy_exports(TASK)
