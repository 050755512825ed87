# SPDX-License-Identifier: Apache-2.0
"""What a criterion takes and gives, and the loss terms, on plain tensors.

Shape letters: B batch, n gt slots (padded), m ignored regions, M positions, C classes,
A anchor points, R bins of a distance.

A loss term is chosen by name, so that a user's own is one decorator away:

    @CLASS_LOSSES.register("mine")
    def my_class_loss(logits, targets): ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolo.nn.boxes import ciou
from yolo.registry import Registry


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

    def pin_memory(self) -> Targets:
        """Return a copy in page-locked memory, for copies that don't block."""
        return self.map(lambda tensor: tensor.pin_memory())


@dataclass(frozen=True, slots=True)
class LossReport:
    """The outcome of one step.

    Attributes:
        total: scalar to run backward on: the sum of the items times the batch size.
        parts: detached items by name, each times its gain, in the criterion's order.
    """

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class SparseTargets:
    """Class targets of which at most M an image aren't zero.

    Attributes:
        index: (B, M) int64 anchors, distinct within an image.
        labels: (B, M) int64 the class with a target at that anchor.
        quality: (B, M) the target, 0..1; 0 where the position is padding.
        ignored: (B, A) bool, anchors without positive that aren't background either; or None.
    """

    index: Tensor
    labels: Tensor
    quality: Tensor
    ignored: Tensor | None = None


class ClassLoss(Protocol):
    """A class loss over all anchors and classes."""

    def __call__(self, logits: Tensor, targets: SparseTargets) -> Tensor:
        """Return the scalar sum of the loss over logits (B, C, A), ignored anchors left out."""
        ...


BoxLoss = Callable[[Tensor, Tensor], Tensor]
"""(predicted boxes_xyxy (..., 4), target boxes_xyxy (..., 4)) -> loss (...), in one unit."""

CLASS_LOSSES: Registry[ClassLoss] = Registry("cls_loss")
BOX_LOSSES: Registry[BoxLoss] = Registry("box_loss")


@CLASS_LOSSES.register("bce")
def bce_loss(logits: Tensor, targets: SparseTargets) -> Tensor:
    """Binary cross-entropy with soft targets, summed: softplus(x) - x * target.

    The largest part of a training step's loss, since it touches every logit: neither dense targets
    are made, nor one gradient for the dense and another for the sparse part. Logits that lie in
    memory as (B, A, C), as channels-last networks give them, are read in that order.
    """
    batch, num_classes, anchors = logits.shape
    images = torch.arange(batch, device=logits.device)[:, None]
    ignored = targets.ignored
    if logits.is_contiguous():
        dense = logits
        places = (images * num_classes + targets.labels) * anchors + targets.index
        ignored = None if ignored is None else ignored[:, None]
    else:
        dense = logits.mT.contiguous()
        places = (images * anchors + targets.index) * num_classes + targets.labels
        ignored = None if ignored is None else ignored[..., None]
    value: Tensor = _BceSum.apply(dense, places.flatten(), targets.quality.flatten(), ignored)
    return value


class _BceSum(torch.autograd.Function):
    """The sum of softplus(x) - x * target, with its gradient sigmoid(x) - target.

    Inputs: contiguous logits, flat places (M,) of targets that aren't 0, those targets (M,), and
    a bool mask of logits to leave out that broadcasts, or None.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, places: Tensor, quality: Tensor, ignored: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(logits, places, quality, ignored)
        dense = logits if ignored is None else logits.masked_fill(ignored, -torch.inf)
        return softplus_sum(dense) - (logits.view(-1)[places] * quality).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, places, quality, ignored = ctx.saved_tensors
        slope = logits.sigmoid()
        if ignored is not None:
            slope.masked_fill_(ignored, 0)
        slope.view(-1).scatter_add_(0, places, -quality.to(slope.dtype))
        return slope.mul_(grad), None, None, None


def softplus_sum(x: Tensor) -> Tensor:
    """Sum log(1 + exp(x)) over all elements, to float32's relative precision; no gradient.

    A logarithm costs about ten times an exponential on a CPU (5.4 million logits: 58 ms for
    softplus, 3 ms for exp, one AVX-512 core, torch 2.15). Sums of logarithms are logarithms of
    products, so 64 elements share one: with (1 + a)(1 + b) = 1 + (a + b + ab), the excess over 1
    is folded six times, which loses nothing for small terms and stays below 2^64.

    Args:
        x: float32, any shape; -inf adds nothing.

    Returns:
        Scalar.
    """
    # On a CPU, blocks that stay in its cache: fresh memory costs more than the arithmetic.
    block = 2**18 if x.device.type == "cpu" else max(1, x.numel())
    return torch.stack([_softplus_sum(part) for part in torch.split(x.flatten(), block)]).sum()


def _softplus_sum(x: Tensor) -> Tensor:
    excess = x.abs().neg_().exp_()  # log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)
    whole = len(x) // 64 * 64
    folded = excess[:whole].view(64, -1)
    while len(folded) > 1:
        a, b = folded.chunk(2)
        folded = torch.addcmul(a + b, a, b)
    return x.clamp(min=0).sum() + folded.log1p().sum() + excess[whole:].log1p().sum()


@BOX_LOSSES.register("ciou")
def ciou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - CIoU, >= 0. Source: Zheng et al., arXiv:1911.08287, section 3."""
    return 1 - ciou(pred, target)


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
