# SPDX-License-Identifier: Apache-2.0
"""Batches for classification: crops, colours, reproducibility, balanced epochs."""

from __future__ import annotations

import random

import cv2
import numpy as np
import pytest
import torch

from folders import write_folders
from yolo.data.cache import ImageStore
from yolo.data.class_folders import ImageClasses, whole_image
from yolo.data.crop import center_crop
from yolo.data.datasets import read_dataset
from yolo.data.index import build_index
from yolo.errors import DataError
from yolo.tasks.classify.data import (
    POLICIES,
    CenterLoader,
    CropAugment,
    CropLoader,
    generators_from,
)

OFF = CropAugment(
    scale=0.0, fliplr=0.0, auto_augment=None, hsv_h=0.0, hsv_s=0.0, hsv_v=0.0, erasing=0.0
)
SIZE = (32, 24)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("classes") / "set", train=5, val=3)


def parts(root, split="train", **options):
    data = read_dataset(root, kinds=ImageClasses().kinds)
    index, _ = build_index(data, split, ImageClasses)
    return index, ImageStore(index, SIZE, fit=False, **options)


def crops(root, augment=None, batch=4, **options):
    index, store = parts(root)
    return CropLoader(index, store, augment or CropAugment(), batch=batch, size=SIZE, **options)


def epoch(loader, number=0, start=0):
    try:
        return list(loader.epoch(number, start))
    finally:
        loader.close()


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.images, b.images)
        assert a.indices == b.indices
        assert torch.equal(a.targets.classes, b.targets.classes)


class Memory:
    """An index of arrays, one class each, that `ImageStore` serves."""

    num_classes = 9

    def __init__(self, images, classes=None):
        self.images = images
        self.classes = classes or [0] * len(images)
        self.shapes = np.array([image.shape[:2] for image in images])

    def __len__(self):
        return len(self.images)

    def path(self, i):
        return f"memory/{i}"

    def image(self, i, channels):
        return self.images[i]

    def instances(self, i):
        return whole_image(self.classes[i], self.images[i].shape[:2])


def one(image, augment, size=(16, 16), number=0):
    """Return the sample of an image, (h, w, C)."""
    index = Memory([image])
    store = ImageStore(index, size, channels=image.shape[2], fit=False)
    (batch,) = CropLoader(index, store, augment, batch=1, size=size).epoch(number)
    return batch.images[0].numpy()


def test_every_image_once_with_its_class(root):
    batches = epoch(crops(root))
    index, _ = parts(root)
    assert [len(b) for b in batches] == [4, 4, 4, 3]
    assert sorted(i for b in batches for i in b.indices) == list(range(15))
    for batch in batches:
        assert batch.images.shape[1:] == (*SIZE, 3)
        assert batch.images.dtype == torch.uint8
        assert batch.targets.mask.shape == (len(batch), 1)
        assert batch.targets.mask.all()
        expected = [index.instances(i).classes[0] for i in batch.indices]
        assert batch.targets.classes[:, 0].tolist() == expected
        assert batch.targets.boxes[0, 0].tolist() == [0, 0, SIZE[1], SIZE[0]]


@pytest.mark.parametrize("policy", [*POLICIES, None])
def test_batches_depend_on_seed_epoch_and_place_alone(root, policy):
    augment = CropAugment(auto_augment=policy, flipud=0.3)
    first = epoch(crops(root, augment))
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert_same(epoch(crops(root, augment)), first)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    loader = crops(root, augment)
    epoch(loader, 3)
    assert_same(epoch(loader, 0, start=2), first[2:])
    other = epoch(crops(root, augment), 1)
    assert not torch.equal(other[0].images, first[0].images)
    seeded = epoch(crops(root, augment, seed=1))
    assert not torch.equal(seeded[0].images, first[0].images)


def test_workers_and_ranks_change_nothing(root):
    alone = epoch(crops(root))
    assert_same(epoch(crops(root, workers=2)), alone)
    shares = [epoch(crops(root, rank=rank, world=2)) for rank in range(2)]
    for whole, *halves in zip(alone, *shares, strict=True):
        assert torch.equal(torch.cat([h.images for h in halves]), whole.images)


def test_colours_are_rgb_and_classes_stay_visible(root):
    for batch in epoch(crops(root, OFF)):
        strongest = batch.images.float().mean((1, 2)).argmax(1)  # 0 red, 1 green, 2 blue
        assert strongest.tolist() == [2 - c for c in batch.targets.classes[:, 0].tolist()]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_flips_and_whole_crops(channels):
    """Left dark, right bright; top dark in the second image."""
    image = np.zeros((40, 40, channels), np.uint8)
    image[:, 20:] = 200
    plain = CropAugment(scale=0.0, fliplr=0.0, auto_augment=None, hsv_h=0, hsv_s=0, hsv_v=0,
                        erasing=0.0)  # fmt: skip
    mirrored = CropAugment(scale=0.0, fliplr=1.0, auto_augment=None, hsv_h=0, hsv_s=0, hsv_v=0,
                           erasing=0.0)  # fmt: skip
    a, b = one(image, plain), one(image, mirrored)
    assert a.shape == (16, 16, channels)
    assert a[:, :4].mean() < 20
    assert a[:, -4:].mean() > 180
    np.testing.assert_array_equal(a[:, ::-1], b)


@pytest.mark.parametrize(("scale", "low"), [(0.1, 0.9), (0.9, 0.1)])
def test_scale_bounds_the_area_of_crops(scale, low):
    """A ramp's range tells how much of the image a crop shows, along both axes."""
    ramp = np.linspace(0, 60_000, 64).round().astype(np.uint16)
    image = np.stack([np.tile(ramp, (64, 1)), np.tile(ramp[:, None], 64)], axis=2)
    augment = CropAugment(scale=scale, fliplr=0.0, erasing=0.0)
    shares = []
    for number in range(30):
        crop = one(image, augment, number=number).astype(float)
        shares.append(np.prod([np.ptp(crop[..., axis]) / 60_000 for axis in (0, 1)]))
    assert min(shares) > low * 0.75  # the outermost pixels of a crop are averages
    assert min(shares) < low + 0.25
    assert crop.dtype == float


def test_erasing_and_colours():
    image = np.full((32, 32, 3), 200, np.uint8)
    erased = one(image, CropAugment(scale=0.0, auto_augment=None, hsv_h=0, hsv_s=0, hsv_v=0,
                                    erasing=1.0))  # fmt: skip
    assert set(np.unique(erased)) == {114, 200}
    jittered = one(image, CropAugment(scale=0.0, auto_augment=None, erasing=0.0))
    assert len(np.unique(jittered.reshape(-1, 3), axis=0)) == 1  # flat stays flat
    assert jittered[0, 0, 0] != 200


def test_images_pillow_does_not_know(root):
    image = np.random.default_rng(0).integers(0, 60_000, (30, 40, 5)).astype(np.uint16)
    sample = one(image, CropAugment())
    assert sample.shape == (16, 16, 5)
    assert sample.dtype == np.uint16


class Mine:
    """Paints the first pixel by the sample's generator, and swaps two classes."""

    def __call__(self, sample):
        assert sample.image_class is not None
        assert not len(sample.instances)
        # BGR: the class colours of folders.py.
        assert sample.image.mean((0, 1)).argmax() == sample.image_class
        sample.image[0, 0] = sample.rng.integers(256)
        sample.image[0, 1, 0] = 99  # blue
        sample.image_class = {0: 1, 1: 0}.get(sample.image_class, sample.image_class)
        return sample


def test_own_transforms_get_a_typed_sample(root):
    from dataclasses import replace

    augment = replace(OFF, custom=(Mine(),))
    first = epoch(crops(root, augment))
    assert_same(epoch(crops(root, augment, workers=2)), first)
    index, _ = parts(root)
    for batch in first:
        assert (batch.images[:, 0, 1, 2] == 99).all()  # RGB
        truth = [int(index.instances(i).classes[0]) for i in batch.indices]
        swapped = [{0: 1, 1: 0}.get(c, c) for c in truth]
        assert batch.targets.classes[:, 0].tolist() == swapped
    assert len({int(p) for b in first for p in b.images[:, 0, 0, 0]}) > 5
    with pytest.raises(DataError, match=r"lambda.*expected a Sample back"):
        epoch(crops(root, replace(OFF, custom=(lambda sample: None,))))


def test_corrupt_pixels_cost_that_image_alone(root, tmp_path, caplog):
    folder = write_folders(tmp_path / "set", train=2, val=2, names=("red", "blue"))
    for split in ("train", "val"):
        file = folder / split / "red" / "0.png"
        data = bytearray(file.read_bytes())
        data[60:200] = bytes(140)  # the header stays whole
        file.write_bytes(bytes(data))
    index, store = parts(folder)
    (batch,) = CropLoader(index, store, OFF, batch=4, size=SIZE).epoch(0)
    bad = [i for i, path in enumerate(batch.paths) if path.endswith("red/0.png")]
    assert (~batch.targets.mask[:, 0]).nonzero().flatten().tolist() == bad
    assert "corrupt" in caplog.text
    index, store = parts(folder, "val")
    (batch,) = CenterLoader(index, store, batch=4, size=SIZE)
    assert len(batch) == 3
    assert batch.targets.mask.all()


def test_centre_crops_are_those_of_prediction(root):
    index, store = parts(root, "val")
    for workers in (0, 2):
        loader = CenterLoader(index, store, batch=4, size=SIZE, workers=workers)
        batches = list(loader)
        loader.close()
        assert [len(b) for b in batches] == [4, 4, 1] == [4, 4, len(index) - 8]
        assert sorted(i for b in batches for i in b.indices) == list(range(9))
        assert len(set(batches[0].targets.classes.flatten().tolist())) > 1
        for batch in batches:
            for i, place in enumerate(batch.indices):
                expected, _ = center_crop(cv2.imread(index.path(place)), SIZE)
                np.testing.assert_array_equal(batch.images[i].numpy(), expected[..., ::-1])


def test_balanced_loader(root, tmp_path):
    folder = write_folders(tmp_path / "set", train=1, val=1)
    for i in range(10):
        (folder / "train" / "red" / f"r{i}.png").write_bytes(
            (folder / "train" / "red" / "0.png").read_bytes()
        )
    batches = epoch(crops(folder, OFF, sampler="balanced", batch=13))
    assert sorted(batches[0].targets.classes.flatten().tolist()) in (
        sorted([0] * a + [1] * b + [2] * c) for a, b, c in ((5, 4, 4), (4, 5, 4), (4, 4, 5))
    )


def test_no_images():
    index = Memory.__new__(Memory)
    index.images, index.shapes = [], np.zeros((0, 2), int)
    with pytest.raises(DataError, match="images to train on"):
        CropLoader(index, ImageStore(index, SIZE, fit=False), OFF, batch=2, size=SIZE)


def test_generators_are_put_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(IndexError), generators_from([1, 2]):
        torch.rand(3)[5]
    assert torch.equal(torch.get_rng_state(), before)


def test_whole_images_are_cached_whole(root, tmp_path):
    plain = epoch(crops(root))
    index, store = parts(root, mode="disk", cache_dir=tmp_path)
    cached = CropLoader(index, store, CropAugment(), batch=4, size=SIZE)
    assert_same(epoch(cached), plain)
    assert_same(epoch(cached), plain)
    assert store.loaded_shape(0) == (40, 56)
