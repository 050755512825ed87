# SPDX-License-Identifier: Apache-2.0
"""Outline rows, good, odd and bad; the masks of a batch."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from painted import FIGURES, MemoryStore, painted, seen
from yolo.data.labels import LabelRules, parse_labels
from yolo.data.order import EpochOrder
from yolo.data.recipe import Augment, RecipeBook
from yolo.data.sample import Instances, Sample
from yolo.data.transforms import apply
from yolo.errors import DataError
from yolo.tasks.segment.config import SegmentTrainConfig, SegmentValConfig
from yolo.tasks.segment.data import (
    MaskTargets,
    PolygonLabels,
    crosses_itself,
    mask_targets,
    resize_masks,
)

BRIDGED = "0 .1 .1 .9 .1 .9 .9 .1 .9 .1 .1 .3 .3 .3 .7 .7 .7 .7 .3 .3 .3"
"""A square with a square hole, over a bridge from (.1, .1) to (.3, .3)."""


def parse(text):
    return parse_labels(text.encode(), "a.txt", PolygonLabels(), LabelRules(num_classes=2))


def test_outlines_with_boxes_and_areas():
    found, problems = parse(f"1 .1 .2 .5 .2 .5 .6\n{BRIDGED}\n0 1.005 .5 -.005 .5 .5 1\n")
    assert problems == []
    assert found.classes.tolist() == [1, 0, 0]
    np.testing.assert_allclose(found.boxes[:2], [[0.1, 0.2, 0.5, 0.6], [0.1, 0.1, 0.9, 0.9]])
    np.testing.assert_allclose(found.area, [0.08, 0.64 - 0.16, 0.25])
    assert found.polygons[0][0].tolist() == [[0.1, 0.2], [0.5, 0.2], [0.5, 0.6]]
    assert found.polygons[2][0].tolist() == [[1, 0.5], [0, 0.5], [0.5, 1]]  # clipped


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("0 .5 .5 .2 .2", "outline of at least 3 points .* are a box or two points.*found 5 col"),
        ("0 .1 .1 .5", "outline of at least 3 points .*found 4 columns"),
        ("0 .1 .1 .5 .5 .5 .1 .9", "found 8 columns"),
        ("0 .1 .1 .5 .1 .5 1.2", r"from 0 to 1 .*found '0 0.1 0.1 .* 1.2'"),
        ("0 .1 .1 .5 .5 .1 .1", "around an area, found points on one line: '0 0.1"),
        ("0 .1 .1 .2 .2 .4 .4 .3 .3", "points on one line"),
        ("0 .1 .4 .3 .4 .2 .4", "points on one line"),
        ("0 .3 .3 .3 .3 .3 .3", "points on one line"),
        ("2 .1 .1 .5 .1 .5 .5", "class id from 0 to 1"),
    ],
)
def test_a_bad_row_costs_itself(row, reason):
    found, problems = parse(f"1 .1 .1 .5 .1 .5 .5\n{row}\n")
    assert found.classes.tolist() == [1]
    (problem,) = problems
    assert (problem.file, problem.line, problem.kind) == ("a.txt", 2, "row")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(problem.reason)


def test_a_crossing_outline_is_named_and_kept():
    found, problems = parse("1 .1 .1 .9 .9 .9 .1 .1 .9\n1 .1 .1 .5 .1 .5 .5\n")
    assert len(found) == 2
    (problem,) = problems
    assert (problem.line, problem.kind) == (1, "odd")
    assert "doesn't cross itself, found one that does (kept, and filled" in problem.reason


def crosses_slowly(ring):
    """Compare all pairs of edges."""

    def side(a, b, c):
        return np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

    edges = list(zip(ring, np.roll(ring, -1, 0), strict=True))
    return any(
        side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
        for i, (a, b) in enumerate(edges)
        for c, d in edges[:i]
    )


def test_crossings_are_found_wherever_they_are():
    rng = np.random.default_rng(0)
    crossed = 0
    for _ in range(150):
        count = int(rng.integers(3, 8))
        angle = np.sort(rng.uniform(0, 2 * np.pi, count))
        ring = 0.5 + 0.4 * rng.uniform(0.3, 1, (count, 1)) * np.stack(
            [np.cos(angle), np.sin(angle)], 1
        )
        ring = ring[rng.permutation(count)] if rng.random() < 0.5 else ring
        assert crosses_itself(ring) == crosses_slowly(ring)
        crossed += crosses_itself(ring)
    assert 20 < crossed < 130
    wheel = np.linspace(0, 2 * np.pi, 500, endpoint=False)
    circle = 0.5 + 0.3 * np.stack([np.cos(wheel), np.sin(wheel)], 1)
    assert not crosses_itself(circle)
    circle[[200, 201]] = circle[[201, 200]]
    assert crosses_itself(circle)


def test_touching_is_not_crossing():
    assert not crosses_itself(np.array(BRIDGED.split()[1:], float).reshape(-1, 2))
    corner = np.array([[0.1, 0.1], [0.5, 0.1], [0.5, 0.5], [0.9, 0.5], [0.9, 0.9], [0.5, 0.9],
                       [0.5, 0.5], [0.1, 0.5]])  # fmt: skip
    assert not crosses_itself(corner)
    bridge = np.array([[0.2, 0.2], [0.8, 0.2], [0.500001, 0.2], [0.5, 0.6]])  # rounded
    assert not crosses_itself(bridge)


def square(x, y, side):
    return np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]], float)


def sample(rings, ignore=None, shape=(32, 48)):
    boxes = [[*r[0].min(0), *r[0].max(0)] for r in rings]
    labels = Instances.from_boxes(np.zeros(len(rings)), boxes, polygons=rings)
    if ignore is not None:
        labels.ignore = np.array(ignore)
    return Sample(np.zeros((*shape, 3), np.uint8), labels, path="x.png")


def test_one_map_with_small_objects_on_top():
    small, large = [square(8, 8, 8)], [square(0, 0, 24), square(4, 16, 4)]
    batch = [sample([small, large]), sample([large, small]), sample([])]
    masks = MaskTargets(True, 4)(batch, (32, 48))["masks"]
    assert (masks.shape, masks.dtype) == ((3, 8, 12), torch.uint8)
    expected = np.zeros((8, 12), np.uint8)
    expected[:6, :6] = 2
    expected[4, 1] = 0  # the hole
    expected[2:4, 2:4] = 1
    assert np.array_equal(masks[0], expected)
    assert np.array_equal(masks[1], np.array([0, 2, 1])[expected])
    assert not masks[2].any()


def test_a_mask_an_object():
    small, large = [square(8, 8, 8)], [square(0, 0, 24)]
    batch = [sample([small, large]), sample([large])]
    masks = MaskTargets(False, 4)(batch, (32, 48))["masks"]
    assert (masks.shape, masks.dtype) == ((2, 2, 8, 12), torch.uint8)
    assert masks.sum((2, 3)).tolist() == [[4, 36], [36, 0]]
    assert masks[0, 1, 2:4, 2:4].all()


@pytest.mark.parametrize("overlap", [False, True])
def test_ignored_regions_take_no_row(overlap):
    rings = [[square(0, 0, 48)], [square(8, 8, 8)], [square(24, 8, 8)]]
    crowd, plain = sample(rings, [True, False, False]), sample(rings[1:])
    targets = MaskTargets(overlap, 4)
    assert torch.equal(targets([crowd], (32, 48))["masks"], targets([plain], (32, 48))["masks"])


def test_more_objects_than_a_byte_counts():
    rings = [[square(x, y, 1.0)] for y in range(16) for x in range(20)]
    masks = MaskTargets(True, 1)([sample(rings)], (32, 48))["masks"]
    assert masks.dtype == torch.int16
    assert masks[0, :16, :20].flatten().tolist() == list(range(1, 321))


def test_objects_without_outlines_are_an_error():
    bare = sample([[square(0, 0, 9)]])
    bare.instances.polygons = None
    with pytest.raises(DataError, match=r"x\.png: expected polygons of 1 objects, found None"):
        MaskTargets(True, 4)([bare], (32, 48))
    empty = Sample(np.zeros((32, 48, 3), np.uint8))
    assert MaskTargets(False, 4)([empty], (32, 48))["masks"].shape == (1, 0, 8, 12)


@pytest.mark.parametrize("config", [SegmentTrainConfig, SegmentValConfig])
def test_the_options_say_how(config):
    made = mask_targets(config(overlap_mask=False, mask_ratio=2), None)
    assert made == MaskTargets(False, 2)
    assert mask_targets(config(), None) == MaskTargets(True, 4)
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize("layers", [(), (3,)])
def test_resizing_keeps_whole_numbers(layers):
    masks = torch.randint(0, 3, (2, *layers, 8, 12), dtype=torch.int16)
    doubled = resize_masks(masks, (16, 24), "nearest-exact")
    assert doubled.dtype == torch.int16
    assert torch.equal(doubled, masks.repeat_interleave(2, -2).repeat_interleave(2, -1))
    third = resize_masks(masks.repeat_interleave(3, -2).repeat_interleave(3, -1), (8, 12),
                         "nearest-exact")  # fmt: skip
    assert torch.equal(third, masks)
    assert resize_masks(masks[:, :0], (4, 6), "nearest").shape[-2:] == (4, 6)


@pytest.mark.parametrize("figure", FIGURES)
def test_masks_follow_the_pixels_through_augmentation(figure):
    """Mosaic, rotation, perspective and flips: what is to be learnt is what the image shows."""
    gains = replace(Augment(), hsv_h=0.0, hsv_s=0.0, hsv_v=0.0, degrees=25, shear=6, flipud=0.5,
                    perspective=4e-4, scale=(0.8, 1.4))  # fmt: skip
    rng = np.random.default_rng(0)
    made = [painted(rng, (120, 150), [i], ("polygons",), figure=figure) for i in range(6)]
    store = MemoryStore([m[0] for m in made], [m[1] for m in made], (128, 128))
    book = RecipeBook(EpochOrder(6, 1), gains, (128, 128), store.loaded_shape)
    compared = 0
    for place in range(6):
        sample = apply(book.draw(0, place), store)
        (masks,) = MaskTargets(False, 4)([sample], (128, 128))["masks"].numpy()
        for number in set(sample.instances.classes.tolist()):
            learnt = masks[sample.instances.classes == number].max(0).astype(bool)
            shown = seen(sample.image, number).reshape(32, 4, 32, 4).mean((1, 3))
            clear = (shown < 0.1) | (shown > 0.9)
            agree = learnt[clear] == (shown[clear] > 0.5)
            assert (~agree).sum() <= 4
            compared += int(learnt.sum())
    assert compared > 300
