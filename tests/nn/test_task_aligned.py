# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import weakref
from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from crowds import assert_same, scene, turned_scene
from yolo.nn import assign
from yolo.nn.task_aligned import (
    RotatedTaskAlignedAssigner,
    TaskAlignedAssigner,
    first_of_each,
)

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


@pytest.mark.golden
@pytest.mark.parametrize("pairs", [None, 1], ids=["whole", "chunks"])
@pytest.mark.parametrize("host", [True, False], ids=["host", "gpu"])
@pytest.mark.parametrize("case", CASES)
def test_equals_stored_assignment(golden, case, host, pairs, request):
    if not host:
        request.getfixturevalue("as_on_gpu")
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


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("objects", [1, 5, 60])
def test_pairs_inside_alone_give_what_all_pairs_give(objects, rotated, monkeypatch):
    inputs = (turned_scene if rotated else scene)(objects=objects, batch=3)
    inputs[-1][1, objects // 2 :] = False
    for chunk in (None, 2 * 336 * 7):
        assigner = (RotatedTaskAlignedAssigner if rotated else TaskAlignedAssigner)(4)
        assigner.pairs_per_chunk = chunk
        found = assigner(*inputs)
        with monkeypatch.context() as patch:
            patch.setattr(assign, "HOST", set())
            wanted = assigner(*inputs)
        assert wanted.fg_mask.any()
        assert_same(found, wanted)


def test_first_of_each_group():
    value = torch.tensor([0.1, 0.4, 0.5, 0.9, 0.2, 0.7, 0.0])
    group = torch.tensor([0, 0, 0, 0, 2, 2, 3])
    assert sorted(first_of_each(value, group, 5, 2).tolist()) == [2, 3, 4, 5, 6]
    assert first_of_each(value[:0], group[:0], 5, 2).tolist() == []


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


@pytest.mark.usefixtures("as_on_gpu")
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
