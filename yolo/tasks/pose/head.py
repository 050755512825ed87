# SPDX-License-Identifier: Apache-2.0
"""The pose head: a detection head with a keypoint branch.

Shapes: B batch, A anchor points, C classes, K keypoints, D 2 or 3 numbers a keypoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from yolo.errors import ModelError
from yolo.nn.layer import BuildContext, layer
from yolo.tasks.detect.head import Detect, join_levels


@layer
class Pose(Detect):
    """Boxes, classes and keypoints on every level; the keypoint branches are `cv4`.

    Args:
        nc: number of classes.
        kpt_shape: (K, D); with D = 3 a visibility is predicted, too.
        ch: channels of each level, fine to coarse.
        **options: those of `Detect`.

    Source: golden/modules.json; keypoints regressed beside boxes as in Maji et al., YOLO-Pose,
    arXiv:2204.06806, section 3.
    """

    def __init__(
        self, nc: int, kpt_shape: Sequence[int], ch: Sequence[int], **options: Any
    ) -> None:
        super().__init__(nc, ch, **options)
        self.kpt_shape = (kpt_shape[0], kpt_shape[1])
        numbers = kpt_shape[0] * kpt_shape[1]
        self.cv4 = self.branches(ch, max(ch[0] // 4, numbers), numbers)

    @classmethod
    def head_options(cls, args: Sequence[Any], ctx: BuildContext) -> dict[str, Any]:
        """Plan a row ``[levels, 1, Pose, [nc, kpt_shape]]``; `kpt_shape` is a network's key."""
        shape: Any = ctx.options.get("kpt_shape")
        numbers = shape if isinstance(shape, (list, tuple)) and len(shape) == 2 else (0, 0)
        if not all(type(n) is int for n in numbers) or numbers[0] < 1 or numbers[1] not in (2, 3):
            raise ModelError(
                f"expected the network's key kpt_shape: [keypoints, 2 or 3], got {shape!r}"
            )
        if len(args) > 1 and args[1] != shape:
            raise ModelError(
                f"expected kpt_shape as the network has it, {shape}, got {args[1]!r}; "
                "write kpt_shape"
            )
        return {**super().head_options(args, ctx), "kpt_shape": tuple(shape)}

    def forward(self, feats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Predict as `Detect` does; kpts (B, K*D, A) are raw x, y [, visibility logit] by turns."""
        kpts = join_levels([branch(x) for branch, x in zip(self.cv4, feats, strict=True)])
        return {**super().forward(feats), "kpts": kpts}

    def decode(self, raw: dict[str, Tensor]) -> Tensor:
        """Turn raw predictions into boxes, scores and keypoints, float32.

        Returns:
            (B, 4 + C + K*D, A): what `Detect` gives, then x, y in pixels and the visibility 0..1
            of each keypoint.
        """
        given = raw["kpts"].float().unflatten(1, self.kpt_shape)
        anchors = raw["points"].mT
        points = keypoint_cells(given[:, :, :2], anchors) * raw["strides"].mT
        parts = (points, given[:, :, 2:].sigmoid())  # without visibility the second is empty
        return torch.cat((super().decode(raw), torch.cat(parts, 2).flatten(1, 2)), 1)


def keypoint_cells(raw: Tensor, anchors: Tensor) -> Tensor:
    """Return keypoint positions in grid units: twice the raw offset from the cell's corner.

    Args:
        raw: (..., 2, A) raw x and y.
        anchors: anchor points that broadcast with it, cell centres in grid units.
    """
    return raw * 2 + (anchors - 0.5)
