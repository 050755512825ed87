# SPDX-License-Identifier: Apache-2.0
"""Convolutions with their normalisation and activation.

Attribute names (`conv`, `bn`, `cv1`, ...) are state-dict keys: a public contract.
Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from yolo.nn.layer import BuildContext, concat_channels, conv_like, layer, same_channels

BN_EPS = 1e-3
BN_MOMENTUM = 0.03

# One object for every convolution, which a network replaces by one of its own: it has no state, and
# the familiar count of layers (225 for yolov8n) counts it once. Not in place: autograd needs the
# input of SiLU and would clone it.
SILU = nn.SiLU()


def activation(act: bool | nn.Module) -> nn.Module:
    """Choose an activation: the shared SiLU (True), none (False), or the given module."""
    if isinstance(act, nn.Module):
        return act
    return SILU if act else nn.Identity()


@layer(plan=conv_like)
class Conv(nn.Module):
    """Convolution without bias, batch normalisation, activation.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        kernel: side of the kernel, pixels.
        stride: step, pixels.
        padding: border, pixels; None keeps the size at stride 1 (kernel // 2, with dilation).
        groups: groups of channels.
        dilation: distance of kernel taps, pixels.
        act: True for SiLU, False for none, or a module.
    """

    bn: nn.BatchNorm2d | None

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        dilation: int = 1,
        act: bool | nn.Module = True,
    ) -> None:
        super().__init__()
        same = (dilation * (kernel - 1) + 1) // 2
        self.conv = nn.Conv2d(
            c_in,
            c_out,
            kernel,
            stride,
            same if padding is None else padding,
            groups=groups,
            dilation=dilation,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(c_out, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c_in, H, W) to (B, c_out, H / stride, W / stride)."""
        x = self.conv(x)
        if self.bn is not None:  # None once fused
            x = self.bn(x)
        return self.act(x)

    def fuse(self) -> None:
        """Fold the normalisation's running statistics into the convolution, for inference."""
        if self.bn is None:
            return
        training = self.training
        self.conv = fuse_conv_bn_eval(self.conv.eval(), self.bn.eval())
        self.bn = None
        self.train(training)


@layer(plan=conv_like)
class DWConv(Conv):
    """Depth-wise `Conv`: as many groups as c_in and c_out have in common.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        kernel: side of the kernel, pixels.
        stride: step, pixels.
        dilation: distance of kernel taps, pixels.
        act: True for SiLU, False for none, or a module.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
        act: bool | nn.Module = True,
    ) -> None:
        groups = math.gcd(c_in, c_out)
        super().__init__(c_in, c_out, kernel, stride, None, groups, dilation, act)


@layer(plan=conv_like)
class GhostConv(nn.Module):
    """Half of the channels by a convolution, the other half from those by a cheap 5x5 one.

    Args:
        c_in: channels of the input.
        c_out: channels of the output, even.
        kernel: side of the first kernel, pixels.
        stride: step of the first convolution, pixels.
        groups: groups of the first convolution.
        act: True for SiLU, False for none, or a module.

    Source: Han et al., GhostNet, arXiv:1911.11907, section 3.1.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: bool | nn.Module = True,
    ) -> None:
        super().__init__()
        half = c_out // 2
        self.cv1 = Conv(c_in, half, kernel, stride, None, groups, act=act)
        self.cv2 = Conv(half, half, 5, 1, None, half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c_in, H, W) to (B, c_out, H / stride, W / stride)."""
        x = self.cv1(x)
        return torch.cat((x, self.cv2(x)), 1)


@layer(plan=concat_channels)
class Concat(nn.Module):
    """Join a list of feature maps.

    Args:
        dim: the axis to join along; 1 = channels.
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        """Join maps that agree in every other axis."""
        return torch.cat(tuple(x), self.dim)


class PiecewiseConv2d(nn.Conv2d):
    """A 1x1 convolution whose outputs are computed piece by piece.

    A library sums in an order that depends on the number of outputs; so the last bits of those that
    were there first would change when others are added.

    Args:
        c_in: channels of the input.
        pieces: channels of the output that are computed together, in their order.
    """

    def __init__(self, c_in: int, pieces: Sequence[int]) -> None:
        super().__init__(c_in, sum(pieces), 1)
        self.pieces = tuple(pieces)

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, c_in, H, W) to (B, sum of pieces, H, W)."""
        return _piecewise(F.conv2d, self, input)


class PiecewiseLinear(nn.Linear):
    """A linear layer of the same kind as `PiecewiseConv2d`.

    Args:
        c_in: numbers of the input.
        pieces: numbers of the output that are computed together, in their order.
    """

    def __init__(self, c_in: int, pieces: Sequence[int]) -> None:
        super().__init__(c_in, sum(pieces))
        self.pieces = tuple(pieces)

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, c_in) to (B, sum of pieces)."""
        return _piecewise(F.linear, self, input)


def _piecewise(
    compute: Callable[..., Tensor], layer: PiecewiseConv2d | PiecewiseLinear, x: Tensor
) -> Tensor:
    weight: Tensor = layer.weight
    bias: Any = layer.bias
    ends = pairwise((0, *accumulate(layer.pieces)))  # slices, since exporters fold those
    return torch.cat([compute(x, weight[a:b], bias[a:b]) for a, b in ends], 1)


def class_pieces(ctx: BuildContext) -> tuple[int, ...]:
    """Return the numbers of classes that were added at a time, by the network's `class_pieces`.

    Where that isn't of the network's number of classes (any more), they are one piece.
    """
    given = ctx.options.get("class_pieces")
    counts = tuple(given) if isinstance(given, (list, tuple)) else ()
    fits = all(type(n) is int and n > 0 for n in counts) and sum(counts) == ctx.num_classes
    return counts if fits else (ctx.num_classes,)


# Torch's own modules that network files use, under the names they have there.
layer(plan=same_channels, name="nn.Upsample")(nn.Upsample)
layer(plan=same_channels, name="nn.Identity")(nn.Identity)
layer(plan=same_channels, name="nn.MaxPool2d")(nn.MaxPool2d)
layer(plan=conv_like, name="nn.Conv2d")(nn.Conv2d)
