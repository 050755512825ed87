# SPDX-License-Identifier: Apache-2.0
"""Training of detectors: the general loop with the detection criterion."""

from __future__ import annotations

from torch import nn

from yolo.engine.trainer import Trainer


class DetectionTrainer(Trainer):
    """Train a detector; see `Trainer` for what a subclass may override."""

    def build_criterion(self) -> nn.Module:
        """Build the criterion with the gains of the options."""
        head, args = self.model.head, self.args
        criterion: nn.Module = self.spec.criterion(
            self.model.nc,
            self.model.stride,
            head.reg_max,
            box=args.box,
            cls=args.cls,
            dfl=args.dfl,
        )
        return criterion.to(self.device)
