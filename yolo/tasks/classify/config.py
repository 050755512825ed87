# SPDX-License-Identifier: Apache-2.0
"""The classifier's own options: how it is regularised, and how classes of unequal size count."""

from __future__ import annotations

from typing import Literal

from yolo.cfg.schema import TrainConfig, fraction, option


class ClassifyTrainConfig(TrainConfig):
    """Training options of classification."""

    auto_augment: Literal["randaugment", "autoaugment", "augmix"] | None = option(
        "randaugment", "policy of torchvision; None: jitter by hsv_h, hsv_s, hsv_v"
    )
    erasing: float = fraction(0.4, "probability of an erased rectangle")
    dropout: float = option(0.0, "share of features dropped before the last layer", ge=0, lt=1)
    label_smoothing: float = option(0.0, "share of the target spread over all classes", ge=0, lt=1)
    class_weights: Literal["balanced"] | tuple[float, ...] | dict[str, float] | None = option(
        None, "weight of each class in the loss: 'balanced', a list, or name: weight"
    )
