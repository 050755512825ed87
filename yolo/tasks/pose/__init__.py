# SPDX-License-Identifier: Apache-2.0
"""Pose estimation: boxes with keypoints."""

from __future__ import annotations

from yolo.tasks.spec import Outputs, TaskSpec, lazy_exports

TASK = TaskSpec(
    name="pose",
    suffix="-pose",
    heads=("yolo.tasks.pose.head:Pose",),
    model="yolo.tasks.pose.model:PoseModel",
    criterion="yolo.tasks.pose.loss:PoseCriterion",
    label_format="yolo.tasks.pose.data:KeypointLabels",
    extras="yolo.tasks.pose.data:keypoint_targets",
    trainer="yolo.tasks.pose.train:PoseTrainer",
    validator="yolo.tasks.pose.val:PoseValidator",
    predictor="yolo.tasks.pose.predict:PosePredictor",
    train_config="yolo.tasks.pose.config:PoseTrainConfig",
    val_config="yolo.cfg.schema:ValConfig",
    predict_config="yolo.cfg.schema:PredictConfig",
    outputs=Outputs(extra=("px", "px", "score")),
)

__getattr__ = lazy_exports(TASK)
