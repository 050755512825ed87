# SPDX-License-Identifier: Apache-2.0
"""The decoupled, anchor-free detection head.

Shapes: B batch, A anchor points, C classes, R bins (`reg_max`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yolo.errors import ModelError
from yolo.nn.anchors import points_like
from yolo.nn.block import DFL
from yolo.nn.conv import Conv, PiecewiseConv2d, class_pieces
from yolo.nn.layer import BuildContext, Plan, layer


@layer
class Detect(nn.Module):
    """Box and class branches on every level.

    The two branches are lists of ``[3x3 Conv, 3x3 Conv, 1x1 convolution with bias]`` under the
    state-dict keys `cv2` (boxes) and `cv3` (classes). `stride` is known once a model is built.

    Args:
        nc: number of classes.
        ch: channels of each level, fine to coarse.
        reg_max: bins per box side; 1 means plain distances.
        class_width: least inner width of the class branches; None: `nc`, at most 100.
        class_pieces: numbers of classes that are computed together; none: all.

    Source: golden/modules.json; Ge et al., YOLOX, arXiv:2107.08430 (decoupled, anchor-free);
    Li et al., arXiv:2006.04388 (distributions over distances).
    """

    def __init__(
        self,
        nc: int,
        ch: Sequence[int],
        reg_max: int = 16,
        class_width: int | None = None,
        class_pieces: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.nc = nc
        self.reg_max = reg_max
        self.class_width = class_width or min(nc, 100)
        self.class_pieces = tuple(class_pieces) or (nc,)
        self.stride: tuple[int, ...] = ()
        box_width = max(16, ch[0] // 4, 4 * reg_max)
        self.cv2 = self.branches(ch, box_width, 4 * reg_max)
        self.cv3 = self.branches(ch, max(ch[0], self.class_width), *self.class_pieces)
        self.dfl: nn.Module = DFL(reg_max) if reg_max > 1 else nn.Identity()

    @property
    def class_layers(self) -> list[nn.Module]:
        """The layers with one output a class; fine-tuning sorts their rows by class name."""
        return [branch.get_submodule("2") for branch in self.cv3]

    @classmethod
    def plan(cls, args: Sequence[Any], ctx: BuildContext) -> Plan:
        """Plan a row ``[levels, 1, Detect, [nc]]``; others are keys of the network.

        Raises:
            ModelError: if the class count isn't the network's, or a key no whole number >= 1.
        """
        return Plan({**cls.head_options(args, ctx), "ch": ctx.in_channels}, 0)

    @classmethod
    def head_options(cls, args: Sequence[Any], ctx: BuildContext) -> dict[str, Any]:
        """Give the constructor's arguments beside `ch`; heads that extend this one add theirs."""
        options: dict[str, Any] = {"nc": ctx.num_classes, "reg_max": ctx.options.get("reg_max", 16)}
        if "class_width" in ctx.options:
            options["class_width"] = ctx.options["class_width"]
        pieces = class_pieces(ctx)
        if args and args[0] != ctx.num_classes:
            raise ModelError(
                f"expected nc as the network has it, {ctx.num_classes}, got {args[0]!r}; write nc"
            )
        for key, value in options.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ModelError(f"expected {key} as a whole number >= 1, got {value!r}")
        return options | ({"class_pieces": pieces} if len(pieces) > 1 else {})

    def keys_for(self, count: int) -> dict[str, Any]:
        """Return the network's keys that keep these class branches when there are `count` classes.

        They have the same width, and the new outputs stand beside those that were there.
        """
        pieces = [*self.class_pieces, count - sum(self.class_pieces)]
        return {"class_width": self.class_width, "class_pieces": pieces}

    @staticmethod
    def branches(ch: Sequence[int], width: int, *out: int) -> nn.ModuleList:
        """Make one branch per level, `width` channels inside and `out` at the end, by pieces."""
        return nn.ModuleList(
            nn.Sequential(
                Conv(c, width, 3),
                Conv(width, width, 3),
                nn.Conv2d(width, *out, 1) if len(out) == 1 else PiecewiseConv2d(width, out),
            )
            for c in ch
        )

    def forward(self, feats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Predict at every cell of every level.

        Args:
            feats: maps (B, ch[i], h, w) of each level, fine to coarse.

        Returns:
            boxes (B, 4*R, A): logits of distances, side-major (left, top, right, bottom);
            scores (B, C, A): class logits; points (A, 2): anchor points as (x, y) in grid units;
            strides (A, 1): pixels per grid unit. Levels follow each other, row-major.
        """
        points, strides = points_like(feats, self.stride)
        return {
            "boxes": join_levels([branch(x) for branch, x in zip(self.cv2, feats, strict=True)]),
            "scores": join_levels([branch(x) for branch, x in zip(self.cv3, feats, strict=True)]),
            "points": points,
            "strides": strides,
        }

    def distances(self, raw: dict[str, Tensor]) -> Tensor:
        """Turn box logits into distances (B, 4, A) in grid units, float32."""
        dist: Tensor = self.dfl(raw["boxes"])
        return dist.float()

    def decode(self, raw: dict[str, Tensor]) -> Tensor:
        """Turn raw predictions into boxes and scores, in float32 whatever the input's type.

        Returns:
            (B, 4 + C, A): boxes_xywh in pixels, then scores in 0..1.
        """
        left_top, right_bottom = self.distances(raw).chunk(2, 1)
        centre = raw["points"].mT + (right_bottom - left_top) / 2
        boxes = torch.cat((centre, left_top + right_bottom), 1) * raw["strides"].mT
        return torch.cat((boxes, raw["scores"].float().sigmoid()), 1)

    @torch.no_grad()
    def init_bias(self, image_size: int = 640, objects: int = 5) -> None:
        """Start the class branch at the score that few objects an image would give.

        The prior is `objects` objects of `nc` equally likely classes on the cells of a square
        image. Box biases become 1, as in the classic build (8.2; 8.4 has 2).

        Args:
            image_size: side of the image, pixels.
            objects: objects expected on it, per level.
        """
        for box, score, stride in zip(self.cv2, self.cv3, self.stride, strict=True):
            prior = math.log(objects / self.nc / (image_size / stride) ** 2)
            box.get_parameter("2.bias").fill_(1.0)
            score.get_parameter("2.bias").fill_(prior)


def join_levels(maps: Sequence[Tensor]) -> Tensor:
    """Join maps (B, C, h, w) of all levels to (B, C, A).

    Channels-last maps are (B, cells, C) in memory: joining them along the cells is a plain copy,
    and the loss, which reads anchor point by anchor point, then needs no other.
    """
    if maps[0].is_contiguous(memory_format=torch.channels_last):
        return torch.cat([m.flatten(2).mT for m in maps], 1).mT
    return torch.cat([m.flatten(2) for m in maps], 2)
