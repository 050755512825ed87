# SPDX-License-Identifier: Apache-2.0
"""Options whose default differs for oriented boxes."""

from __future__ import annotations

from yolo.cfg.schema import ValConfig, fraction, option
from yolo.tasks.detect.config import DetectTrainConfig, Part

_FLOOR = 0.01  # ten times detection's: comparing rotated boxes costs more, and these score nothing


class OBBTrainConfig(DetectTrainConfig):
    """Training options of oriented boxes."""

    conf: float = fraction(_FLOOR, "score floor of the validation")
    box_loss: Part = option("prob_iou", "box loss: a name, or {name: ..., and its options}")


class OBBValConfig(ValConfig):
    """Validation options of oriented boxes."""

    conf: float = fraction(_FLOOR, "score floor")
