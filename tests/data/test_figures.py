# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from yolo.data.figures import FIGURES, FLIP_IDX, KEYPOINTS, NAMES

DRAWS = 20


def figures(name):
    rng = np.random.default_rng(3)
    return [FIGURES[name](rng) for _ in range(DRAWS)]


def test_ids_follow_the_alphabet():
    assert list(NAMES.values()) == sorted(FIGURES)
    assert list(NAMES) == list(range(len(FIGURES)))


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_one_long_and_clearly_narrower(name):
    for rings, _ in figures(name):
        outline = np.concatenate(rings)
        low, high = outline.min(axis=0), outline.max(axis=0)
        np.testing.assert_allclose([low[0], high[0]], [-0.5, 0.5], atol=1e-12)
        assert 0.3 < high[1] - low[1] < 0.81


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_its_own_mirror_image_with_left_and_right_swapped(name):
    for rings, keypoints in figures(name):
        points = np.concatenate(rings)
        gaps = np.linalg.norm(points[:, None] - points[None] * (1, -1), axis=2)
        assert gaps.min(axis=1).max() < 1e-9
        np.testing.assert_allclose((keypoints * (1, -1))[list(FLIP_IDX)], keypoints, atol=1e-12)


@pytest.mark.parametrize("name", FIGURES)
def test_front_and_back_differ(name):
    for rings, _ in figures(name):
        points = np.concatenate(rings)
        gaps = np.linalg.norm(points[:, None] - points[None] * (-1, 1), axis=2)
        assert gaps.min(axis=1).max() > 0.05


@pytest.mark.parametrize("name", FIGURES)
def test_keypoints_mean_what_they_are_called(name):
    for rings, keypoints in figures(name):
        outline = np.concatenate(rings)
        point = dict(zip(KEYPOINTS, keypoints, strict=True))
        np.testing.assert_allclose(point["nose"], (0.5, 0), atol=1e-12)
        assert point["left"][1] == pytest.approx(outline[:, 1].min())
        assert point["right"][1] == pytest.approx(outline[:, 1].max())
        assert point["tail"][1] == 0
        for corner in (point["left"], point["right"]):
            assert np.linalg.norm(outline - corner, axis=1).min() < 1e-9
        # The tail ends the outline's stretch on the axis: its distance to an edge there is nil.
        assert min(distance_to_ring(point["tail"], ring) for ring in rings) < 0.005


def distance_to_ring(point, ring):
    start, stop = ring, np.roll(ring, -1, axis=0)
    along = stop - start
    t = ((point - start) * along).sum(axis=1) / (along**2).sum(axis=1)
    return np.linalg.norm(start + t.clip(0, 1)[:, None] * along - point, axis=1).min()


def test_holes_and_parts_occur():
    rings, _ = figures("ring")[0]
    assert len(rings) == 2
    assert (np.abs(rings[1]).max(axis=0) < np.abs(rings[0]).max(axis=0)).all()
    bar, dot = figures("mark")[0][0]
    assert dot[:, 0].max() < bar[:, 0].min()
