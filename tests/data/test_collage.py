# SPDX-License-Identifier: Apache-2.0
"""Images painted from pieces: the labels of `transforms` bit for bit, pixels but for rounding."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from painted import FIGURES, Index, MemoryStore, painted, write
from yolo.data.cache import ImageStore
from yolo.data.collage import AT_ONCE, _located, pack, shift_colours
from yolo.data.loader import TrainLoader
from yolo.data.pixels import colour_tables, finish_colour
from yolo.data.recipe import Augment, EpochOrder, RecipeBook
from yolo.data.sample import Instances
from yolo.data.transforms import apply, labelled
from yolo.errors import ConfigError, DataError

PLAIN = replace(Augment(), hsv_h=0.0, hsv_s=0.0, hsv_v=0.0, mosaic=0.5, flipud=0.5)
BENT = replace(PLAIN, degrees=25, shear=6, scale=(0.6, 1.4))
TILTED = replace(BENT, perspective=4e-4)
GAINS = {"plain": PLAIN, "bent": BENT, "tilted": TILTED}
FLIP_IDX = (1, 0, 3, 2)
SIZES = [(160, 160), (96, 192)]
SHAPES = [(120, 160), (150, 110), (90, 90), (200, 260), (130, 300), (170, 170)]


def store_of(size, kinds=("polygons", "keypoints", "corners"), noise=255):
    """Six images of noise, labelled as if each showed one object."""
    rng = np.random.default_rng(0)
    labels = [painted(rng, s, [i], kinds, figure=FIGURES[i % 3])[1] for i, s in enumerate(SHAPES)]
    images = [rng.integers(0, noise + 1, (*shape, 3), dtype=np.uint8) for shape in SHAPES]
    return MemoryStore(images, labels, size)


def recipes_of(store, augment, count=AT_ONCE + 2):
    """Recipes of a few epochs, more than are painted at once."""
    book = RecipeBook(EpochOrder(6, 1), augment, store.size, store.loaded_shape)
    return [book.draw(number // 6, number % 6) for number in range(count)]


def painted_by_both(store, recipes):
    """Return the images of `apply` and those of a collage as arrays, RGB, and the collage."""
    shape = (len(recipes), *store.size, store.channels)
    expected = np.empty(shape, np.uint8)
    for recipe, rgb in zip(recipes, expected, strict=True):
        apply(recipe, store, flip_idx=FLIP_IDX, rgb=rgb)
    pixels, collage = pack(recipes, store, store.size)
    return expected, collage.paint(torch.from_numpy(pixels)).numpy(), collage


def same_labels(a: Instances, b: Instances):
    for kind in ("classes", "boxes", "ignore", "area", "keypoints", "corners"):
        np.testing.assert_array_equal(getattr(a, kind), getattr(b, kind))
    assert (a.polygons is None) == (b.polygons is None)
    for mine, others in zip(a.polygons or (), b.polygons or (), strict=True):
        for ring, other in zip(mine, others, strict=True):
            np.testing.assert_array_equal(ring, other)


@pytest.mark.parametrize("gains", GAINS.values(), ids=GAINS)
@pytest.mark.parametrize("kinds", [(), ("polygons",), ("keypoints",), ("corners",)], ids="-".join)
def test_labels_are_the_same_bit_for_bit(kinds, gains):
    store, count = store_of((160, 160), kinds), 0
    for recipe in recipes_of(store, gains):
        expected = apply(recipe, store, flip_idx=FLIP_IDX)
        found = labelled(recipe, store, FLIP_IDX)
        same_labels(found.instances, expected.instances)
        np.testing.assert_array_equal(found.matrix, expected.matrix)
        for name in ("path", "index", "original_shape", "shape"):
            assert getattr(found, name) == getattr(expected, name)
        count += len(found.instances)
    assert count > 10


@pytest.mark.parametrize("size", SIZES)
def test_pixels_of_resizes_differ_by_one_level(size):
    """Even of noise. OpenCV adds rows up in 16 bits and drops the others: an eighth is 1 lower."""
    store = store_of(size)
    expected, found, _ = painted_by_both(store, recipes_of(store, PLAIN))
    difference = found.astype(int) - expected
    assert np.abs(difference).max() <= 1
    assert 0 <= difference.mean() < 1 / 8


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("gains", [BENT, TILTED], ids=["bent", "tilted"])
def test_pixels_of_warps_differ_by_the_rounding_of_places(gains, size):
    """A build of OpenCV may round them to 1/32 pixel: 1/64 of the steps along both axes.

    Near a rim, where another piece or none begins, either may have it.
    """
    noise = 96
    store = store_of(size, noise=noise)
    expected, found, collage = painted_by_both(store, recipes_of(store, gains))
    _, _, number = _located(collage.maps, collage.pieces, size)
    near, numbers = np.ones((5, 5)), number.numpy().astype(np.float32)
    inner = np.stack([cv2.erode(n, near) == cv2.dilate(n, near) for n in numbers])
    assert inner.mean() > 0.9
    assert (number >= 0).float().mean() > 0.5
    difference = np.abs(found.astype(int) - expected)[inner]
    assert difference.max() <= 1 + 2 * noise / 64
    assert difference.mean() < 0.5


def test_colours_are_those_of_opencv():
    """Hue and saturation are the same whole numbers; the way back rounds up or down by build."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 64, 256, 3), dtype=np.uint8)
    images[1] //= 16  # dark ones
    images[2] = images[2, ..., :1] + images[2] // 64  # nearly grey ones, some over the top
    gains = [(0.4, 1.3, 0.8), (-0.015, 0.5, 1.4), (0.0, 1.0, 1.0)]
    tables = np.concatenate([colour_tables(g) for g in gains])
    found = shift_colours(torch.from_numpy(images), torch.from_numpy(tables)).numpy()
    for image, gain, rgb in zip(images, gains, found, strict=True):
        expected = finish_colour(image.copy(), gain)[..., ::-1]
        assert np.abs(rgb.astype(int) - expected).max() <= 1


def test_each_image_gets_its_own_colours_and_order():
    store = store_of((160, 160))
    augment = replace(Augment.off(), hsv_h=0.5, hsv_s=0.7, hsv_v=0.4, bgr=0.5)
    expected, found, collage = painted_by_both(store, recipes_of(store, augment))
    assert 0 < collage.swapped.sum() < len(collage.swapped)
    assert np.abs(found.astype(int) - expected).max() <= 1
    expected, found, _ = painted_by_both(store, recipes_of(store, replace(PLAIN, bgr=0.5)))
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("channels", [1, 6])
def test_other_channels(channels):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (60, 80, channels), dtype=np.uint8) for _ in range(6)]
    store = MemoryStore(images, [Instances.from_boxes([0], [[10, 10, 40, 40]])] * 6, (64, 64))
    for augment in (replace(Augment(), bgr=1.0), Augment.off()):
        expected, found, _ = painted_by_both(store, recipes_of(store, augment))
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_nothing_in_sight_is_grey():
    store = store_of((64, 64))
    recipes = recipes_of(store, replace(Augment.off(), translate=40.0), 3)
    hidden = [replace(r, scene=replace(r.scene, tiles=())) for r in recipes]
    _, found, _ = painted_by_both(store, hidden)
    assert (found == 114).all()
    pixels, collage = pack([], store, store.size)
    assert collage.paint(torch.from_numpy(pixels)).shape == (0, 64, 64, 3)


# ---------------------------------------------------------------------- through the loader

SMALL = (64, 64)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    rng = np.random.default_rng(0)
    made = [painted(rng, shape, [i]) for i, shape in enumerate(SHAPES)]
    paths = write(tmp_path_factory.mktemp("images"), [image for image, _ in made])
    return Index([labels for _, labels in made], np.array(SHAPES), paths)


def loader_of(index, augment=PLAIN, **options):
    store = ImageStore(index, SMALL)
    given = replace(augment, flip_idx=FLIP_IDX)
    return TrainLoader(index, store, given, **{"batch": 4, "size": SMALL, **options})


def corner_sums(samples, size):
    return {"sums": torch.tensor([float(s.instances.corners.sum()) for s in samples])}


@pytest.mark.parametrize("options", [{}, {"rect": True, "workers": 1}, {"rank": 1, "world": 2}])
def test_batches_come_in_pieces_and_are_painted_where_they_go(index, options):
    whole = loader_of(index, extras=corner_sums, **{**options, "workers": 0})
    pieces = loader_of(index, extras=corner_sums, paint=False, **options)
    for epoch, mixing in ((0, True), (1, False)):
        pairs = zip(whole.epoch(epoch, 0, mixing), pieces.epoch(epoch, 0, mixing), strict=True)
        for expected, batch in pairs:
            assert len(batch) == len(expected)
            assert batch.collage is not None
            done = batch.to("cpu")
            assert done.collage is None
            assert done.images.shape == expected.images.shape
            assert (done.images.int() - expected.images.int()).abs().max() <= 1
            for name in ("classes", "boxes", "mask"):
                assert torch.equal(getattr(done.targets, name), getattr(expected.targets, name))
            assert torch.equal(done.targets.extras["sums"], expected.targets.extras["sums"])
            same = ("indices", "paths", "original_shapes")
            assert all(getattr(done, name) == getattr(expected, name) for name in same)
    pieces.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup": 0.1}, "expected no mixup, found 0.1"),
        ({"cutmix": 0.1}, "expected no cutmix"),
        ({"copy_paste": 0.1}, "expected no copy_paste"),
        ({"custom": (print,)}, "expected no augmentations"),
    ],
)
def test_what_cannot_be_painted_is_refused(index, changes, message):
    with pytest.raises(ConfigError, match=f"^augment_on='device': {message}"):
        loader_of(index, replace(PLAIN, **changes), paint=False)


def test_images_of_other_kinds_are_refused(tmp_path):
    deep = np.full((64, 64, 1), 40_000, np.uint16)
    few = Index([Instances.empty()] * 2, np.full((2, 2), 64), write(tmp_path, [deep] * 2))
    store = ImageStore(few, SMALL, channels=1)
    with pytest.raises(ConfigError, match="expected images of 8 bits, found uint16"):
        TrainLoader(few, store, PLAIN, batch=2, size=SMALL, paint=False)
    images = [np.zeros((64, 64, 1), np.uint8), deep]
    mixed = MemoryStore(images, [Instances.empty()] * 2, SMALL)
    book = RecipeBook(EpochOrder(2, 1), Augment.off(), SMALL, mixed.loaded_shape)
    with pytest.raises(DataError, match=r"made/1\.png: expected uint8"):
        pack([book.draw(0, 0), book.draw(0, 1)], mixed, SMALL)
