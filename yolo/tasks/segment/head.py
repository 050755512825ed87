# SPDX-License-Identifier: Apache-2.0
"""The segmentation head: a detector's, with mask coefficients and prototypes.

Shapes: B batch, A anchor points, C classes, N prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from yolo.errors import ModelError
from yolo.nn.block import Proto
from yolo.nn.layer import BuildContext, layer
from yolo.tasks.detect.head import Detect, join_levels


@layer
class Segment(Detect):
    """Boxes, classes, and for each anchor point the weights of masks that the image shares.

    An object's mask is the weighted sum of the prototypes, in logits. The weights' branch is the
    state-dict key `cv4`, the prototypes are made of the finest level by `proto`.

    Args:
        nc: number of classes.
        ch: channels of each level, fine to coarse.
        nm: number of prototypes.
        npr: inner channels of the prototypes.
        **options: those of `Detect`.

    Source: Bolya et al., YOLACT, arXiv:1904.02689, section 3; golden/modules.json.
    """

    def __init__(
        self, nc: int, ch: Sequence[int], nm: int = 32, npr: int = 256, **options: Any
    ) -> None:
        super().__init__(nc, ch, **options)
        self.nm = nm
        self.npr = npr
        self.proto = Proto(ch[0], npr, nm)
        self.cv4 = self.branches(ch, max(ch[0] // 4, nm), nm)

    @classmethod
    def head_options(cls, args: Sequence[Any], ctx: BuildContext) -> dict[str, Any]:
        """Plan a row ``[levels, 1, Segment, [nc, nm, npr]]``; `npr` follows the network's width."""
        if len(args) > 3:
            raise ModelError(f"expected at most 3 arguments [nc, nm, npr], got {args!r}")
        given = dict(zip(("nm", "npr"), args[1:], strict=False))
        count = given.get("nm", 1)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ModelError(f"expected nm as a whole number >= 1, got {count!r}")
        if "npr" in given:
            given["npr"] = ctx.scale_width(given["npr"])
        return {**super().head_options(args, ctx), **given}

    def forward(self, feats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Predict at every cell of every level.

        Returns:
            What a detector gives; mask_coefficient (B, N, A); proto (B, N, h, w), twice as fine as
            the finest level.
        """
        raw = super().forward(feats)
        coefficients = [branch(x) for branch, x in zip(self.cv4, feats, strict=True)]
        return raw | {"mask_coefficient": join_levels(coefficients), "proto": self.proto(feats[0])}

    def decode(self, raw: dict[str, Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Turn raw predictions into boxes, scores and coefficients, and prototypes, in float32.

        Returns:
            (B, 4 + C + N, A): boxes_xywh in pixels, scores in 0..1, coefficients; and the
            prototypes (B, N, h, w).
        """
        found = super().decode(raw)
        return torch.cat((found, raw["mask_coefficient"].float()), 1), raw["proto"].float()
