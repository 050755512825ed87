# SPDX-License-Identifier: Apache-2.0
"""The classification loss. B batch, C classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo.nn.losses import LossReport, Targets


class ClassificationCriterion(nn.Module):
    """Mean cross-entropy of the images.

    Args:
        label_smoothing: share of the target spread evenly over all classes, 0 <= share < 1
            (Szegedy et al., arXiv:1512.00567, section 7).
        class_weights: (C,) factor of each class's images, >= 0; None counts all alike. The sum is
            divided by the number of images, not of weights: otherwise a batch of one class alone
            would weigh as much as any, and small batches would undo the weighting.
        sum_over_ranks: adds a scalar tensor over all ranks, so that `total` is a share of one mean.

    Attributes:
        names: the logged term.
    """

    names: tuple[str, ...] = ("loss",)
    weights: Tensor | None

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        sum_over_ranks: Callable[[Tensor], Tensor] = lambda value: value,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.sum_over_ranks = sum_over_ranks
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("weights", weights)

    def forward(self, raw: Mapping[str, Tensor], targets: Targets) -> LossReport:
        """Compare logits with classes.

        Args:
            raw: `logits` (B, C).
            targets: `classes` (B, n), of which the first counts; `mask` (B, n) is False for an
                image whose class isn't known, which then doesn't count.

        Returns:
            The total is the mean itself, not multiplied by the batch size.
        """
        logits = raw["logits"].float()
        if not targets.mask.shape[1]:  # not one image of the batch has a class
            self.sum_over_ranks(logits.new_zeros(()))
            total = logits.sum() * 0.0
            return LossReport(total, {"loss": total.detach()})
        labels, known = targets.classes[:, 0], targets.mask[:, 0].float()
        each = F.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self.label_smoothing
        )
        if self.weights is not None:
            each = each * self.weights[labels]
        total = (each * known).sum() / self.sum_over_ranks(known.sum()).clamp(min=1)
        return LossReport(total, {"loss": total.detach()}, live={"loss": total})
