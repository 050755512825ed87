# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import cv2
import numpy as np
import pytest
from matplotlib.path import Path as Outline

from yolo.data.figures import FLIP_IDX, KEYPOINTS, NAMES
from yolo.data.scene import (
    DOMINANCE,
    MAX_HIDDEN,
    MAX_HIDDEN_LARGEST,
    even_odd_area,
    scene,
)

NOSE, LEFT, TAIL, RIGHT = (KEYPOINTS.index(name) for name in ("nose", "left", "tail", "right"))


@pytest.fixture(scope="module")
def scenes():
    return [scene(7, "val", i) for i in range(40)]


def rasterised(rings, h, w):
    """Fill rings by the even-odd rule at pixel centres, with matplotlib instead of OpenCV."""
    y, x = np.mgrid[:h, :w] + 0.5
    centres = np.stack([x.ravel(), y.ravel()], axis=1)
    inside = np.zeros(h * w, dtype=bool)
    for ring in rings:
        inside ^= Outline(ring).contains_points(centres)
    return inside.reshape(h, w)


def same(a, b):
    return (
        np.array_equal(a.image, b.image)
        and np.array_equal(a.instances.boxes, b.instances.boxes)
        and a.image_class == b.image_class
    )


def test_a_scene_depends_on_its_arguments_alone():
    first = scene(5, "train", 3)
    np.random.default_rng(0).random(10)
    scene(1, "train", 0)
    assert same(first, scene(5, "train", 3))
    others = [scene(6, "train", 3), scene(5, "val", 3), scene(5, "train", 4)]
    assert not any(same(first, other) for other in others)


def test_labels_stay_what_they_were():
    """Accuracies are compared on these scenes: whoever changes them raises GENERATOR_VERSION."""
    found = scene(0, "train", 0)
    boxes = [[29.82, 140.22, 155.08, 232.48], [200.55, 37.54, 278.16, 70.93]]
    assert found.image.shape == (288, 288, 3)
    assert found.instances.classes.tolist() == [1, 3]
    assert found.image_class == 1
    np.testing.assert_allclose(found.instances.boxes, boxes, atol=0.01)


def test_sizes():
    shapes = {scene(0, "train", i, 320).image.shape for i in range(20)}
    assert shapes == {(240, 320, 3), (320, 240, 3), (288, 288, 3)}
    assert scene(0, "train", 0, (96, 160)).image.shape == (96, 160, 3)
    assert scene(0, "train", 0).image.dtype == np.uint8
    with pytest.raises(ValueError, match="at least 64"):
        scene(0, "train", 0, 64)
    with pytest.raises(ValueError, match="max_figures"):
        scene(0, "train", 0, max_figures=0)


@pytest.mark.parametrize("size", [(64, 64), (64, 640), (640, 64)])
def test_odd_sizes_have_room(size):
    for i in range(10):
        found = scene(0, "train", i, size)
        inside = found.instances.corners.reshape(-1, 2)
        assert (inside >= 0).all()
        assert (inside <= size[::-1]).all()


def test_polygons_are_the_drawn_masks(scenes):
    for found in scenes:
        h, w = found.image.shape[:2]
        for mask, rings in zip(found.masks, found.instances.polygons, strict=True):
            drawn = rasterised(rings, h, w)
            assert (mask & drawn).sum() / (mask | drawn).sum() >= 0.98


def test_boxes_and_areas_are_the_drawn_masks(scenes):
    for found in scenes:
        for i, mask in enumerate(found.masks):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            # A sharp nose fills less than half of its last pixel or two.
            np.testing.assert_allclose(found.instances.boxes[i], around, atol=2)
            assert found.instances.area[i] == pytest.approx(mask.sum(), rel=0.03)
            assert found.instances.area[i] == pytest.approx(
                even_odd_area(found.instances.polygons[i])
            )


def test_corners_are_a_tight_rectangle_along_the_heading(scenes):
    for found in scenes:
        instances = found.instances
        for rings, corners, points in zip(
            instances.polygons, instances.corners, instances.keypoints[..., :2], strict=True
        ):
            front_left, front_right, back_right, back_left = corners
            heading = (front_left - back_left) / np.linalg.norm(front_left - back_left)
            across = np.array([-heading[1], heading[0]])  # to the right: y points down
            np.testing.assert_allclose(front_right - front_left, back_right - back_left, atol=1e-9)
            assert abs((front_right - front_left) @ heading) < 1e-9
            assert (front_right - front_left) @ across > 0
            outline = np.concatenate(rings)
            for axis, low, high in (
                (heading, back_left, front_left),
                (across, front_left, front_right),
            ):
                reach = outline @ axis
                np.testing.assert_allclose([reach.min(), reach.max()], [low @ axis, high @ axis])
            middle = (front_left + front_right) / 2
            np.testing.assert_allclose(points[NOSE], middle, atol=1e-9)
            assert (points[NOSE] - points[TAIL]) @ heading > 0
            assert (points[RIGHT] - points[LEFT]) @ across > 0


def test_a_mirrored_scene_keeps_the_meaning_of_left_and_right(scenes):
    for found in scenes:
        w = found.image.shape[1]
        points = found.instances.keypoints[:, :, :2].copy()
        points[..., 0] = w - points[..., 0]
        points = points[:, list(FLIP_IDX)]
        heading, side = points[:, NOSE] - points[:, TAIL], points[:, RIGHT] - points[:, LEFT]
        assert (heading[:, 0] * side[:, 1] - heading[:, 1] * side[:, 0] > 0).all()


def test_covered_figures_and_points(scenes):
    hidden_points = 0
    for found in scenes:
        covered = np.zeros(found.image.shape[:2], dtype=bool)
        for i in reversed(range(len(found.masks))):
            mask = found.masks[i]
            share = (mask & covered).sum() / mask.sum()
            assert found.hidden[i] == pytest.approx(share)
            assert share <= MAX_HIDDEN
            visible = (mask & ~covered).astype(np.uint8)
            near = cv2.dilate(visible, np.ones((7, 7), np.uint8))
            for x, y, visibility in found.instances.keypoints[i]:
                if not near[int(y), int(x)]:
                    assert visibility == 1
                    hidden_points += 1
                if not (mask & covered).any():
                    assert visibility == 2
            covered |= mask
    assert hidden_points > 5


def test_the_image_class_is_that_of_the_clearly_largest_figure(scenes):
    for found in scenes:
        corners = found.instances.corners
        width = np.linalg.norm(corners[:, 1] - corners[:, 0], axis=1)
        length = np.linalg.norm(corners[:, 2] - corners[:, 1], axis=1)
        size = np.sqrt(width * length)
        order = size.argsort()
        assert found.image_class == found.instances.classes[order[-1]]
        assert found.hidden[order[-1]] <= MAX_HIDDEN_LARGEST
        if len(size) > 1:
            assert size[order[-1]] >= DOMINANCE * size[order[-2]] * (1 - 1e-9)


def test_scenes_vary(scenes):
    counts = [len(found.instances) for found in scenes]
    assert min(counts) == 1
    assert max(counts) >= 6
    classes = np.concatenate([found.instances.classes for found in scenes])
    assert (np.bincount(classes, minlength=len(NAMES)) > len(classes) / 12).all()
    boxes = np.concatenate([found.instances.boxes for found in scenes])
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    assert sides.max() / sides.min() > 4
    hidden = np.concatenate([found.hidden for found in scenes])
    assert (hidden > 0.05).mean() > 0.1
    assert np.std([found.image.mean() for found in scenes]) > 15


def test_the_figures_stand_out_from_what_is_around_them(scenes):
    contrasts = []
    for found in scenes:
        image = found.image.astype(np.float64)
        ground = ~found.masks.any(axis=0)
        last = found.masks[-1]  # nothing covers it
        contrasts.append(np.linalg.norm(image[last].mean(axis=0) - image[ground].mean(axis=0)))
    assert np.median(contrasts) > 60
    assert min(contrasts) > 15
