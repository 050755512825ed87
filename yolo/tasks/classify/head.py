# SPDX-License-Identifier: Apache-2.0
"""The classification head. Shapes: B batch, C classes, H W cells of the last map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from yolo.errors import ModelError
from yolo.nn.conv import Conv, PiecewiseLinear, class_pieces
from yolo.nn.layer import BuildContext, Plan, layer

WIDTH = 1280
"""Channels before the last layer; not scaled with the network."""


@layer
class Classify(nn.Module):
    """1x1 Conv, mean over the map, dropout, linear layer.

    Args:
        c_in: channels of the map.
        nc: number of classes.
        dropout: share of features dropped in training; a training run sets it by its option.
        class_pieces: numbers of classes that are computed together; none: all.

    Source: golden/modules.json.
    """

    def __init__(
        self, c_in: int, nc: int, dropout: float = 0.0, class_pieces: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.conv = Conv(c_in, WIDTH, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(dropout)
        self.class_pieces = tuple(class_pieces) or (nc,)
        several = len(self.class_pieces) > 1
        self.linear = PiecewiseLinear(WIDTH, class_pieces) if several else nn.Linear(WIDTH, nc)

    @classmethod
    def plan(cls, args: Sequence[Any], ctx: BuildContext) -> Plan:
        """Plan a row ``[-1, 1, Classify, [nc]]``.

        Raises:
            ModelError: if the class count isn't the network's.
        """
        if args and args[0] != ctx.num_classes:
            raise ModelError(
                f"expected nc as the network has it, {ctx.num_classes}, got {args[0]!r}; write nc"
            )
        options: dict[str, Any] = {"c_in": ctx.only_input, "nc": ctx.num_classes}
        pieces = class_pieces(ctx)
        return Plan(options | ({"class_pieces": pieces} if len(pieces) > 1 else {}), 0)

    def keys_for(self, count: int) -> dict[str, Any]:
        """Return the network's keys that keep this layer's outputs when there are `count`."""
        known = sum(self.class_pieces)
        return {"class_pieces": [*self.class_pieces, count - known]}

    @property
    def class_layers(self) -> list[nn.Module]:
        """The layers with one output a class; fine-tuning sorts their rows by class name."""
        return [self.linear]

    def forward(self, feats: Tensor) -> dict[str, Tensor]:
        """Map (B, c_in, H, W) to `logits` (B, C)."""
        pooled = self.pool(self.conv(feats)).flatten(1)
        return {"logits": self.linear(self.drop(pooled))}

    def decode(self, raw: Mapping[str, Tensor]) -> Tensor:
        """Return the probabilities (B, C), float32."""
        return raw["logits"].float().softmax(1)
