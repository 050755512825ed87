# SPDX-License-Identifier: Apache-2.0
"""Blocks that networks are made of: bottlenecks, cross-stage stages, pooling, the DFL and Proto.

Attribute names (`cv1`, `m`, ...) are state-dict keys: a public contract.
Shapes: B batch, C channels, H W pixels, A anchor points, R bins.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from yolo.nn.conv import Conv, DWConv, GhostConv
from yolo.nn.layer import conv_like, layer, stage_like


@layer(plan=conv_like)
class Bottleneck(nn.Module):
    """Two convolutions with an optional residual.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        shortcut: add the input, where c_in equals c_out.
        groups: groups of the second convolution.
        kernels: sides of the two kernels, pixels.
        expansion: inner channels over c_out.

    Source: He et al., arXiv:1512.03385, section 4.1, in the form of Darknet-53.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        shortcut: bool = True,
        groups: int = 1,
        kernels: tuple[int, int] = (3, 3),
        expansion: float = 0.5,
    ) -> None:
        super().__init__()
        inner = int(c_out * expansion)
        self.cv1 = Conv(c_in, inner, kernels[0])
        self.cv2 = Conv(inner, c_out, kernels[1], groups=groups)
        self.add = shortcut and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c_in, H, W) to (B, c_out, H, W)."""
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


@layer(plan=stage_like)
class C2f(nn.Module):
    """Cross-stage stage whose every inner result reaches the last convolution.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        repeats: inner bottlenecks, two 3x3 convolutions each.
        shortcut: residuals in the bottlenecks.
        groups: groups of the bottlenecks' second convolution.
        expansion: inner channels over c_out.

    Source: golden/modules.json; after CSPNet, arXiv:1911.11929, and ELAN, arXiv:2211.04800.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        repeats: int = 1,
        shortcut: bool = False,
        groups: int = 1,
        expansion: float = 0.5,
    ) -> None:
        super().__init__()
        inner = int(c_out * expansion)
        self.cv1 = Conv(c_in, 2 * inner)
        self.cv2 = Conv((2 + repeats) * inner, c_out)
        self.m = nn.ModuleList(
            Bottleneck(inner, inner, shortcut, groups, expansion=1.0) for _ in range(repeats)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c_in, H, W) to (B, c_out, H, W)."""
        parts = list(self.cv1(x).chunk(2, 1))
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


@layer(plan=stage_like)
class C2(nn.Module):
    """Cross-stage stage: one half of the channels goes through the blocks, one passes by.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        repeats: inner bottlenecks, two 3x3 convolutions each.
        shortcut: residuals in the bottlenecks.
        groups: groups of the bottlenecks' second convolution.
        expansion: inner channels over c_out.

    Source: Wang et al., CSPNet, arXiv:1911.11929, section 3.2.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        repeats: int = 1,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
    ) -> None:
        super().__init__()
        inner = int(c_out * expansion)
        self.cv1 = Conv(c_in, 2 * inner)
        self.cv2 = Conv(2 * inner, c_out)
        self.m = nn.Sequential(
            *(Bottleneck(inner, inner, shortcut, groups, expansion=1.0) for _ in range(repeats))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c_in, H, W) to (B, c_out, H, W)."""
        through, past = self.cv1(x).chunk(2, 1)
        return self.cv2(torch.cat((self.m(through), past), 1))


@layer(plan=stage_like)
class C3(nn.Module):
    """Cross-stage stage with two entrances and one exit convolution.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        repeats: inner blocks.
        shortcut: residuals in the bottlenecks.
        groups: groups of the bottlenecks' second convolution.
        expansion: inner channels over c_out.

    Source: Wang et al., CSPNet, arXiv:1911.11929, section 3.2.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        repeats: int = 1,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
    ) -> None:
        super().__init__()
        inner = int(c_out * expansion)
        self.cv1 = Conv(c_in, inner)
        self.cv2 = Conv(c_in, inner)
        self.cv3 = Conv(2 * inner, c_out)
        self.m = nn.Sequential(*(self.block(inner, shortcut, groups) for _ in range(repeats)))

    def block(self, channels: int, shortcut: bool, groups: int) -> nn.Module:
        """Make one inner block."""
        return Bottleneck(channels, channels, shortcut, groups, (1, 3), expansion=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c_in, H, W) to (B, c_out, H, W)."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


@layer(plan=conv_like)
class GhostBottleneck(nn.Module):
    """Two Ghost convolutions, a depth-wise step between them at stride 2, and a residual.

    Args:
        c_in: channels of the input.
        c_out: channels of the output; equal to c_in at stride 1.
        kernel: side of the depth-wise kernels, pixels.
        stride: 1 or 2.

    Source: Han et al., GhostNet, arXiv:1911.11907, section 3.2 (SiLU instead of ReLU).
    """

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        inner = c_out // 2
        wide = stride == 2
        self.conv = nn.Sequential(
            GhostConv(c_in, inner),
            DWConv(inner, inner, kernel, stride, act=False) if wide else nn.Identity(),
            GhostConv(inner, c_out, act=False),
        )
        self.shortcut = (
            nn.Sequential(
                DWConv(c_in, c_in, kernel, stride, act=False), Conv(c_in, c_out, act=False)
            )
            if wide
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c_in, H, W) to (B, c_out, H / stride, W / stride)."""
        return self.conv(x) + self.shortcut(x)


@layer
class C3Ghost(C3):
    """`C3` whose inner blocks are `GhostBottleneck`; these always have their residual."""

    def block(self, channels: int, shortcut: bool, groups: int) -> nn.Module:
        """Make one inner block."""
        return GhostBottleneck(channels, channels)


@layer(plan=conv_like)
class SPPF(nn.Module):
    """Spatial pyramid pooling by three chained max-pools, equal to kernels k, 2k-1 and 3k-2.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        kernel: side of the pooling window, odd, pixels.

    Source: He et al., SPP-net, arXiv:1406.4729, section 2; max-pools of stride 1 compose.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int = 5) -> None:
        super().__init__()
        inner = c_in // 2
        self.cv1 = Conv(c_in, inner)
        self.cv2 = Conv(4 * inner, c_out)
        self.m = nn.MaxPool2d(kernel, 1, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c_in, H, W) to (B, c_out, H, W)."""
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(self.m(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class DFL(nn.Module):
    """Expectation of a discrete distribution over distances, per box side.

    The bin values 0 .. R-1 are kept as a frozen 1x1 convolution, because checkpoints hold them
    under that key; the computation is a matrix product.

    Args:
        reg_max: number of bins R, >= 1.

    Source: Li et al., Generalized Focal Loss, arXiv:2006.04388, section 3.2.
    """

    def __init__(self, reg_max: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(reg_max, 1, 1, bias=False).requires_grad_(False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.arange(reg_max).view(1, reg_max, 1, 1))
        self.reg_max = reg_max

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 4*R, A) logits to (B, 4, A) distances in stride units, float32.

        Float32 whatever the input and autocast: a half-precision distance is off by pixels.
        """
        batch, _, points = x.shape
        with _full_precision(x.device.type):
            bins = x.float().reshape(batch, 4, self.reg_max, points).softmax(2)
            return (self.conv.weight.float().view(1, self.reg_max) @ bins).squeeze(2)


def _full_precision(device_type: str) -> AbstractContextManager[None]:
    """Switch autocast off where it is on; the meta device, for one, has none to switch."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


class Proto(nn.Module):
    """Mask prototypes at twice the input's size.

    Args:
        c_in: channels of the input.
        c_proto: inner channels.
        masks: number of prototypes.

    Source: Bolya et al., YOLACT, arXiv:1904.02689, section 3.1.
    """

    def __init__(self, c_in: int, c_proto: int = 256, masks: int = 32) -> None:
        super().__init__()
        self.cv1 = Conv(c_in, c_proto, 3)
        self.upsample = nn.ConvTranspose2d(c_proto, c_proto, 2, 2)
        self.cv2 = Conv(c_proto, c_proto, 3)
        self.cv3 = Conv(c_proto, masks)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c_in, H, W) to (B, masks, 2H, 2W)."""
        return self.cv3(self.cv2(self.upsample(self.cv1(x))))
