# SPDX-License-Identifier: Apache-2.0
"""A network ready to predict with, or several as one module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo.api import YOLO
from yolo.engine.network import listed
from yolo.engine.runtime import select_device
from yolo.errors import ModelError
from yolo.nn.model import BaseModel


class Ensemble(nn.Module):
    """Models of the same classes that look at the same images.

    Predictions per place, (B, rows, A_i) each, are joined along A, so that the suppression of
    overlapping boxes chooses among those of all models. Predictions per image, (B, classes), are
    averaged. Anything else, such as mask coefficients that belong to one model's prototypes, can't
    be joined.

    Args:
        models: in eval mode.

    Attributes:
        names: the classes.
        stride: strides of the first model.

    Raises:
        ModelError: if the models differ in their classes.
    """

    def __init__(self, models: Sequence[BaseModel]) -> None:
        super().__init__()
        if not models:
            raise ModelError("an ensemble needs at least one model, found none")
        self.names = dict(models[0].names)
        self.stride = models[0].stride
        for model in models:
            if model.names != self.names:
                raise ModelError(
                    "an ensemble needs models of the same classes, found "
                    f"{listed(list(self.names.values()))}; and {listed(list(model.names.values()))}"
                )
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        """Predict.

        Args:
            x: (B, C, H, W) float image, RGB, 0..1.

        Raises:
            ModelError: if the models' predictions can't be joined.
        """
        found = [model(x) for model in self.models]
        shapes = {(out.ndim, *out.shape[:2]) for out in found if isinstance(out, Tensor)}
        if len(shapes) != 1 or not all(isinstance(out, Tensor) for out in found):
            raise ModelError(
                "these models' predictions can't be joined; run each one and merge the results"
            )
        return torch.cat(found, -1) if found[0].ndim == 3 else torch.stack(found).mean(0)


def attempt_load_weights(
    weights: str | Path | Sequence[str | Path],
    device: Any = "cpu",
    inplace: bool = True,
    fuse: bool = True,
) -> nn.Module:
    """Return a network ready to predict with, or several as one.

    Args:
        weights: a checkpoint, or a list of them.
        device: where the network shall be.
        inplace: accepted for the sake of old scripts; without effect.
        fuse: fold BatchNorm into the convolutions.

    Returns:
        The model in eval mode; for a list an `Ensemble`, whose docstring says how predictions join.

    Raises:
        YoloError: if a file can't be read, or the models can't be joined.
    """
    paths = [weights] if isinstance(weights, (str, Path)) else weights
    facades = [YOLO(path) for path in paths]
    models = [(facade.fuse() if fuse else facade).model for facade in facades]
    result: nn.Module = models[0] if paths is not weights else Ensemble(models)
    return result.to(select_device(device)).eval()
