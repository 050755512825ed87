# SPDX-License-Identifier: Apache-2.0
"""Object detection: axis-aligned boxes with classes."""

from __future__ import annotations

from yolo.tasks.spec import Outputs, TaskSpec, lazy_exports

TASK = TaskSpec(
    name="detect",
    heads=("yolo.tasks.detect.head:Detect", "yolo.tasks.detect.world:WorldDetect"),
    model="yolo.tasks.detect.model:DetectionModel",
    criterion="yolo.tasks.detect.loss:DetectionCriterion",
    label_format="yolo.data.labels:BoxLabels",
    trainer="yolo.tasks.detect.train:DetectionTrainer",
    validator="yolo.tasks.detect.val:DetectionValidator",
    predictor="yolo.tasks.detect.predict:DetectionPredictor",
    train_config="yolo.tasks.detect.config:DetectTrainConfig",
    val_config="yolo.cfg.schema:ValConfig",
    predict_config="yolo.cfg.schema:PredictConfig",
    outputs=Outputs(),
)

__getattr__ = lazy_exports(TASK)
