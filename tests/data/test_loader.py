# SPDX-License-Identifier: Apache-2.0
"""Loaders: the same batches whatever makes them, every image once, mistakes in one line."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from painted import Index, MemoryStore, painted, write
from yolo.data.cache import ImageStore
from yolo.data.loader import Batch, TrainLoader, ValLoader, batch_edges, normalize
from yolo.data.recent import SharedRecent
from yolo.data.recipe import Augment
from yolo.data.sample import Instances, Sample
from yolo.errors import ConfigError, CorruptImageError, DataError

SIZE = (64, 64)
SHAPES = [(30, 40), (80, 50), (64, 64), (20, 100), (48, 64), (40, 30), (64, 50)]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    rng = np.random.default_rng(0)
    made = [painted(rng, SHAPES[i % 7], [i % 6]) for i in range(11)]
    paths = write(tmp_path_factory.mktemp("images"), [m[0] for m in made])
    shapes = np.array([m[0].shape[:2] for m in made])
    return Index([m[1] for m in made], shapes, paths)


@pytest.fixture(scope="module")
def store(index):
    return ImageStore(index, SIZE)


def train(index, store, augment=None, **options):
    augment = Augment(flip_idx=(1, 0, 3, 2)) if augment is None else augment
    return TrainLoader(index, store, augment, **{"batch": 4, "size": SIZE, **options})


def same(a: Batch, b: Batch) -> bool:
    return (
        torch.equal(a.images, b.images)
        and torch.equal(a.targets.boxes, b.targets.boxes)
        and torch.equal(a.targets.classes, b.targets.classes)
        and torch.equal(a.targets.mask, b.targets.mask)
        and (a.indices, a.paths, a.original_shapes) == (b.indices, b.paths, b.original_shapes)
    )


def keypoint_count(samples, size):
    return {"points": torch.tensor([len(s.instances) for s in samples])}


def test_workers_change_nothing(index, store):
    here = train(index, store, extras=keypoint_count)
    own = ImageStore(index, SIZE)
    there = train(index, own, workers=2, extras=keypoint_count)
    assert isinstance(own.kept, SharedRecent)
    for epoch in (0, 1):
        pairs = list(zip(here.epoch(epoch), there.epoch(epoch), strict=True))
        assert len(pairs) == len(here) == 3
        assert all(same(a, b) for a, b in pairs)
        assert all(
            torch.equal(a.targets.extras["points"], b.targets.extras["points"]) for a, b in pairs
        )
    # An epoch that was left in the middle, and one entered in the middle.
    next(there.epoch(2))
    late = list(there.epoch(3, start_batch=1))
    assert all(same(a, b) for a, b in zip(late, list(here.epoch(3))[1:], strict=True))
    iterator = there._line._loader._iterator
    there.close()
    assert not any(worker.is_alive() for worker in iterator._workers)
    assert same(next(there.epoch(0)), next(here.epoch(0)))  # starts again
    there.close()


def test_every_image_once_an_epoch_over_all_ranks(index, store):
    whole = [sorted(b.indices) for b in train(index, store).epoch(5)]
    assert sorted(i for b in whole for i in b) == list(range(11))
    assert [len(b) for b in whole] == [4, 4, 3]
    parts = [list(train(index, store, rank=r, world=3).epoch(5)) for r in range(3)]
    shares = [sorted(j for p in parts for j in p[i].indices) for i in range(3)]
    assert shares == whole
    pixels = torch.cat([p[0].images for p in parts])
    assert torch.equal(pixels, next(train(index, store).epoch(5)).images)


@pytest.mark.parametrize(
    ("count", "batch", "world", "edges"),
    [(11, 4, 1, [0, 4, 8, 11]), (9, 4, 1, [0, 4, 8, 9]), (9, 4, 2, [0, 4, 9]), (3, 4, 4, [0, 3])],
)
def test_edges(count, batch, world, edges):
    assert batch_edges(count, batch, world) == edges


def test_a_rank_without_images_gets_an_empty_batch(index, store):
    few = Index(index.labels[:1], index.shapes[:1], index.paths[:1])
    (batch,) = train(few, ImageStore(few, SIZE), rank=0, world=2).epoch(0)
    assert batch.images.shape == (0, 64, 64, 3)
    assert normalize(batch.images).shape == (0, 3, 64, 64)


def test_a_batch_has_the_type_of_the_images(tmp_path):
    """The first file can't be read, and doesn't decide."""
    deep = np.full((64, 64, 1), 40_000, np.uint16)
    paths = write(tmp_path, [deep] * 3)
    Path(paths[0]).write_bytes(b"junk")
    labels = [Instances.empty()] * 3
    few = Index(labels, np.full((3, 2), 64), paths)
    store = ImageStore(few, SIZE, channels=1, mode="ram")
    assert store.dtype == np.uint16
    empty = train(few, store, rank=0, world=4)
    assert [b.images.dtype for b in empty.epoch(0)] == [torch.uint16]
    np.testing.assert_array_equal(store.load(1), deep)
    assert store.kept.get(1) is not None


def test_seed_and_epoch_matter(index, store):
    first = next(train(index, store, seed=1).epoch(0))
    assert same(first, next(train(index, store, seed=1).epoch(0)))
    assert not same(first, next(train(index, store, seed=2).epoch(0)))
    assert not same(first, next(train(index, store, seed=1).epoch(1)))


def test_nothing_global_is_touched(index, store):
    torch.manual_seed(1)
    np.random.seed(1)  # the global state is what is looked at
    random.seed(1)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    threads = (cv2.getNumThreads(), torch.get_num_threads())
    loader = train(index, store, workers=1)
    list(loader.epoch(0))
    list(train(index, store).epoch(0))
    loader.close()
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert (cv2.getNumThreads(), torch.get_num_threads()) == threads


def test_images_are_rgb(index, store):
    (batch,) = train(index, store, Augment.off(), batch=11).epoch(0)
    for image, i in zip(batch.images, batch.indices, strict=True):
        loaded = store.load(i)
        top, left = (64 - loaded.shape[0]) // 2, (64 - loaded.shape[1]) // 2
        inner = image[top : top + loaded.shape[0], left : left + loaded.shape[1]]
        np.testing.assert_array_equal(inner.numpy(), loaded[..., ::-1])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_one_line(index, workers, tmp_path):
    paths = list(index.paths)
    paths[3] = str(tmp_path / "broken.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    broken = Index(index.labels, index.shapes, paths)
    loader = train(broken, ImageStore(broken, SIZE), workers=workers)
    with pytest.raises(DataError, match=r"broken\.png") as caught:
        list(loader.epoch(0))
    assert "Traceback" not in str(caught.value)
    loader.close()


@pytest.mark.parametrize("mode", [False, "ram"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_costs_itself_alone(index, mode, workers, tmp_path, caplog):
    """Its header is sound, so that the scan can't notice."""
    data = bytearray(cv2.imencode(".png", np.full((30, 40, 3), 7, np.uint8))[1].tobytes())
    start = data.index(b"IDAT") + 4
    data[start : start + 8] = b"\xff" * 8
    (tmp_path / "corrupt.png").write_bytes(data)
    paths = [str(tmp_path / "corrupt.png"), *index.paths[1:]]
    some = Index(index.labels, index.shapes, paths)
    assert index.shapes[0].tolist() == [30, 40]
    store = ImageStore(some, SIZE, mode=mode)
    loader = train(some, store, Augment.off(), batch=11, workers=workers)
    for _ in range(2):
        (batch,) = loader.epoch(0)
        row = batch.indices.index(0)
        assert not batch.targets.mask[row].any()
        assert (batch.images[row] == 114).all()
        assert batch.targets.mask.any(1).sum() == 10
    loader.close()
    check = ValLoader(some, store, batch=4, size=SIZE, rect=False, workers=workers)
    assert sorted(i for b in check for i in b.indices) == list(range(1, 11))
    check.close()
    lone = Index(index.labels[:1], index.shapes[:1], paths[:1])
    assert list(ValLoader(lone, ImageStore(lone, SIZE), batch=4, size=SIZE)) == []
    if not workers:
        assert sum("corrupt.png" in m for m in caplog.messages) == 2  # once a store
    with pytest.raises(CorruptImageError, match=r"corrupt\.png: the image is corrupt"):
        ImageStore(some, SIZE, strict=True).load(0)


def spoil(sample: Sample) -> Sample:
    sample.instances.boxes = sample.instances.boxes * np.nan
    return sample


def test_a_broken_transform_is_named(index, store):
    loader = train(index, store, Augment(custom=(spoil,), mosaic=0), workers=1)
    with pytest.raises(DataError, match=r"^transform 'spoil'"):
        list(loader.epoch(0))
    loader.close()


def test_rect_groups_like_shapes(index, store):
    loader = train(index, store, rect=True, batch=3, stride=8)
    seen, sizes = [], set()
    for batch in loader.epoch(0):
        seen += batch.indices
        shapes = [store.loaded_shape(i) for i in batch.indices]
        need = np.array(shapes).max(0)
        assert tuple(batch.images.shape[1:3]) == tuple(-(-need // 8) * 8)
        assert batch.targets.size == tuple(batch.images.shape[1:3])
        sizes.add(batch.targets.size)
    assert sorted(seen) == list(range(11))
    assert len(sizes) > 1
    with_workers = train(index, store, rect=True, batch=3, stride=8, workers=2)
    assert all(same(a, b) for a, b in zip(with_workers.epoch(1), loader.epoch(1), strict=True))
    with_workers.close()


def test_keypoints_without_flip_idx_are_never_mirrored(index, store, caplog):
    posed = replace(index, kpt_shape=(4, 3))
    loader = train(posed, store, Augment(fliplr=1.0, mosaic=0, translate=0, scale=0))
    assert "flips are off" in caplog.text
    plain = train(index, store, Augment(fliplr=0.0, mosaic=0, translate=0, scale=0))
    assert same(next(loader.epoch(0)), next(plain.epoch(0)))


def test_an_epoch_without_mixing(index, store):
    gains = replace(Augment.off(), mosaic=1.0)
    closing = train(index, store, gains, seed=3)
    plain = train(index, store, Augment.off(), seed=3)
    assert not same(next(closing.epoch(1)), next(plain.epoch(1)))
    assert same(next(closing.epoch(1, mixing=False)), next(plain.epoch(1)))


def test_balanced_classes():
    labels = [Instances.from_boxes([c], [[1, 1, 9, 9]]) for c in [0] * 9 + [1]]
    some = Index(labels, np.full((10, 2), 20), [])
    images, classes = np.arange(10), np.array([0] * 9 + [1])
    some.objects = lambda: (images, classes)
    store = MemoryStore([np.zeros((20, 20, 3), np.uint8)] * 10, labels, SIZE)
    store.dtype = np.dtype(np.uint8)
    loader = train(some, store, Augment.off(), sampler="balanced", batch=5)
    for epoch in (0, 1):
        drawn = torch.cat([batch.targets.classes.flatten() for batch in loader.epoch(epoch)])
        assert torch.bincount(drawn).tolist() == [5, 5]
    with pytest.raises(ConfigError, match="expected rect=True or sampler='balanced', found both"):
        train(some, store, sampler="balanced", rect=True)


def test_no_images():
    nothing = Index([], np.zeros((0, 2), int))
    with pytest.raises(DataError, match="expected images to train on"):
        train(nothing, ImageStore(nothing, SIZE))
    assert list(ValLoader(nothing, ImageStore(nothing, SIZE), batch=2, size=SIZE)) == []


@pytest.mark.parametrize("rect", [True, False])
def test_validation_images_depend_on_themselves(index, store, rect):
    def every(batch, workers=0):
        loader = ValLoader(index, store, batch=batch, size=SIZE, rect=rect, workers=workers)
        found = {}
        for b in loader:
            assert len(b) <= batch
            for row, i in enumerate(b.indices):
                real = b.targets.mask[row]
                found[i] = (b.images[row], b.targets.boxes[row][real], b.placements[row])
        loader.close()
        return found

    alone, together = every(1), every(5, workers=2)
    assert sorted(alone) == sorted(together) == list(range(11))
    for i, (image, boxes, placement) in alone.items():
        assert torch.equal(image, together[i][0])
        assert torch.equal(boxes, together[i][1])
        original = index.labels[i].boxes
        np.testing.assert_allclose(placement.to_original(boxes.numpy()), original, atol=1e-3)
        assert placement.original == index.shape(i)
        if not rect:
            assert tuple(image.shape) == (64, 64, 3)


def test_validation_over_ranks(index, store):
    ranks = [ValLoader(index, store, batch=2, size=SIZE, rank=r, world=3) for r in range(3)]
    found = [i for loader in ranks for b in loader for i in b.indices]
    assert sorted(found) == list(range(11))
    loader = ranks[0]
    assert [b.indices for b in loader] == [b.indices for b in loader]
    assert len(list(loader)) == len(loader)


def test_ignored_regions_reach_the_targets(index, store):
    labels = [Instances.from_boxes([0], [[1, 1, 20, 20]], ignore=np.array([True]))] * 11
    crowded = Index(labels, index.shapes, index.paths)
    batch = next(iter(ValLoader(crowded, ImageStore(crowded, SIZE), batch=2, size=SIZE)))
    assert batch.targets.boxes.shape[1] == 0
    assert batch.targets.ignore.shape[1] == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_class_that_the_dataset_does_not_have(index, workers):
    def mine(sample):
        sample.instances.classes[:] = 6
        return sample

    known = Index(index.labels, index.shapes, index.paths)
    known.num_classes = 6
    loader = train(known, ImageStore(known, SIZE), Augment(custom=(mine,)), workers=workers)
    with pytest.raises(DataError, match=r"\.png: expected class ids from 0 to 5, found 6; a trans"):
        list(loader.epoch(0))
    loader.close()
