# SPDX-License-Identifier: Apache-2.0
"""Training of detectors: the general loop with the detection criterion."""

from __future__ import annotations

from typing import Any

from torch import nn

from yolo.engine.trainer import Trainer
from yolo.engine.words import embeddings_of
from yolo.errors import ConfigError


class DetectionTrainer(Trainer):
    """Train a detector; see `Trainer` for what a subclass may override."""

    def build_model(self) -> Any:
        """Build the network; one that takes words gets the embeddings of the data's names.

        Raises:
            ConfigError: if `text_embeddings` is given for a network whose classes are fixed.
            YoloError: if there are no embeddings, or not for each name.
        """
        model, source = super().build_model(), self.args.text_embeddings
        if getattr(model, "takes_words", False):
            names = list(model.names.values())
            if source is None or self.resumed_from is not None:
                source = embeddings_of(self.network, names)
            model.set_classes(names, source)
        elif source is not None:
            raise ConfigError(
                f"text_embeddings={source!r}: the classes of this network are fixed; leave it "
                "out, or train a network such as yolov8n-worldv2.yaml"
            )
        return model

    def build_criterion(self) -> nn.Module:
        """Build the criterion with `criterion_options`."""
        model = self.model
        built: nn.Module = self.spec.criterion(
            model.nc,
            model.stride,
            model.head.reg_max,
            sum_over_ranks=self.ranks.sum,
            **self.criterion_options(),
        )
        return built.to(self.device)

    def criterion_options(self) -> dict[str, Any]:
        """Return parts and gains of the options; a task with more terms adds to them."""
        names = ("box", "cls", "dfl", "cls_loss", "box_loss", "assigner")
        return {name: getattr(self.args, name) for name in names}
