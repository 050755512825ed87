# SPDX-License-Identifier: Apache-2.0
"""Class losses over all anchors, chosen by name. A user's own is one decorator away.

    @CLASS_LOSSES.register("mine")
    def my_class_loss(logits, targets): ...

Options after these two can be set as in `cls_loss={"name": "focal", "gamma": 1.5}`.

Shape letters: B batch, M positions that may be positive, C classes, A anchor points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolo.registry import Registry


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


ClassLoss = Callable[..., Tensor]
"""(logits (B, C, A), SparseTargets) -> the scalar sum of the loss, ignored anchors left out."""

CLASS_LOSSES: Registry[ClassLoss] = Registry("cls_loss")


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


@CLASS_LOSSES.register("varifocal")
def varifocal_loss(
    logits: Tensor, targets: SparseTargets, *, alpha: float = 0.75, gamma: float = 2.0
) -> Tensor:
    """Binary cross-entropy with soft targets; positives weigh by their target, others by surprise.

    Args:
        logits: (B, C, A).
        targets: the soft targets q.
        alpha: weight of background.
        gamma: exponent of a background's predicted score.

    Source: Zhang et al., VarifocalNet, arXiv:2008.13367, equation 2.
    """
    quality = dense_targets(logits, targets)
    background = alpha * logits.sigmoid() ** gamma * (quality == 0)
    weight = background + quality
    return _summed(
        F.binary_cross_entropy_with_logits(logits, quality, reduction="none"), weight, targets
    )


@CLASS_LOSSES.register("focal")
def focal_loss(
    logits: Tensor, targets: SparseTargets, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Binary cross-entropy with targets 0 and 1, weighted by how wrong a prediction is.

    Args:
        logits: (B, C, A).
        targets: what has a target above 0 counts as 1.
        alpha: weight of positives, background has 1 - alpha; 0 leaves both at 1.
        gamma: exponent of the prediction's distance from its target.

    Source: Lin et al., Focal Loss, arXiv:1708.02002, equation 5.
    """
    label = (dense_targets(logits, targets) > 0).to(logits.dtype)
    weight = (label - logits.sigmoid()).abs() ** gamma
    if alpha > 0:
        weight = weight * (label * alpha + (1 - label) * (1 - alpha))
    return _summed(
        F.binary_cross_entropy_with_logits(logits, label, reduction="none"), weight, targets
    )


@CLASS_LOSSES.register("quality_focal")
def quality_focal_loss(logits: Tensor, targets: SparseTargets, *, beta: float = 2.0) -> Tensor:
    """Binary cross-entropy with soft targets, weighted by the distance from them.

    Args:
        logits: (B, C, A).
        targets: the soft targets.
        beta: exponent of the distance.

    Source: Li et al., Generalized Focal Loss, arXiv:2006.04388, equation 5.
    """
    quality = dense_targets(logits, targets)
    weight = (quality - logits.sigmoid()).abs() ** beta
    return _summed(
        F.binary_cross_entropy_with_logits(logits, quality, reduction="none"), weight, targets
    )


def dense_targets(logits: Tensor, targets: SparseTargets) -> Tensor:
    """Return the targets of all logits, (B, C, A)."""
    dense = torch.zeros_like(logits)
    images = torch.arange(len(logits), device=logits.device)[:, None]
    # Padded positions add 0, wherever they point.
    return dense.index_put_(
        (images, targets.labels, targets.index), targets.quality.to(dense.dtype), accumulate=True
    )


def _summed(loss: Tensor, weight: Tensor, targets: SparseTargets) -> Tensor:
    weighted = loss * weight
    if targets.ignored is not None:
        weighted = weighted.masked_fill(targets.ignored[:, None], 0)
    return weighted.sum()
