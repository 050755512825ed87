# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from yolo.nn.losses import Targets, dfl_loss


@pytest.mark.golden
def test_dfl_equals_stored_values(golden):
    numbers = golden("geometry.npz")
    logits = torch.from_numpy(numbers["dfl/pred"]).view(-1, 4, 16)
    found = dfl_loss(logits, torch.from_numpy(numbers["dfl/target"]))
    wanted = torch.from_numpy(numbers["dfl/loss"])[:, 0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_dfl_is_least_where_the_bins_are_split_as_the_distance_is():
    logits = torch.full((1, 4, 8), -30.0)
    logits[..., 2], logits[..., 3] = torch.log(torch.tensor([0.25, 0.75])).tolist()
    logits.requires_grad_()
    dfl_loss(logits, torch.full((1, 4), 2.75)).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=1e-6)


def test_targets_move_with_everything_they_hold():
    targets = Targets(
        classes=torch.zeros(1, 2, dtype=torch.int64),
        boxes=torch.zeros(1, 2, 4),
        mask=torch.ones(1, 2, dtype=torch.bool),
        ignore=torch.zeros(1, 1, 4),
        size=(64, 96),
        extras={"keypoints": torch.zeros(1, 2, 17, 3)},
    )
    moved = targets.to("meta")
    tensors = [moved.classes, moved.boxes, moved.mask, moved.ignore, moved.extras["keypoints"]]
    assert all(t.is_meta for t in tensors)
    assert moved.size == (64, 96)
    assert targets.to("cpu").ignore is not None
    assert Targets(targets.classes, targets.boxes, targets.mask).to("meta").ignore is None
