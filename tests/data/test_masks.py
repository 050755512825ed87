# SPDX-License-Identifier: Apache-2.0
"""Rings, pixels and run lengths: every way there and back, to the pixel."""

from __future__ import annotations

import numpy as np
import pytest
from faster_coco_eval import mask as coco
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo.data.masks import (
    coco_polygon,
    decode_rle,
    encode_rle,
    fill_polygons,
    joined_ring,
    mask_rings,
    polygon_rle,
    run_lengths,
)

SQUARE = np.array([[2, 1], [6, 1], [6, 4], [2, 4.0]])


def filled(polygon, size, ratio=1.0):
    ((top, left, window),) = fill_polygons([polygon], size, ratio)
    whole = np.zeros(size, np.uint8)
    whole[top : top + window.shape[0], left : left + window.shape[1]] = window
    return whole


def random_mask(seed, most=22):
    """Speckles, or blots with holes and parts that touch at corners and at the border."""
    rng = np.random.default_rng(seed)
    mask = (rng.random(rng.integers(1, most, 2)) < rng.random()).astype(np.uint8)
    return np.kron(mask, np.ones(rng.integers(1, 4, 2), np.uint8))


def random_rings(rng, count, low=-5, high=45):
    return [rng.uniform(low, high, (rng.integers(3, 9), 2)) for _ in range(count)]


masks = st.integers(0, 2**32 - 1).map(random_mask)


@settings(max_examples=150, deadline=None)
@given(mask=masks)
def test_tracing_and_filling_give_the_pixels_back(mask):
    rings = mask_rings(mask)
    assert np.array_equal(filled(rings, mask.shape), mask)
    assert all((ring == np.round(ring)).all() for ring in rings)
    if rings:
        assert np.array_equal(filled([joined_ring(rings)], mask.shape), mask)
        assert np.array_equal(coco.decode(polygon_rle(rings, mask.shape)), mask)


@settings(max_examples=100, deadline=None)
@given(mask=masks, top=st.integers(0, 5), left=st.integers(0, 5))
def test_run_lengths_are_those_of_the_coco_api(mask, top, left):
    whole = np.pad(mask, ((top, 3), (left, 2)))
    packed = coco.encode(np.asfortranarray(whole))
    assert encode_rle(mask.astype(bool), top, left, whole.shape) == packed
    assert np.array_equal(decode_rle(packed), whole)
    assert np.array_equal(decode_rle({**packed, "counts": packed["counts"].decode()}), whole)
    plain = {"size": list(whole.shape), "counts": run_lengths(packed).tolist()}
    assert np.array_equal(decode_rle(plain), whole)


def test_a_pixel_belongs_to_what_holds_its_middle():
    expected = np.zeros((6, 8), np.uint8)
    expected[1:4, 2:6] = 1
    for shift in (-0.4, 0.0, 0.4):
        assert np.array_equal(filled([SQUARE + shift], (6, 8)), expected)
    assert np.array_equal(filled([SQUARE[::-1]], (6, 8)), expected)
    hole = np.array([[3, 2], [5, 2], [5, 3], [3, 3.0]])
    expected[2, 3:5] = 0
    assert np.array_equal(filled([SQUARE, hole], (6, 8)), expected)
    assert np.array_equal(filled([np.concatenate([SQUARE, SQUARE[:1], hole, hole[:1]])], (6, 8)),
                          expected)  # fmt: skip


def test_filling_at_a_ratio_takes_the_middles_of_blocks():
    rng = np.random.default_rng(0)
    for _ in range(20):
        rings = random_rings(rng, 2)
        fine = filled(rings, (120, 120), 1 / 3)  # each pixel has a 3 x 3 of its own
        assert np.array_equal(filled(rings, (40, 40)), fine[1::3, 1::3])


def test_filling_cuts_at_the_canvas_and_takes_many_at_once():
    rng = np.random.default_rng(1)
    polygons = [random_rings(rng, n) for n in (1, 0, 3, 2)] + [[SQUARE - 99]]
    for polygon, (top, left, window) in zip(
        polygons, fill_polygons(polygons, (30, 41)), strict=True
    ):
        large = filled([ring + 10 for ring in polygon], (60, 60))[10:40, 10:51]
        whole = np.zeros((30, 41), np.uint8)
        whole[top : top + window.shape[0], left : left + window.shape[1]] = window
        assert np.array_equal(whole, large)
    assert list(fill_polygons([], (4, 4))) == []


def test_joining_is_the_even_odd_rule_for_the_coco_api_too():
    rng = np.random.default_rng(2)
    for _ in range(60):
        rings = random_rings(rng, int(rng.integers(1, 5)))
        each = [coco.decode(coco.frPyObjects([r.ravel().tolist()], 40, 41)[0]) for r in rings]
        joined = coco.decode(polygon_rle(rings, (40, 41)))
        assert np.array_equal(joined, np.bitwise_xor.reduce(each))
    assert coco.area(polygon_rle([], (5, 6))) == 0


def test_parts_of_a_coco_annotation_are_a_union():
    rng = np.random.default_rng(3)
    kept = traced = 0
    for _ in range(60):
        parts = [ring.ravel().tolist() for ring in random_rings(rng, 2, 0, 30)]
        parts[1] = (np.array(parts[1]) + rng.choice([0, 40])).tolist()
        union = coco.merge(coco.frPyObjects(parts, 80, 80))
        rings = coco_polygon(parts, (80, 80))
        assert polygon_rle(rings, (80, 80)) == union
        if [r.ravel().tolist() for r in rings] == parts:
            kept += 1
        else:  # the pixels that COCO scores with are those to learn, too
            assert np.array_equal(filled(rings, (80, 80)), coco.decode(union))
            traced += 1
    assert kept > 10
    assert traced > 10


def test_run_lengths_of_coco_become_rings():
    mask = random_mask(5)
    packed = coco.encode(np.asfortranarray(mask))
    rings = coco_polygon({**packed, "counts": packed["counts"].decode()}, mask.shape)
    assert np.array_equal(filled(rings, mask.shape), mask)
    assert mask_rings(np.zeros((3, 4))) == []


@pytest.mark.parametrize(
    "counts", ["", "x", "\x00", "ooo", "é", [1], [-1, 13], [2**62, 2**62, 2**63 - 1], "P" * 99]
)
def test_run_lengths_that_do_not_fit_are_refused(counts):
    with pytest.raises(ValueError, match="add up to 3 x 4 = 12 pixels"):
        decode_rle({"size": [3, 4], "counts": counts})
