# SPDX-License-Identifier: Apache-2.0
"""Training of detectors: the general loop with the detection criterion."""

from __future__ import annotations

from typing import Any

from torch import nn

from yolo.engine.trainer import Trainer


class DetectionTrainer(Trainer):
    """Train a detector; see `Trainer` for what a subclass may override."""

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
