# SPDX-License-Identifier: Apache-2.0
"""What a criterion takes and gives, and the distribution term, on plain tensors.

Shape letters: B batch, n gt slots (padded), m ignored regions, C classes, R bins of a distance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class Targets:
    """The ground truth of a batch, padded to the image with the most objects.

    Attributes:
        classes: (B, n) int64 class ids; padding holds any valid id.
        boxes: (B, n, 4) float32 boxes_xyxy in pixels of the network's input.
        mask: (B, n) bool, True for an object, False for padding. n may be 0.
        ignore: (B, m, 4) float32 regions, boxes_xyxy in pixels, that are neither object nor
            background, padded with zeros; None when the batch has none.
        size: (h, w) of the network's input in pixels.
        extras: what a task adds, each tensor with the batch first.
    """

    classes: Tensor
    boxes: Tensor
    mask: Tensor
    ignore: Tensor | None = None
    size: tuple[int, int] = (0, 0)
    extras: dict[str, Tensor] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> Targets:
        """Return a copy with `change` applied to every tensor."""
        return Targets(
            classes=change(self.classes),
            boxes=change(self.boxes),
            mask=change(self.mask),
            ignore=None if self.ignore is None else change(self.ignore),
            size=self.size,
            extras={key: change(value) for key, value in self.extras.items()},
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        """Return a copy on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))


@dataclass(frozen=True, slots=True)
class LossReport:
    """The outcome of one step.

    Attributes:
        total: scalar to run backward on: the sum of the items times the batch size.
        parts: detached items by name, each times its gain, in the criterion's order.
        images: what `total` is times the sum of the items; terms that are added later take it too.
        live: the items with their gradient, by which a run finds terms that have none.
    """

    total: Tensor
    parts: dict[str, Tensor]
    images: Tensor | float = 1.0
    live: Mapping[str, Tensor] = field(default_factory=dict)


def dfl_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Distribution focal loss: cross-entropy split linearly between the two nearest bins.

    Args:
        logits: (..., 4, R) of the bins 0..R-1 of each side.
        distances: (..., 4) to the sides in stride units; clamped to 0..R-1.01, so that both
            neighbouring bins exist.

    Returns:
        (...) the mean over the four sides.

    Source: Li et al., Generalized Focal Loss, arXiv:2006.04388, equation 6.
    """
    distances = distances.clamp(0, logits.shape[-1] - 1.01)
    low = distances.floor()
    upper_share = (distances - low)[..., None]
    bins = low.long()[..., None]
    log_probabilities = logits.log_softmax(-1)
    lower = log_probabilities.gather(-1, bins)
    upper = log_probabilities.gather(-1, bins + 1)
    return -torch.lerp(lower, upper, upper_share).squeeze(-1).mean(-1)
