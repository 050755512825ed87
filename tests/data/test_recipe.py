# SPDX-License-Identifier: Apache-2.0
"""Recipes: functions of (seed, epoch, place) alone, with the geometry they promise."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from yolo.data.letterbox import place as letterbox_place
from yolo.data.order import EpochOrder
from yolo.data.recipe import Augment, RecipeBook, close_epoch

STRONG = Augment(
    degrees=30, translate=0.2, scale=0.6, shear=5, perspective=5e-4, flipud=0.5, bgr=0.5,
    mosaic=0.7, mixup=0.4, cutmix=0.4, copy_paste=0.5,
)  # fmt: skip


def shape_of(i):
    return (48 + i % 17, 64) if i % 2 else (64, 40 + i % 23)


def book(augment=STRONG, count=50, size=(64, 64), seed=3):
    return RecipeBook(EpochOrder(count, seed), augment, size, shape_of)


def test_a_recipe_depends_on_its_key_alone():
    first, second = book(), book()
    recipes = [pickle.dumps(first.draw(2, place)) for place in range(50)]
    for place in reversed(range(50)):
        second.draw(1, place)  # another epoch in between
        assert pickle.dumps(second.draw(2, place)) == recipes[place]
    assert len(set(recipes)) == 50
    assert pickle.dumps(book(seed=4).draw(2, 0)) != recipes[0]
    assert pickle.dumps(first.draw(3, 0)) != recipes[0]


def test_samples_come_in_the_epoch_s_order():
    assert [book().draw(0, p).index for p in range(50)] == EpochOrder(50, 3).places(0).tolist()


def test_partners_come_from_the_neighbourhood_of_the_place():
    order = EpochOrder(5000, 0)
    drawn = RecipeBook(order, Augment(), (64, 64), shape_of)
    where = np.argsort(order.places(0))
    spread = [
        int(where[tile.index]) - place
        for place in (0, 100, 2500, 4999)
        for tile in drawn.draw(0, place).scene.tiles
    ]
    assert max(map(abs, spread)) <= 256
    assert len(set(spread)) > 4


def test_off_is_the_letterbox_exactly():
    recipes = book(Augment.off(), size=(64, 96))
    for place in range(20):
        recipe = recipes.draw(0, place)
        (tile,) = recipe.scene.tiles
        expected, inner = letterbox_place(shape_of(recipe.index), (64, 96))
        assert (recipe.hsv, recipe.blend, recipe.cut, recipe.paste) == (None, None, None, None)
        np.testing.assert_allclose(tile.matrix, expected.matrix, atol=1e-12)
        left, top = expected.pad_left, expected.pad_top
        assert tile.region == (left, top, left + inner[1], top + inner[0])


def test_probabilities():
    always = replace(Augment.off(), mosaic=1, mixup=1, copy_paste=1, copy_paste_mode="mixup", bgr=1)
    recipe = book(always).draw(0, 0)
    assert recipe.blend is not None
    assert recipe.paste[0] is not None
    assert recipe.cut is None
    assert recipe.swap_channels
    assert 0.2 < recipe.blend[1] < 0.8
    cut = book(replace(always, mixup=0, cutmix=1)).draw(0, 0).cut
    assert cut is not None
    mosaics = sum(
        len(book(Augment(mosaic=0.5, scale=0), seed=s).draw(0, 0).scene.tiles) > 1
        for s in range(200)
    )
    assert 60 < mosaics < 140
    mirrored = sum(book(seed=s).draw(0, 0).scene.mirrored for s in range(200))
    assert 60 < mirrored < 140


def test_closing():
    recipes = book(replace(STRONG, mosaic=1.0))
    assert any(len(recipes.draw(3, p).scene.tiles) > 1 for p in range(20))
    for place in range(20):
        recipe = recipes.draw(3, place, mixing=False)
        assert len(recipe.scene.tiles) <= 1
        assert (recipe.blend, recipe.cut, recipe.paste) == (None, None, None)
        assert recipe.hsv is not None


@pytest.mark.parametrize(
    ("epochs", "closed", "first"), [(100, 10, 90), (10, 10, 5), (1, 10, 1), (3, 10, 2), (50, 0, 50)]
)
def test_close_mosaic_never_takes_the_whole_run(epochs, closed, first):
    assert close_epoch(epochs, closed) == first


def test_without_mirrors():
    calm = replace(STRONG, copy_paste_mode="flip").without_mirrors()
    assert (calm.fliplr, calm.flipud, calm.copy_paste) == (0, 0, 0)
    assert not any(book(calm).draw(0, p).scene.mirrored for p in range(50))


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (96, 64)])
def test_tiles_are_consistent(size):
    for augment in (Augment(), replace(Augment(), flipud=0.5, fliplr=0.5, scale=(0.3, 1.8))):
        for seed in range(60):
            covered = np.zeros(size, dtype=int)
            for tile in book(augment, size=size, seed=seed).draw(0, 0).scene.tiles:
                x0, y0, x1, y1 = tile.crop
                left, top, right, bottom = tile.region
                covered[top:bottom, left:right] += 1
                assert tile.straight
                assert tile.window[0] <= x0 < x1 <= tile.window[2]
                assert tile.window[1] <= y0 < y1 <= tile.window[3]
                ends = tile.matrix @ np.array([[x0, x1], [y0, y1], [1, 1]])
                np.testing.assert_allclose(np.sort(ends[0]), [left, right], atol=1e-9)
                np.testing.assert_allclose(np.sort(ends[1]), [top, bottom], atol=1e-9)
            assert covered.max() <= 1  # tiles never overlap


def test_wild_perspective_never_turns_a_tile_inside_out():
    wild = replace(Augment(), perspective=0.1, degrees=180)
    for seed in range(50):
        for tile in book(wild, seed=seed).draw(0, 0).scene.tiles:
            x0, y0, x1, y1 = tile.window
            corners = np.array([[x0, y0, 1], [x1, y0, 1], [x1, y1, 1], [x0, y1, 1.0]])
            assert (corners @ tile.matrix[2]).min() > 0.05
