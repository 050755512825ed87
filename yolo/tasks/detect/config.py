# SPDX-License-Identifier: Apache-2.0
"""The detector's own options: its loss terms, their gains, and who learns what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from yolo.cfg.schema import TrainConfig, option

Part = str | dict[str, Any]


class DetectTrainConfig(TrainConfig):
    """Training options of the box tasks, which inherit them."""

    box: float = option(7.5, "gain of the box loss", ge=0)
    cls: float = option(0.5, "gain of the class loss", ge=0)
    dfl: float = option(1.5, "gain of the distribution focal loss", ge=0)
    cls_loss: Part = option("bce", "class loss: a name, or {name: ..., and its options}")
    box_loss: Part = option("ciou", "box loss: likewise")
    assigner: Part = option("task_aligned", "which anchor learns which object: likewise")
    text_embeddings: Part | Path | Callable[..., Any] | None = option(
        None, "words of a World network: a file, or an encoder by name, or with its options"
    )
