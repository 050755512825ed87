# SPDX-License-Identifier: Apache-2.0
"""Samples: labels and pixels go together, whatever is drawn, for every kind of label."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from painted import BACKGROUND, MemoryStore, bounds, painted, seen
from yolo.data.letterbox import letterbox
from yolo.data.pixels import polygon_mask
from yolo.data.recipe import Augment, EpochOrder, RecipeBook
from yolo.data.sample import Instances, Sample
from yolo.data.transforms import apply, cut_and_fill, paste, run_custom
from yolo.errors import DataError

PLAIN = replace(Augment(), hsv_h=0.0, hsv_s=0.0, hsv_v=0.0)
GEOMETRY = replace(PLAIN, degrees=25, shear=6, perspective=4e-4, flipud=0.5, scale=(0.6, 1.4))
FLIP_IDX = (1, 0, 3, 2)
SIZES = [(160, 160), (128, 192), (192, 96)]
ALL = ("polygons", "keypoints", "corners")


def store_of(size, kinds=ALL, seed=0, upright=False):
    rng = np.random.default_rng(seed)
    shapes = [(120, 160), (150, 110), (90, 90), (200, 260), (130, 300), (170, 170)]
    made = [painted(rng, shape, [i], kinds, upright) for i, shape in enumerate(shapes)]
    return MemoryStore([m[0] for m in made], [m[1] for m in made], size)


def samples(store, augment, size, count=12, flip_idx=FLIP_IDX, **keys):
    book = RecipeBook(EpochOrder(6, 1), augment, size, store.loaded_shape)
    for epoch in range(count // 6):
        for place in range(6):
            recipe = book.draw(epoch, place)
            yield recipe, apply(recipe, store, flip_idx=flip_idx, **keys)


def check_outlines(sample):
    """What the labels outline is what the pixels show, to 1.5 px, but for remnants."""
    kernel = np.ones((3, 3), np.uint8)
    for number in range(6):
        shown = seen(sample.image, number).astype(np.uint8)
        labelled = np.zeros(sample.shape, np.uint8)
        for row in np.flatnonzero(sample.instances.classes == number):
            labelled |= polygon_mask(sample.instances.polygons[row], sample.shape)
        lost = labelled & ~cv2.dilate(shown, kernel, iterations=2)
        assert lost.sum() <= 2, "a label where nothing is shown"  # thin tips
        stray = shown & ~cv2.dilate(labelled, kernel, iterations=2)
        core = cv2.erode(
            stray, np.ones((5, 5), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0
        )
        assert core.sum() == 0, "shown but not labelled"


def check_kinds(sample):
    """Boxes, keypoints and corners agree with the outlines."""
    labels = sample.instances
    height, width = sample.shape
    for row in range(len(labels)):
        points = np.concatenate(labels.polygons[row])
        around = np.array([*points.min(0), *points.max(0)])
        np.testing.assert_allclose(labels.boxes[row], around, atol=1e-6)
        assert (labels.boxes[row] >= -1e-9).all()
        assert (labels.boxes[row] <= np.array([width, height] * 2) + 1e-9).all()
        there = labels.keypoints[row][labels.keypoints[row, :, 2] == 2]
        for x, y, _ in there:
            assert 0 <= x <= width
            assert 0 <= y <= height
            assert np.abs(points - [x, y]).max(1).min() < 1e-6  # keypoints are corners
        hull = cv2.contourArea(labels.corners[row].astype(np.float32))
        inside = polygon_mask(labels.polygons[row], sample.shape).sum()
        assert hull > 0.8 * inside


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("augment", [PLAIN, GEOMETRY, replace(GEOMETRY, mosaic=0)])
def test_labels_follow_the_pixels(size, augment):
    store = store_of(size)
    count = 0
    for _, sample in samples(store, augment, size, 18):
        assert sample.image.shape == (*size, 3)
        check_outlines(sample)
        check_kinds(sample)
        count += len(sample.instances)
    assert count > 15


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
@pytest.mark.parametrize("gain", ["cutmix", "copy_paste"])
def test_labels_follow_the_pixels_when_scenes_mix(gain, mosaic):
    augment = replace(GEOMETRY, mosaic=mosaic, **{gain: 1.0})
    mixed = 0
    for mode in ("flip", "mixup"):
        book_gains = replace(augment, copy_paste_mode=mode)
        for recipe, sample in samples(store_of((160, 160)), book_gains, (160, 160), 12):
            assert recipe.cut is not None or recipe.paste is not None
            check_outlines(sample)
            mixed += len(sample.instances)
    assert mixed > 12


def test_boxes_alone_are_exact_without_rotation():
    size = (160, 160)
    count = 0
    for _, sample in samples(store_of(size, (), upright=True), PLAIN, size, 30):
        for box, number in zip(sample.instances.boxes, sample.instances.classes, strict=True):
            # Near the box only: a remnant under a tenth of another such object has no label.
            x0, y0, x1, y1 = np.clip(box.round().astype(int) + np.array([-3, -3, 3, 3]), 0, 160)
            shown = np.zeros(size, bool)
            shown[y0:y1, x0:x1] = seen(sample.image, number)[y0:y1, x0:x1]
            assert np.abs(box - bounds(shown)).max() <= 1.5
            count += 1
    assert count > 30


def test_oriented_boxes_alone_follow():
    size = (160, 160)
    for _, sample in samples(store_of(size, ("corners",)), replace(GEOMETRY, shear=0), size, 12):
        for row, number in enumerate(sample.instances.classes):
            mask = polygon_mask([sample.instances.corners[row]], size).astype(bool)
            shown = seen(sample.image, number)
            assert (mask & shown).sum() > 0.8 * min(mask.sum(), shown.sum()) - 8


def test_mixup_keeps_both():
    augment = replace(PLAIN, mosaic=0, mixup=1.0)
    store, alone = store_of((160, 160)), 0
    for recipe, sample in samples(store, augment, (160, 160), 6):
        other, share = recipe.blend
        first = apply(replace(recipe, blend=None), store)
        second = apply(replace(recipe, scene=other, blend=None), store)
        expected = share * first.image + (1 - share) * second.image.astype(float)
        assert np.abs(sample.image - expected).max() <= 1
        assert len(sample.instances) == len(first.instances) + len(second.instances)
        alone += len(first.instances)
    assert alone


def test_identity_is_the_letterbox():
    size = (160, 192)
    store = store_of(size)
    for _, sample in samples(store, Augment.off(), size, 6):
        expected, _ = letterbox(store.load(sample.index), size)
        np.testing.assert_array_equal(sample.image, expected)
        original = store.index.labels[sample.index].boxes.reshape(2, 2)
        corners = np.c_[original, [1, 1]] @ sample.matrix.T
        np.testing.assert_allclose(corners[:, :2].reshape(-1), sample.instances.boxes[0], atol=1e-6)


def test_destination_holds_the_same_image_as_rgb():
    store = store_of((160, 160))
    book = RecipeBook(EpochOrder(6, 1), Augment(bgr=0.5), (160, 160), store.loaded_shape)
    for place in range(6):
        rgb = np.empty((160, 160, 3), np.uint8)
        recipe = book.draw(0, place)
        apply(recipe, store, rgb=rgb)
        np.testing.assert_array_equal(rgb, apply(recipe, store).image[..., ::-1])


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (6, np.uint8), (4, np.uint16)])
def test_other_channels_and_depths(channels, dtype):
    rng = np.random.default_rng(0)
    top = np.iinfo(dtype).max
    images = [rng.integers(0, top, (60, 80, channels), dtype=dtype) for _ in range(3)]
    store = MemoryStore(images, [Instances.from_boxes([0], [[10, 10, 40, 40]])] * 3, (64, 64))
    mixing = replace(GEOMETRY, hsv_h=0.5, bgr=1.0, mixup=0.5, cutmix=0.5)
    for augment in (Augment(), mixing, Augment.off()):
        book = RecipeBook(EpochOrder(3, 0), augment, (64, 64), store.loaded_shape)
        for place in range(3):
            rgb = np.empty((64, 64, channels), dtype)
            apply(book.draw(0, place), store, rgb=rgb)
            assert rgb.max() > top // 2


def test_different_kinds_don_t_mix():
    images = [np.zeros((60, 80, 4), np.uint8), np.zeros((60, 80, 4), np.uint16)]
    store = MemoryStore(images, [Instances.empty()] * 2, (64, 64))
    book = RecipeBook(EpochOrder(2, 0), Augment(), (64, 64), store.loaded_shape)
    recipe = next(
        r for r in (book.draw(e, 0) for e in range(9)) if len({t.index for t in r.scene.tiles}) > 1
    )
    with pytest.raises(DataError, match=r"made/\d.png: expected uint"):
        apply(recipe, store)


def test_ignore_regions_stay_while_anything_is_left():
    image = np.full((100, 100, 3), BACKGROUND, np.uint8)
    labels = Instances.from_boxes(
        [0, 0], [[0, 0, 100, 100], [0, 0, 100, 100]], ignore=np.array([True, False])
    )
    store = MemoryStore([image], [labels], (64, 64))
    zoom = replace(Augment.off(), scale=(5.0, 5.0))
    book = RecipeBook(EpochOrder(1, 0), zoom, (64, 64), store.loaded_shape)
    kept = apply(book.draw(0, 0), store).instances
    assert kept.ignore.tolist() == [True]  # a 25th of both is left


def test_an_image_moved_out_of_sight():
    store = store_of((160, 160))
    away = replace(Augment.off(), translate=40.0)
    for _, sample in samples(store, away, (160, 160), 6):
        if not len(sample.instances):
            assert (sample.image == 114).all()
            return
    pytest.fail("nothing was moved away")


def test_paste_never_covers_a_label():
    base, labels = painted(np.random.default_rng(0), (120, 200), [0, 1])
    donor, donors = painted(np.random.default_rng(7), (120, 200), [2, 3])
    image = base.copy()
    out = paste(image, labels, donor, donors, 1.0, np.random.default_rng(0))
    for number in (0, 1):
        np.testing.assert_array_equal(seen(image, number), seen(base, number))
    assert out.classes.tolist()[:2] == [0, 1]
    empty = np.full_like(base, BACKGROUND)
    out = paste(empty, Instances.empty(), donor, donors, 1.0, np.random.default_rng(0))
    assert sorted(out.classes.tolist()) == [2, 3]
    assert seen(empty, 2).sum() > 0.9 * seen(donor, 2).sum()
    boxes = Instances.from_boxes([2], donors.boxes[:1])
    assert len(paste(image, labels, donor, boxes, 1.0, np.random.default_rng(0))) == 2


def test_cut_and_fill():
    mine = Instances.from_boxes([0, 1], [[0, 0, 10, 10], [40, 40, 60, 60]])
    others = Instances.from_boxes([2, 3], [[42, 42, 58, 58], [0, 0, 9, 9]])
    out = cut_and_fill(mine, others, (38, 38, 64, 64))
    assert out.classes.tolist() == [0, 2]


def test_custom_transforms_are_seeded_and_checked():
    store = store_of((160, 160))
    drawn = []

    def darker(sample: Sample) -> Sample:
        drawn.append(float(sample.rng.random()))
        sample.image //= 2
        return sample

    first = [s.image for _, s in samples(store, PLAIN, (160, 160), 6, custom=(darker,))]
    rgb = np.empty((160, 160, 3), np.uint8)
    book = RecipeBook(EpochOrder(6, 1), PLAIN, (160, 160), store.loaded_shape)
    apply(book.draw(0, 2), store, flip_idx=FLIP_IDX, custom=(darker,), rgb=rgb)
    assert drawn[6] == drawn[2]
    assert len(set(drawn)) == 6
    np.testing.assert_array_equal(rgb, first[2][..., ::-1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: None, "expected a Sample back, found NoneType"),
        (lambda s: s.with_image(s.image[:9]), r"of shape \(20, 30, 3\)"),
        (lambda s: s.with_image(s.image.astype(np.float32)), "type uint8, found .*float32"),
        (lambda s: replace(s, instances=spoiled(boxes=[[0, 0, np.nan, 1]])), "finite boxes"),
        (lambda s: replace(s, instances=spoiled(boxes=[[5, 0, 2, 1]])), "x0 <= x1"),
        (lambda s: replace(s, instances=spoiled(ignore=[])), "expected ignore of shape"),
        (lambda s: replace(s, instances=spoiled(ignore=np.zeros(1))), "type bool, found float"),
        (lambda s: replace(s, instances=spoiled(classes=np.array([-1]))), r"classes .* \[-1\]"),
        (lambda s: replace(s, instances=spoiled(classes=np.array([0.5]))), "whole numbers"),
        (lambda s: replace(s, instances=spoiled(polygons=[])), "expected 1 polygons, found 0"),
        (lambda s: replace(s, instances=spoiled(keypoints=np.zeros((2, 1, 3)))), "keypoints"),
    ],
)
def test_a_bad_custom_transform_is_named(change, reason):
    def mine(sample: Sample) -> Sample:
        return change(sample)

    sample = Sample(np.zeros((20, 30, 3), np.uint8), path="a.png")
    with pytest.raises(DataError, match=f"^transform 'mine': .*{reason}"):
        run_custom(sample, (mine,))


def spoiled(boxes=((0, 0, 4, 4),), **kinds):
    labels = Instances.from_boxes([0], np.asarray(boxes))
    for kind, value in kinds.items():
        setattr(labels, kind, value)
    return labels
