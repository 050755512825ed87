# SPDX-License-Identifier: Apache-2.0
"""The detector's own options: the gains of its three loss terms."""

from __future__ import annotations

from yolo.cfg.schema import TrainConfig, option


class DetectTrainConfig(TrainConfig):
    """Training options of the box tasks, which inherit them."""

    box: float = option(7.5, "gain of the box loss", ge=0)
    cls: float = option(0.5, "gain of the class loss", ge=0)
    dfl: float = option(1.5, "gain of the distribution focal loss", ge=0)
