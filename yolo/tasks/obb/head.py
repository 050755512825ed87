# SPDX-License-Identifier: Apache-2.0
"""The detection head with a branch for the box's angle.

Shapes: B batch, A anchor points, C classes, E extra values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from yolo.errors import ModelError
from yolo.nn.layer import BuildContext, layer
from yolo.nn.rotated import ltrb_to_boxes
from yolo.tasks.detect.head import Detect, join_levels


@layer
class OBB(Detect):
    """Box, class and angle branches on every level.

    Distances are along the box's own axes, so the box turns about its anchor point. The angle
    branch stands under the state-dict key `cv4`.

    Args:
        nc: number of classes.
        ch: channels of each level, fine to coarse.
        ne: extra values, of which there is one, the angle.
        **options: those of `Detect`.

    Source: golden/modules.json.
    """

    def __init__(self, nc: int, ch: Sequence[int], ne: int = 1, **options: Any) -> None:
        super().__init__(nc, ch, **options)
        self.ne = ne
        self.cv4 = self.branches(ch, max(ch[0] // 4, ne), ne)

    @classmethod
    def head_options(cls, args: Sequence[Any], ctx: BuildContext) -> dict[str, Any]:
        """Give the constructor's arguments for a row ``[levels, 1, OBB, [nc, 1]]``.

        Raises:
            ModelError: if the row asks for another number of angles.
        """
        angles = args[1] if len(args) > 1 else 1
        if angles != 1:
            raise ModelError(f"expected one angle a box, OBB: [nc, 1], got {angles!r}")
        return super().head_options(args[:1], ctx) | {"ne": 1}

    def forward(self, feats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Predict at every cell of every level.

        Args:
            feats: maps (B, ch[i], h, w) of each level, fine to coarse.

        Returns:
            As `Detect.forward`, and angle (B, E, A): radians in [-pi/4, 3 pi/4).
        """
        raw = super().forward(feats)
        turn = join_levels([branch(x) for branch, x in zip(self.cv4, feats, strict=True)])
        return raw | {"angle": (turn.float().sigmoid() - 0.25) * math.pi}

    def decode(self, raw: dict[str, Tensor]) -> Tensor:
        """Turn raw predictions into boxes, scores and angles, in float32.

        Returns:
            (B, 4 + C + 1, A): centre x and y, w and h in pixels; scores in 0..1; angle in radians.
        """
        angle = raw["angle"].float()
        boxes = ltrb_to_boxes(self.distances(raw).mT, angle.mT, raw["points"])
        boxes = (boxes[..., :4] * raw["strides"]).mT
        return torch.cat((boxes, raw["scores"].float().sigmoid(), angle), 1)
