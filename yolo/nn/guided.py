# SPDX-License-Identifier: Apache-2.0
"""Blocks that are guided by words: attention to text, text that has seen the image, similarity.

Text is (1, N, E), the same words for every image, or (B, N, E). Attribute names (`gl`, `attn`, ...)
are state-dict keys: a public contract.
Shapes: B batch, C channels, H W pixels, N words, E width of an embedding.

Source: Cheng et al., YOLO-World, arXiv:2401.17270, section 3.3; golden/modules.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolo.errors import ModelError
from yolo.nn.block import C2f
from yolo.nn.conv import BN_EPS, BN_MOMENTUM, Conv
from yolo.nn.layer import BuildContext, Plan, layer


class MaxSigmoidAttnBlock(nn.Module):
    """Weight each pixel, head by head, by how well it fits the word that it fits best.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        heads: groups of channels with a weight of their own.
        text_width: E.
    """

    def __init__(self, c_in: int, c_out: int, heads: int = 1, text_width: int = 512) -> None:
        super().__init__()
        self.heads = heads
        self.gl = nn.Linear(text_width, c_in)
        self.bias = nn.Parameter(torch.zeros(heads))
        self.proj_conv = Conv(c_in, c_out, 3, act=False)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """Map (B, c_in, H, W) and text to (B, c_out, H, W)."""
        words = self.gl(text).unflatten(2, (self.heads, -1)).transpose(1, 2)
        pixels = x.flatten(2).unflatten(1, (self.heads, -1))
        fit = (words @ pixels).amax(2) / math.sqrt(pixels.shape[2]) + self.bias[:, None]
        weight = fit.sigmoid().unflatten(2, x.shape[-2:])
        by_head = self.proj_conv(x).unflatten(1, (self.heads, -1))
        return (by_head * weight[:, :, None]).flatten(1, 2)


@layer(side=True)
class C2fAttn(C2f):
    """`C2f` with a last inner block that attends to words.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        repeats: inner bottlenecks.
        embed: channels in which pixels and words are compared: those of the inner blocks.
        heads: groups of channels with an attention of their own.
        text_width: E.
        shortcut, groups, expansion: as of `C2f`.

    Raises:
        ModelError: if `embed` is another number, or no multiple of `heads`.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        repeats: int = 1,
        embed: int = 128,
        heads: int = 1,
        text_width: int = 512,
        shortcut: bool = False,
        groups: int = 1,
        expansion: float = 0.5,
    ) -> None:
        super().__init__(c_in, c_out, repeats, shortcut, groups, expansion)
        inner = int(c_out * expansion)
        if embed != inner or embed % heads:
            raise ModelError(
                f"expected to compare in the {inner} channels of the inner blocks, a multiple of "
                f"the {heads} heads, got {embed}"
            )
        self.cv2 = Conv((3 + repeats) * inner, c_out)
        self.attn = MaxSigmoidAttnBlock(inner, inner, heads, text_width)

    @classmethod
    def plan(cls, args: Sequence[Any], ctx: BuildContext) -> Plan:
        """Plan a row ``[-1, n, C2fAttn, [c_out, embed, heads, ...]]``; all three are scaled."""
        if len(args) < 3:
            raise ModelError(f"expected [c_out, embed, heads, ...], got {list(args)!r}")
        c_out, embed = ctx.scale_width(args[0]), ctx.scale_width(min(args[1], ctx.max_channels / 2))
        heads = max(int(int(min(args[2], ctx.max_channels / 64)) * ctx.width), 1)
        given = ctx.name(ctx.only_input, c_out, ctx.repeats, embed, heads, *args[3:])
        return Plan(given, c_out)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:  # type: ignore[override]
        """Map (B, c_in, H, W) and text to (B, c_out, H, W)."""
        parts = list(self.cv1(x).chunk(2, 1))
        for block in self.m:
            parts.append(block(parts[-1]))
        parts.append(self.attn(parts[-1], text))
        return self.cv2(torch.cat(parts, 1))


class GridMax(nn.Module):
    """What ``nn.AdaptiveMaxPool2d(grid)`` gives, in operations that ONNX has at every size.

    Args:
        grid: cells along either side; they overlap where a side isn't a multiple.
    """

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, grid, grid)."""
        for axis in (2, 3):
            size, grid = x.shape[axis], self.grid
            edges = [(i * size // grid, ((i + 1) * size + grid - 1) // grid) for i in range(grid)]
            cells = [x.narrow(axis, low, high - low).amax(axis) for low, high in edges]
            x = torch.stack(cells, axis)
        return x


@layer(side="renew")
class ImagePoolingAttn(nn.Module):
    """Let each word attend to the image's strongest features; later rows get the words it gives.

    Args:
        embed: inner channels.
        text_width: E.
        heads: of the attention.
        grid: each map is pooled to grid x grid cells.
        ch: channels of each map.
    """

    def __init__(
        self,
        embed: int = 256,
        text_width: int = 512,
        heads: int = 8,
        grid: int = 3,
        *,
        ch: Sequence[int],
    ) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, embed))
        self.key = nn.Sequential(nn.LayerNorm(embed), nn.Linear(embed, embed))
        self.value = nn.Sequential(nn.LayerNorm(embed), nn.Linear(embed, embed))
        self.proj = nn.Linear(embed, text_width)
        self.projections = nn.ModuleList(nn.Conv2d(c, embed, 1) for c in ch)
        self.pools = nn.ModuleList(GridMax(grid) for _ in ch)

    @classmethod
    def plan(cls, args: Sequence[Any], ctx: BuildContext) -> Plan:
        """Plan a row ``[[i, j, ...], 1, ImagePoolingAttn, [embed, ...]]``; nothing is scaled."""
        return Plan({**ctx.name(*args), "ch": ctx.in_channels}, 0)

    def forward(self, maps: Sequence[Tensor], text: Tensor) -> Tensor:
        """Map feature maps (B, ch[i], H, W) and text to text (B, N, E)."""
        cells = torch.cat(
            [
                pool(projection(x)).flatten(2)
                for x, projection, pool in zip(maps, self.projections, self.pools, strict=True)
            ],
            2,
        ).mT
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(text), self.key(cells), self.value(cells))
        )
        weight = (query @ key.mT / math.sqrt(key.shape[-1])).softmax(-1)
        found: Tensor = self.proj((weight @ value).transpose(1, 2).flatten(2))
        return found + text


class ContrastiveHead(nn.Module):
    """Class logits: the cosine of pixel and word, scaled and shifted.

    Source: as the file, equation 2; Radford et al., CLIP, arXiv:2103.00020 (the scale's start).
    """

    def __init__(self, scale: float = math.log(1 / 0.07)) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([-10.0]))
        self.logit_scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """Map (B, E, H, W) and text to logits (B, N, H, W)."""
        pixels = self.normalised(x)
        fit = F.normalize(text, dim=-1) @ pixels.flatten(2)
        return (fit * self.logit_scale.exp() + self.bias).unflatten(2, x.shape[-2:])

    def normalised(self, x: Tensor) -> Tensor:
        """Bring pixels (B, E, H, W) to comparable length."""
        return F.normalize(x, dim=1)


class BNContrastiveHead(ContrastiveHead):
    """`ContrastiveHead` with batch normalisation of the pixels.

    Args:
        embed: E.
    """

    def __init__(self, embed: int) -> None:
        super().__init__(scale=-1.0)
        self.norm = nn.BatchNorm2d(embed, eps=BN_EPS, momentum=BN_MOMENTUM)

    def normalised(self, x: Tensor) -> Tensor:
        """Bring pixels (B, E, H, W) to comparable length."""
        normed: Tensor = self.norm(x)
        return normed
