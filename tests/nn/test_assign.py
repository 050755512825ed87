# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import weakref
from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from yolo.errors import ConfigError, UnknownNameError
from yolo.nn import atss, simota  # noqa: F401 - they register themselves
from yolo.nn.anchors import anchor_points
from yolo.nn.assign import (
    ASSIGNERS,
    ROTATED_ASSIGNERS,
    RotatedTaskAlignedAssigner,
    TaskAlignedAssigner,
    build_assigner,
)
from yolo.nn.boxes import xyxy_to_xywh

CASES = (
    "crowded",
    "duplicate_gts",
    "no_objects_at_all",
    "no_objects_padded",
    "normal",
    "tiny",
    "tiny_and_normal",
    "topk3",
    "rot_crowded",
    "rot_empty_image",
    "rot_normal",
    "rot_tiny",
)


def scene(batch=2, objects=5, size=128, classes=4, seed=0, channels_last=False):
    """Predictions near objects, as the assigner's positional arguments."""
    g = torch.Generator().manual_seed(seed)
    strides = (8, 16, 32)
    points, steps = anchor_points([(size // s, size // s) for s in strides], strides)
    points = points * steps
    low = torch.rand(batch, objects, 2, generator=g) * size * 0.7
    gt = torch.cat((low, low + 8 + torch.rand(batch, objects, 2, generator=g) * size * 0.4), -1)
    half = 4 + torch.rand(batch, len(points), 2, generator=g) * size * 0.25
    pred = torch.cat((points - half, points + half), -1)
    scores = torch.rand(batch, classes, len(points), generator=g).mT
    if channels_last:
        scores = scores.contiguous()
    labels = torch.randint(0, classes, (batch, objects), generator=g)
    return scores, pred, points, labels, gt, torch.ones(batch, objects, dtype=torch.bool)


def assert_same(first, second):
    for name in ("fg_mask", "target_gt_idx", "target_labels", "target_bboxes", "quality"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=0)


@pytest.mark.golden
@pytest.mark.parametrize("pairs", [None, 1], ids=["whole", "chunks"])
@pytest.mark.parametrize("case", CASES)
def test_equals_stored_assignment(golden, case, pairs):
    numbers = golden("assigner.npz")
    meta = json.loads(str(numbers[f"{case}/meta"]))
    scores, boxes, points, labels, gt, mask = (
        torch.from_numpy(numbers[f"{case}/in/{name}"])
        for name in ("pd_scores", "pd_bboxes", "anc_points", "gt_labels", "gt_bboxes", "mask_gt")
    )
    kind = RotatedTaskAlignedAssigner if meta["rotated"] else TaskAlignedAssigner
    assigner = kind(meta["topk"], meta["alpha"], meta["beta"], pairs)
    found = assigner(scores, boxes, points, labels[..., 0].long(), gt, mask[..., 0] > 0)
    names = ("target_labels", "target_bboxes", "target_scores", "fg_mask", "target_gt_idx")
    for name, value in zip(names, found, strict=True):
        wanted = torch.from_numpy(numbers[f"{case}/out/{name}"]).to(value.dtype)
        tight = {"rtol": 1e-4, "atol": 1e-6} if name == "target_scores" else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(value, wanted, **tight)


STRIDES = (8, 16, 32)


def run(name, *inputs, rotated=False, **options):
    """Let a registered assigner work on a scene, or on the first anchors of one."""
    registry = ROTATED_ASSIGNERS if rotated else ASSIGNERS
    from_logits = options.pop("from_logits", False)
    size = int((len(inputs[2]) / 21) ** 0.5) * 32
    _, strides = anchor_points([(size // s, size // s) for s in STRIDES], STRIDES)
    return registry[name](**options)(
        *inputs, from_logits=from_logits, strides_px=strides, levels=STRIDES
    )


def turned_scene(**options):
    """A scene of rotated boxes."""
    scores, pred, points, labels, gt, mask = scene(**options)
    g = torch.Generator().manual_seed(9)
    boxes = [
        torch.cat((xyxy_to_xywh(b), torch.rand(*b.shape[:2], 1, generator=g) * 3), -1)
        for b in (pred, gt)
    ]
    return scores, boxes[0], points, labels, boxes[1], mask


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


def test_targets_follow_the_rules():
    scores, pred, points, labels, gt, mask = scene(objects=8)
    found = TaskAlignedAssigner()(scores, pred, points, labels, gt, mask)
    for b, a in found.fg_mask.nonzero().tolist():
        box = gt[b, found.target_gt_idx[b, a]]
        assert (points[a] > box[:2]).all()
        assert (points[a] < box[2:]).all()
    assert (found.quality[~found.fg_mask] == 0).all()
    assert (found.quality >= 0).all()
    assert (found.quality <= 1 + 1e-6).all()
    assert found.fg_mask.sum(1).max() <= TaskAlignedAssigner().max_positives(8, len(points))
    assert found.target_scores.sum(-1).equal(found.quality)
    alone = TaskAlignedAssigner(topk=3)(scores, pred, points, labels[:, :1], gt[:, :1], mask[:, :1])
    assert alone.fg_mask.sum(1).tolist() == [3, 3]


def test_object_without_any_alignment_still_has_foreground():
    scores, pred, points, labels, gt, mask = scene(objects=3)
    far = pred + 1000
    found = TaskAlignedAssigner()(scores, far, points, labels, gt, mask)
    for b in range(2):
        seen = found.target_gt_idx[b][found.fg_mask[b]]
        assert len(seen)
        for a in found.fg_mask[b].nonzero().flatten().tolist():
            box = gt[b, found.target_gt_idx[b, a]]
            assert (points[a] > box[:2]).all()
            assert (points[a] < box[2:]).all()
    assert (found.quality == 0).all()


def test_fewer_anchors_than_topk():
    scores, pred, points, labels, gt, mask = scene(size=32)
    few = slice(-4, None)
    found = TaskAlignedAssigner()(scores[:, few], pred[:, few], points[few], labels, gt, mask)
    assert found.fg_mask.shape == (2, 4)
    assert TaskAlignedAssigner().max_positives(5, 4) == 4


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


class PeakMemory(TorchDispatchMode):
    """Adds up the storage of living tensors; with fake tensors nothing is allocated."""

    def __init__(self):
        super().__init__()
        self.users = Counter()
        self.live = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.watch(tensor)
        return out

    def watch(self, tensor):
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self.users[key] += 1
        if self.users[key] == 1:
            self.live += size
            self.peak = max(self.peak, self.live)
        weakref.finalize(tensor, self.drop, key, size)

    def drop(self, key, size):
        self.users[key] -= 1
        if self.users[key] == 0:
            self.live -= size


def peak_bytes(objects, pairs, batch=16, anchors=8400, classes=80, rotated=False):
    kind = RotatedTaskAlignedAssigner if rotated else TaskAlignedAssigner
    with FakeTensorMode():
        labels = torch.zeros(batch, objects, dtype=torch.int64)
        inputs = (
            torch.empty(batch, anchors, classes),
            torch.empty(batch, anchors, 4 + rotated),
            torch.empty(anchors, 2),
            labels,
            torch.empty(batch, objects, 4 + rotated),
            labels.bool(),
        )
        with PeakMemory() as memory:
            kind(pairs_per_chunk=pairs)(*inputs)
    return memory.peak


def test_crowd_needs_bounded_memory():
    """5,000 objects, batch 16, 8400 anchors: below 2 GB; the dense way would need over 30."""
    assert peak_bytes(5000, 2**24) < 1.5e9  # the chunk of a GPU; a CPU's is smaller
    assert peak_bytes(300, 2**24, rotated=True) < 1.5e9
    assert peak_bytes(100, 10**9) > 5 * peak_bytes(100, 2**19)


@pytest.mark.slow
def test_full_crowd_equals_the_dense_result_image_by_image():
    scores, pred, points, labels, gt, mask = scene(batch=16, objects=5000, size=640, classes=80)
    found = TaskAlignedAssigner()(scores, pred, points, labels, gt, mask)
    for b in (0, 15):
        one = slice(b, b + 1)
        dense = TaskAlignedAssigner(pairs_per_chunk=10**9)(
            scores[one], pred[one], points, labels[one], gt[one], mask[one]
        )
        for name in ("fg_mask", "target_gt_idx", "quality"):
            assert torch.equal(getattr(found, name)[one], getattr(dense, name))


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
