# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from crowds import STRIDES, assert_same, scene, turned_scene
from yolo.errors import ConfigError, UnknownNameError
from yolo.nn import atss, simota  # noqa: F401 - they register themselves
from yolo.nn.anchors import anchor_points
from yolo.nn.assign import ASSIGNERS, ROTATED_ASSIGNERS, build_assigner
from yolo.nn.task_aligned import RotatedTaskAlignedAssigner, TaskAlignedAssigner


def run(name, *inputs, rotated=False, **options):
    """Let a registered assigner work on a scene, or on the first anchors of one."""
    registry = ROTATED_ASSIGNERS if rotated else ASSIGNERS
    from_logits = options.pop("from_logits", False)
    size = int((len(inputs[2]) / 21) ** 0.5) * 32
    _, strides = anchor_points([(size // s, size // s) for s in STRIDES], STRIDES)
    return registry[name](**options)(
        *inputs, from_logits=from_logits, strides_px=strides, levels=STRIDES
    )


KINDS = [(name, turned) for name in sorted(ASSIGNERS) for turned in (False, True)]
every_assigner = pytest.mark.parametrize(("name", "turned"), KINDS)


def test_rotated_assigners_have_the_same_names():
    assert set(ASSIGNERS) == set(ROTATED_ASSIGNERS)


@every_assigner
@pytest.mark.parametrize("objects", [0, 1, 60])
def test_chunks_give_the_dense_result(name, turned, objects):
    inputs = (turned_scene if turned else scene)(objects=objects)
    dense = run(name, *inputs, rotated=turned, pairs_per_chunk=10**9)
    for pairs in (1, 2 * 336 * 7):
        assert_same(run(name, *inputs, rotated=turned, pairs_per_chunk=pairs), dense)
    assert dense.fg_mask.any() == (objects > 0)
    assert dense.fg_mask.shape == dense.quality.shape == (2, 336)


@every_assigner
def test_logits_and_memory_layout_do_not_matter(name, turned):
    scores, *rest = (turned_scene if turned else scene)()
    wanted = run(name, scores, *rest, rotated=turned)
    assert_same(run(name, scores.contiguous(), *rest, rotated=turned), wanted)
    logits = run(name, scores.logit(), *rest, rotated=turned, from_logits=True)
    torch.testing.assert_close(logits.quality, wanted.quality)
    torch.testing.assert_close(logits.target_gt_idx, wanted.target_gt_idx)


@every_assigner
def test_no_object_in_reach_stays_without(name, turned):
    """One object an image, far enough from others: it has foreground, inside or near it."""
    scores, pred, points, labels, gt, mask = (turned_scene if turned else scene)(objects=1)
    for far in (0, 1000):  # whatever the network predicts
        moved = pred.clone()
        moved[..., : 2 if turned else 4] += far
        found = run(name, scores, moved, points, labels, gt, mask, rotated=turned)
        assert (found.fg_mask.sum(1) >= 1).all()
        assert (found.fg_mask.sum(1) <= ASSIGNERS[name]().max_positives(1, len(points))).all()
    assert (found.quality >= 0).all()
    assert (found.quality <= 1 + 1e-6).all()
    assert (found.quality[~found.fg_mask] == 0).all()


@every_assigner
def test_order_of_objects_does_not_matter(name, turned):
    inputs = (turned_scene if turned else scene)(objects=12)
    scores, pred, points, labels, gt, mask = inputs
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    wanted = run(name, *inputs, rotated=turned)
    mixed = scores, pred, points, labels[:, order], gt[:, order], mask
    found = run(name, *mixed, rotated=turned)
    assert torch.equal(found.fg_mask, wanted.fg_mask)
    assert torch.equal(found.quality, wanted.quality)
    fg = wanted.fg_mask
    assert torch.equal(order[found.target_gt_idx[fg]], wanted.target_gt_idx[fg])


@every_assigner
def test_images_and_padding_do_not_matter(name, turned):
    scores, pred, points, labels, gt, mask = (turned_scene if turned else scene)(batch=3)
    together = run(name, scores, pred, points, labels, gt, mask, rotated=turned)
    for b in range(3):
        one = slice(b, b + 1)
        padded_gt = torch.cat((gt[one], torch.full((1, 2, gt.shape[2]), 50.0)), 1)
        padded_labels = torch.cat((labels[one], torch.zeros(1, 2, dtype=torch.int64)), 1)
        padded_mask = torch.cat((mask[one], torch.zeros(1, 2, dtype=torch.bool)), 1)
        padded = scores[one], pred[one], points, padded_labels, padded_gt, padded_mask
        alone = run(name, *padded, rotated=turned)
        for part in ("fg_mask", "target_gt_idx", "quality"):
            assert torch.equal(getattr(alone, part), getattr(together, part)[one])


@pytest.mark.usefixtures("as_on_gpu")
@every_assigner
@pytest.mark.parametrize("objects", [0, 7])
def test_no_data_dependent_shape_and_no_copy_to_the_host(name, turned, objects):
    size = 4 + turned
    with FakeTensorMode():
        labels = torch.zeros(2, objects, dtype=torch.int64)
        registry = ROTATED_ASSIGNERS if turned else ASSIGNERS
        found = registry[name](pairs_per_chunk=3 * 2 * 336)(
            torch.rand(2, 336, 4),
            torch.rand(2, 336, size),
            torch.rand(336, 2),
            labels,
            torch.rand(2, objects, size),
            labels.bool(),
            strides_px=torch.rand(336, 1),
            levels=STRIDES,
        )
    assert [tuple(t.shape) for t in found] == [
        (2, 336),
        (2, 336, size),
        (2, 336, 4),
        (2, 336),
        (2, 336),
    ]


def test_choice_by_name_options_or_object():
    assert isinstance(build_assigner("task_aligned"), TaskAlignedAssigner)
    assert build_assigner({"name": "task_aligned", "topk": 13}).topk == 13
    own = TaskAlignedAssigner()
    assert build_assigner(own) is own
    assert "task_aligned" in ASSIGNERS
    rotated = build_assigner({"name": "task_aligned", "topk": 5}, ROTATED_ASSIGNERS)
    assert isinstance(rotated, RotatedTaskAlignedAssigner)
    assert rotated.topk == 5


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        ("task_alined", UnknownNameError, "task_aligned"),
        ({"topk": 3}, ConfigError, "needs a 'name'"),
        ({"name": "task_aligned", "topkk": 3}, ConfigError, "topkk"),
        ({"name": "task_aligned", "topk": 0}, ConfigError, "at least 1"),
    ],
)
def test_wrong_choice_is_explained(choice, error, message):
    with pytest.raises(error, match=message):
        build_assigner(choice)
