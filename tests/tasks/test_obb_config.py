# SPDX-License-Identifier: Apache-2.0
"""Options of oriented boxes."""

from __future__ import annotations

from yolo.cfg.schema import option_rows
from yolo.tasks.detect.config import DetectTrainConfig
from yolo.tasks.spec import TASKS


def test_only_the_score_floor_and_the_box_loss_differ_from_detection():
    spec = TASKS["obb"]
    assert [row.name for row in option_rows(spec.train_config, DetectTrainConfig)] == [
        "conf", "box_loss",
    ]  # fmt: skip
    assert spec.train_config().conf == spec.val_config().conf == 0.01
    assert spec.predict_config().conf == 0.25
    assert spec.train_config().box == 7.5
