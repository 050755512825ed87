# SPDX-License-Identifier: Apache-2.0
"""Samples: labels and pixels go together, whatever is drawn, for every kind of label."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from painted import BACKGROUND, FIGURES, MemoryStore, painted, seen
from yolo.data import transforms
from yolo.data.letterbox import letterbox
from yolo.data.masks import fill_polygons
from yolo.data.recipe import Augment, EpochOrder, RecipeBook
from yolo.data.sample import Instances, Sample
from yolo.data.transforms import apply, cut_and_fill, mirror, paste, run_custom
from yolo.errors import DataError
from yolo.nn.rotated import corners_to_xywhr

PLAIN = replace(Augment(), hsv_h=0.0, hsv_s=0.0, hsv_v=0.0)
GEOMETRY = replace(PLAIN, degrees=25, shear=6, perspective=4e-4, flipud=0.5, scale=(0.6, 1.4))
TURNED = replace(PLAIN, degrees=180, flipud=0.5)
FLIP_IDX = (1, 0, 3, 2)
SIZES = [(160, 160), (128, 192), (192, 96)]
ALL = ("polygons", "keypoints", "corners")
SHAPES = [(120, 160), (150, 110), (90, 90), (200, 260), (130, 300), (170, 170)]


def pictures(kinds=ALL, seed=0, upright=False, figures=FIGURES):
    """Six images, each with one object, labelled by its number."""
    rng = np.random.default_rng(seed)
    return [
        painted(rng, shape, [i], kinds, upright, figures[i % len(figures)])
        for i, shape in enumerate(SHAPES)
    ]


def store_of(size, *args, **keys):
    made = pictures(*args, **keys)
    return MemoryStore([m[0] for m in made], [m[1] for m in made], size)


def samples(store, augment, size, count=12, flip_idx=FLIP_IDX, **keys):
    book = RecipeBook(EpochOrder(6, 1), augment, size, store.loaded_shape)
    for epoch in range(count // 6):
        for place in range(6):
            recipe = book.draw(epoch, place)
            yield recipe, apply(recipe, store, flip_idx=flip_idx, **keys)


def mask_of(polygon, shape):
    ((top, left, window),) = fill_polygons([polygon], shape)
    mask = np.zeros(shape, np.uint8)
    mask[top : top + window.shape[0], left : left + window.shape[1]] = window
    return mask


def check_outlines(sample):
    """What the labels outline is what the pixels show, to 1.5 px, but for remnants."""
    kernel = np.ones((3, 3), np.uint8)
    for number in range(6):
        shown = seen(sample.image, number).astype(np.uint8)
        labelled = np.zeros(sample.shape, np.uint8)
        for row in np.flatnonzero(sample.instances.classes == number):
            labelled |= mask_of(sample.instances.polygons[row], sample.shape)
        lost = labelled & ~cv2.dilate(shown, kernel, iterations=2)
        assert lost.sum() <= 2, "a label where nothing is shown"  # thin tips
        stray = shown & ~cv2.dilate(labelled, kernel, iterations=2)
        core = cv2.erode(
            stray, np.ones((5, 5), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0
        )
        assert core.sum() <= 25, "shown but not labelled"
    for rings, box in zip(sample.instances.polygons, sample.instances.boxes, strict=True):
        points = np.concatenate(rings)
        np.testing.assert_allclose(box, [*points.min(0), *points.max(0)], atol=1e-6)
        assert (points >= -1e-9).all()
        assert (points <= np.array(sample.shape[::-1]) + 1e-9).all()


def shown_once(recipe):
    """The numbers of the objects that the pixels can show in one place only."""
    scenes = [recipe.scene, *(part[0] for part in (recipe.cut, recipe.paste) if part)]
    tiles = [tile.index for scene in scenes if scene for tile in scene.tiles]
    if recipe.paste and recipe.paste[0] is None:
        tiles *= 2
    return {number for number in range(6) if tiles.count(number) == 1}


def pixels_of(sample, row):
    """The points (n, 2) in the middles of the pixels that show an object, near its box."""
    x0, y0, x1, y1 = sample.instances.boxes[row].round().astype(int) + np.array([-4, -4, 4, 4])
    shown = np.zeros(sample.shape, bool)
    window = np.s_[max(y0, 0) : y1, max(x0, 0) : x1]
    shown[window] = seen(sample.image, int(sample.instances.classes[row]))[window]
    return np.argwhere(shown)[:, ::-1] + 0.5


def check_box(sample, row, tight=False):
    """The box holds what is shown, and is no larger where it has to be exact."""
    points = pixels_of(sample, row)
    if not tight and not len(points):  # a box has corners where nothing is of what it holds
        return
    box = sample.instances.boxes[row]
    low, high = points.min(0) - 0.5 - box[:2], box[2:] - points.max(0) - 0.5
    assert min(low.min(), high.min()) > -1.5
    assert not tight or max(low.max(), high.max()) < 1.5


def check_corners(sample, row, rigid):
    """The oriented box is a rectangle as large as the outline, which is as large as the pixels."""
    corners = sample.instances.corners[row]
    sides = np.roll(corners, -1, 0) - corners
    lengths = np.linalg.norm(sides, axis=1)
    if rigid and lengths.min() > 12:  # of a smaller piece, whole pixels alter the proportions
        slant = abs((sides * np.roll(sides, 1, 0)).sum(1)) / (lengths * np.roll(lengths, 1))
        assert slant.max() < 0.05
    x, y, width, height, angle = corners_to_xywhr(corners)
    axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    reach = (np.concatenate(sample.instances.polygons[row]) - [x, y]) @ axes.T
    around = [*-reach.min(0), *reach.max(0)]
    np.testing.assert_allclose(around, np.array([width, height] * 2) / 2, atol=0.5)


def check_keypoints(sample, row, cut):
    """Visible ones are seen, others aren't, and left and right are where they belong."""
    number = int(sample.instances.classes[row])
    shown = seen(sample.image, number).astype(np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    near, deep = cv2.dilate(shown, kernel), cv2.erode(shown, kernel)
    keypoints = sample.instances.keypoints[row]
    for x, y, visibility in keypoints:
        inside = 0 <= x < sample.shape[1] and 0 <= y < sample.shape[0]
        if visibility == 2:
            assert inside
            assert near[int(y), int(x)]
        elif inside:
            assert not deep[int(y), int(x)]
        if visibility == 1:
            assert cut is not None
            assert cut[0] < x < cut[2]
            assert cut[1] < y < cut[3]
    x, y = keypoints[:, :2].T
    assert (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() > 0, "left and right are mistaken"


MIXES = [{}, {"cutmix": 1.0}, {"copy_paste": 1.0}, {"copy_paste": 1.0, "copy_paste_mode": "mixup"}]


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "-".join(map(str, mix.values())))
@pytest.mark.parametrize("gains", [PLAIN, GEOMETRY, TURNED], ids=["plain", "bent", "turned"])
def test_every_label_follows_the_pixels(gains, mix):
    store = store_of((160, 160))
    count = 0
    for recipe, sample in samples(store, replace(gains, mosaic=0.5, **mix), (160, 160), 18):
        check_outlines(sample)
        once = shown_once(recipe)
        for row, number in enumerate(sample.instances.classes.tolist()):
            if number in once:
                check_box(sample, row)
                check_keypoints(sample, row, recipe.cut and recipe.cut[1])
                count += 1
    assert count > 8 or recipe.paste[0] is None  # its own mirror image shows everything twice


@pytest.mark.parametrize("size", SIZES)
def test_labels_follow_the_pixels_at_any_size(size):
    store = store_of(size)
    for augment in (PLAIN, replace(GEOMETRY, mosaic=0)):
        for _, sample in samples(store, augment, size, 6):
            assert sample.image.shape == (*size, 3)
            check_outlines(sample)


@pytest.mark.parametrize("mix", [{}, {"cutmix": 1.0}], ids=["alone", "cutmix"])
@pytest.mark.parametrize("gains", [PLAIN, GEOMETRY, TURNED], ids=["plain", "bent", "turned"])
@pytest.mark.parametrize("kind", ["boxes", "keypoints", "corners"])
def test_a_kind_of_label_alone_follows_the_pixels(kind, gains, mix, monkeypatch):
    """Without outlines: boxes by their own corners, oriented ones by the four they have."""
    monkeypatch.setattr(transforms, "_has_outlines", lambda *_: True)  # to look at lent ones
    straight = gains is PLAIN and kind != "corners"
    store = store_of((160, 160), (kind,), upright=straight, figures=("whole",))
    count = 0
    for recipe, sample in samples(store, replace(gains, mosaic=0.5, **mix), (160, 160), 18):
        once = shown_once(recipe)
        if kind == "corners":
            check_outlines(sample)  # of the boxes themselves
        for row, number in enumerate(sample.instances.classes.tolist()):
            if number not in once:
                continue
            count += 1
            check_box(sample, row, straight)
            if kind == "corners":
                check_corners(sample, row, rigid=gains is not GEOMETRY)
            if kind == "keypoints":
                check_keypoints(sample, row, recipe.cut and recipe.cut[1])
    assert count > 15


def test_mixup_keeps_both():
    augment = replace(PLAIN, mosaic=0, mixup=1.0)
    store, alone = store_of((160, 160)), 0
    for recipe, sample in samples(store, augment, (160, 160), 6):
        other, share = recipe.blend
        first = apply(replace(recipe, blend=None), store, flip_idx=FLIP_IDX)
        second = apply(replace(recipe, scene=other, blend=None), store, flip_idx=FLIP_IDX)
        expected = share * first.image + (1 - share) * second.image.astype(float)
        assert np.abs(sample.image - expected).max() <= 1
        both = Instances.concatenate([first.instances, second.instances])
        for kind in ("classes", "boxes", "area", "keypoints", "corners"):
            np.testing.assert_array_equal(getattr(sample.instances, kind), getattr(both, kind))
        assert len(sample.instances.polygons) == len(both.polygons)
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


@pytest.mark.parametrize("kinds", [(), *((kind,) for kind in ALL), ALL], ids="-".join)
def test_a_custom_transform_gets_and_keeps_all_labels(kinds):
    """Its mirror images are as good as the package's own."""
    store = store_of((160, 160), kinds)

    def mine(sample: Sample) -> Sample:
        given = {k for k in ALL if getattr(sample.instances, k) is not None}
        assert given == set(kinds) if len(sample.instances) else given <= set(kinds)
        image, labels = mirror(sample.image, sample.instances, FLIP_IDX)
        return replace(sample, image=image, instances=labels)

    gains = replace(GEOMETRY, mosaic=0.5, cutmix=0.5)
    for recipe, sample in samples(store, gains, (160, 160), 12, custom=(mine,)):
        plain = apply(recipe, store, flip_idx=FLIP_IDX)
        np.testing.assert_array_equal(sample.image[:, ::-1], plain.image)
        assert sample.instances.classes.tolist() == plain.instances.classes.tolist()
        if "polygons" in kinds:
            check_outlines(sample)
        for row, number in enumerate(sample.instances.classes.tolist()):
            if "keypoints" in kinds and number in shown_once(recipe) and recipe.cut is None:
                check_keypoints(sample, row, None)


FULL = {
    "polygons": [[np.array([[0, 0], [4, 0], [4, 4.0]])]],
    "keypoints": np.ones((1, 2, 3)),
    "corners": np.ones((1, 4, 2)),
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: None, "expected a Sample back, found NoneType"),
        (lambda s: replace(s, image=s.image[:9]), r"of shape \(20, 30, 3\)"),
        (lambda s: replace(s, image=s.image.astype(np.float32)), "type uint8, found .*float32"),
        (lambda s: replace(s, image_class=-1), "image_class as a whole number from 0 on, found -1"),
        (lambda s: replace(s, image_class=0.5), "image_class as a whole number"),
        (lambda s: spoiled(s, boxes=np.array([[0, 0, np.nan, 1]])), "finite boxes"),
        (lambda s: spoiled(s, boxes=np.array([[5, 0, 2, 1]])), "x0 <= x1"),
        (lambda s: spoiled(s, boxes=[[0, 0, 1, 1]]), r"boxes of shape \(1, 4\), found list"),
        (lambda s: spoiled(s, ignore=[]), "expected ignore of shape"),
        (lambda s: spoiled(s, ignore=np.zeros(1)), "type bool, found float"),
        (lambda s: spoiled(s, classes=np.array([-1])), r"classes .* array\(\[-1\]\)"),
        (lambda s: spoiled(s, classes=np.array([0.5])), "whole numbers"),
        (lambda s: spoiled(s, polygons=[]), "expected 1 polygons, found 0"),
        (lambda s: spoiled(s, polygons=[[np.ones((2, 2))]]), r"P from 3 on, found \(2, 2\)"),
        (lambda s: spoiled(s, polygons=[[np.full((3, 2), np.inf)]]), "finite polygons"),
        (lambda s: spoiled(s, polygons=None), "expected polygons as before, found none"),
        (lambda s: spoiled(s, keypoints=None), "expected keypoints as before, found none"),
        (lambda s: spoiled(s, keypoints=np.zeros((1, 1, 3))), r"keypoints of shape \(1, 2, 3\)"),
        (lambda s: spoiled(s, keypoints=np.full((1, 2, 3), np.nan)), "finite keypoints"),
        (lambda s: spoiled(s, corners=np.zeros((1, 5))), r"corners of shape \(1, 4, 2\)"),
    ],
)
def test_a_bad_custom_transform_is_named(change, reason):
    def mine(sample: Sample) -> Sample:
        return change(sample)

    labels = Instances.from_boxes([0], [[0, 0, 4, 4]], **FULL)
    sample = Sample(np.zeros((20, 30, 3), np.uint8), labels, path="a.png")
    with pytest.raises(DataError, match=f"^transform 'mine': .*{reason}"):
        run_custom(sample, (mine,))
    run_custom(sample, (lambda s: replace(s, instances=Instances.empty()),))  # all may go


def spoiled(sample, **kinds):
    return replace(sample, instances=replace(sample.instances, **kinds))
