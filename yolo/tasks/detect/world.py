# SPDX-License-Identifier: Apache-2.0
"""The head of an open vocabulary: classes are words, known by their embeddings.

Shapes: B batch, A anchor points, N words, E width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yolo.errors import ModelError
from yolo.nn.anchors import points_like
from yolo.nn.guided import BNContrastiveHead, ContrastiveHead
from yolo.nn.layer import BuildContext, layer
from yolo.tasks.detect.head import Detect, join_levels


@layer(side=True)
class WorldDetect(Detect):
    """`Detect` whose class branches give embeddings, which are compared with those of words.

    No weight's shape depends on the words; `class_width` keeps it so when their number changes.

    Args:
        nc: number of words.
        ch: channels of each level, fine to coarse.
        embed: E.
        with_bn: batch normalisation of image embeddings instead of unit length.
        reg_max: bins per box side.
        class_width: as of `Detect`.

    Attributes:
        text: (N, E) unit vectors, None until `set_text`. No part of the state dict: the network's
            description holds them, beside the names.

    Source: Cheng et al., YOLO-World, arXiv:2401.17270, section 3.2; golden/modules.json.
    """

    text: Tensor | None

    def __init__(
        self,
        nc: int,
        ch: Sequence[int],
        embed: int = 512,
        with_bn: bool = False,
        reg_max: int = 16,
        class_width: int | None = None,
    ) -> None:
        super().__init__(nc, ch, reg_max, class_width)
        self.embed = embed
        self.cv3 = self.branches(ch, max(ch[0], self.class_width), embed)
        self.cv4 = nn.ModuleList(
            BNContrastiveHead(embed) if with_bn else ContrastiveHead() for _ in ch
        )
        self.register_buffer("text", None, persistent=False)

    @property
    def class_layers(self) -> list[nn.Module]:
        """None: there are no rows of classes to sort."""
        return []

    @classmethod
    def head_options(cls, args: Sequence[Any], ctx: BuildContext) -> dict[str, Any]:
        """Plan a row ``[levels, 1, WorldDetect, [nc, embed, with_bn]]``."""
        if len(args) > 3:
            raise ModelError(f"expected at most 3 arguments [nc, embed, with_bn], got {args!r}")
        given = dict(zip(("embed", "with_bn"), args[1:], strict=False))
        return {**super().head_options(args, ctx), **given}

    @property
    def side(self) -> Tensor:
        """(1, N, E): what the guided layers get where a call brings no text of its own.

        Raises:
            ModelError: before `set_text`.
        """
        if self.text is None:
            raise ModelError(
                "the network has no words yet: call set_classes(names, embeddings) first, or "
                "train it with text_embeddings= (docs/world.md)"
            )
        return self.text[None]

    @property
    def example_side(self) -> Tensor:
        """(1, N, E) zeros, to measure the network with."""
        return self.cv3[0].get_parameter("2.bias").new_zeros(1, self.nc, self.embed)

    def set_text(self, text: Tensor) -> None:
        """Take the embeddings (N, E) of other words.

        Raises:
            ModelError: if they are of another width.
        """
        if text.ndim != 2 or text.shape[1] != self.embed:
            raise ModelError(
                f"expected embeddings of shape (words, {self.embed}), found {tuple(text.shape)}; "
                "the network was built for a text encoder of that width"
            )
        self.nc = len(text)
        if self.text is not None and self.text.shape == text.shape:
            self.text.copy_(text)  # counts as a change, where a new tensor may have the old place
        else:
            self.text = text.to(self.cv3[0].get_parameter("2.bias"), copy=True)

    def forward(  # type: ignore[override]
        self, feats: Sequence[Tensor], text: Tensor
    ) -> dict[str, Tensor]:
        """Predict at every cell of every level.

        Args:
            feats: maps (B, ch[i], h, w) of each level, fine to coarse.
            text: (1, N, E) or (B, N, E).

        Returns:
            As of `Detect`, with N classes.
        """
        points, strides = points_like(feats, self.stride)
        levels = zip(self.cv4, self.cv3, feats, strict=True)
        return {
            "boxes": join_levels([branch(x) for branch, x in zip(self.cv2, feats, strict=True)]),
            "scores": join_levels([fit(branch(x), text) for fit, branch, x in levels]),
            "points": points,
            "strides": strides,
        }

    @torch.no_grad()
    def init_bias(self, image_size: int = 640, objects: int = 5) -> None:
        """Start the box biases at 1; those of the classes start in `ContrastiveHead`."""
        for box in self.cv2:
            box.get_parameter("2.bias").fill_(1.0)
