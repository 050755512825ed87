# SPDX-License-Identifier: Apache-2.0
"""The pose criterion: detection's terms, keypoint similarity and keypoint visibility.

Shape letters: B batch, n gt slots, M positions that may be positive, K keypoints, D 2 or 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yolo.nn.losses import Targets
from yolo.tasks.detect.loss import DetectionCriterion, Positives, gather_anchors
from yolo.tasks.pose.data import oks_sigmas
from yolo.tasks.pose.head import keypoint_cells


class PoseCriterion(DetectionCriterion):
    """Loss of a pose head.

    Targets carry `extras["keypoints"]` (B, n, K, 3): x, y in pixels, visibility (0: absent). Every
    positive counts alike in both keypoint terms, whatever its quality; where the head predicts no
    visibility (D = 2), `kobj` is 0.

    Args:
        num_classes: C.
        strides: pixels of each level's stride, finest first.
        reg_max: bins a box side.
        kpt_shape: (K, D).
        sigmas: spread of each keypoint; None takes `oks_sigmas`.
        pose: gain of the position term.
        kobj: gain of the visibility term.
        **options: those of `DetectionCriterion`.
    """

    names: tuple[str, ...] = ("box", "pose", "kobj", "cls", "dfl")
    sigmas: Tensor

    def __init__(
        self,
        num_classes: int,
        strides: Sequence[int],
        reg_max: int = 16,
        *,
        kpt_shape: tuple[int, int] = (17, 3),
        sigmas: Sequence[float] | None = None,
        pose: float = 12.0,
        kobj: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, strides, reg_max, **options)
        self.kpt_shape = kpt_shape
        self.gains |= {"pose": pose, "kobj": kobj}
        spreads = torch.from_numpy(oks_sigmas(*kpt_shape, sigmas)).float()
        self.register_buffer("sigmas", spreads, persistent=False)

    def terms(
        self, raw: Mapping[str, Tensor], targets: Targets, positives: Positives
    ) -> dict[str, Tensor]:
        """Return the scalar terms by name, normalised, without gains."""
        return super().terms(raw, targets, positives) | self.keypoint_terms(raw, targets, positives)

    def keypoint_terms(
        self, raw: Mapping[str, Tensor], targets: Targets, positives: Positives
    ) -> dict[str, Tensor]:
        """Return dissimilarity and the cross-entropy of visibility, means over all positives."""
        strides = raw["strides"][positives.index]
        anchors = raw["points"][positives.index][:, :, None]
        given = gather_anchors(raw["kpts"], positives.index).mT.unflatten(2, self.kpt_shape)
        labels = targets.extras["keypoints"].flatten(2)
        slots = positives.gt_index[..., None].expand(-1, -1, labels.shape[2])
        wanted = labels.gather(1, slots).unflatten(2, (-1, 3))
        visible = (wanted[..., 2] > 0).float()

        sides = (positives.boxes[..., 2:] - positives.boxes[..., :2]) / strides
        places = wanted[..., :2] / strides[..., None]
        pred = keypoint_cells(given[..., :2], anchors)
        unlike = keypoint_loss(pred, places, visible, sides.prod(-1), self.sigmas)

        count = self.sum_over_ranks(positives.mask.sum()).clamp(min=1)
        share = positives.mask / count
        terms = {"pose": (unlike * share).sum(), "kobj": raw["kpts"].new_zeros(())}
        if self.kpt_shape[1] == 3:
            entropy = F.binary_cross_entropy_with_logits(given[..., 2], visible, reduction="none")
            terms["kobj"] = (entropy.mean(-1) * share).sum()
        return terms


def keypoint_loss(
    pred: Tensor, target: Tensor, visible: Tensor, area: Tensor, sigmas: Tensor
) -> Tensor:
    """One minus the object keypoint similarity, averaged over the visible keypoints.

    Args:
        pred: (..., K, 2) positions.
        target: (..., K, 2) positions, in the same unit.
        visible: (..., K) 1 where a keypoint counts, else 0.
        area: (...) of the object, that unit squared.
        sigmas: (K,) spread of each keypoint.

    Returns:
        (...) in 0..1; 0 where no keypoint is visible.

    Source: https://cocodataset.org/#keypoints-eval; as a loss, Maji et al., YOLO-Pose,
    arXiv:2204.06806, section 3.3. The area is the box's, as in the reference builds.
    """
    distance = (pred - target).square().sum(-1)
    spread = (2 * sigmas).square() * (area[..., None] + 1e-9) * 2
    unlike = -torch.expm1(-distance / spread)
    return (unlike * visible).sum(-1) / (visible.sum(-1) + 1e-9)
