# SPDX-License-Identifier: Apache-2.0
"""Image classification: one class for the whole image."""

from __future__ import annotations

from yolo.tasks.spec import Outputs, TaskSpec, lazy_exports

TASK = TaskSpec(
    name="classify",
    suffix="-cls",
    heads=("yolo.tasks.classify.head:Classify",),
    model="yolo.tasks.classify.model:ClassificationModel",
    criterion="yolo.tasks.classify.loss:ClassificationCriterion",
    label_format="yolo.data.class_folders:ImageClasses",
    trainer="yolo.tasks.classify.train:ClassificationTrainer",
    validator="yolo.tasks.classify.val:ClassificationValidator",
    predictor="yolo.tasks.classify.predict:ClassificationPredictor",
    train_config="yolo.tasks.classify.config:ClassifyTrainConfig",
    val_config="yolo.cfg.schema:ValConfig",
    predict_config="yolo.cfg.schema:PredictConfig",
    outputs=Outputs(boxes=False, fit="crop", axes=({},)),
    defaults={"imgsz": 224},
)

__getattr__ = lazy_exports(TASK)
