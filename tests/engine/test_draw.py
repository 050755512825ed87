# SPDX-License-Identifier: Apache-2.0
"""Pictures: the right pixels change, at any size, and text stays inside."""

from __future__ import annotations

import numpy as np
import pytest

from yolo.engine.draw import (
    Marks,
    color_of,
    draw_marks,
    draw_probs,
    fitted_letters,
    fitted_line,
    fitted_radius,
    ink_on,
    viewable,
)

NAMES = {0: "cat", 1: "a class with quite a long name"}


def canvas(height=120, width=160):
    return np.full((height, width, 3), 128, np.uint8)


def marks(*boxes, **kinds):
    count = len(boxes)
    return Marks(np.array(boxes, np.float32).reshape(-1, 4), np.arange(count) % 2, **kinds)


def changed(image):
    return (image != 128).any(-1)


def test_boxes_change_only_their_neighbourhood():
    image = draw_marks(canvas(), marks([60, 50, 120, 100]), NAMES, show_labels=False)
    touched = changed(image)
    assert touched[50, 60:120].all()
    assert touched[50:100, 60].all()
    assert not touched[54:96, 64:116].any()
    assert not touched[:48].any()


@pytest.mark.parametrize("shape", [(8, 8), (20, 300), (300, 20), (120, 160), (1500, 2000)])
def test_any_size_and_boxes_at_or_beyond_the_border(shape):
    height, width = shape
    image = canvas(*shape)
    found = marks(
        [0, 0, width, height],
        [-50, -50, 2 * width, 2 * height],
        [width - 1, height - 1, width, height],
        [width / 2, height / 2, width / 2, height / 2],
        conf=np.array([0.9, 0.8, 0.7, 0.6]),
    )
    draw_marks(image, found, NAMES)
    touched = changed(image)
    assert touched[0].any()
    assert touched[-1].any()
    assert touched[:, 0].any()
    assert touched[:, -1].any()


def test_sizes_grow_with_the_picture():
    shapes = [(64, 64), (480, 640), (1080, 1920), (3000, 4000)]
    lines = [fitted_line(shape) for shape in shapes]
    letters = [fitted_letters(shape).px for shape in shapes]
    assert lines == sorted(set(lines))
    assert letters == sorted(set(letters))
    assert fitted_line((480, 640), 7) == 7
    assert fitted_letters((480, 640), 20).px == 20


def test_labels_avoid_each_other():
    box = [200, 200, 300, 300]
    bare = draw_marks(canvas(480, 640), marks(box), NAMES, show_labels=False)
    one = draw_marks(canvas(480, 640), marks(box), NAMES)
    twins = Marks(np.array([box] * 2, np.float32), np.zeros(2, int))
    two = draw_marks(canvas(480, 640), twins, NAMES)
    label = int((changed(one) & ~changed(bare)).sum())
    assert label > 200
    # a little of the second label lies on the outline, which counts as changed already
    assert int((changed(two) & ~changed(bare)).sum()) > 1.5 * label


def test_mask_fill_and_holes():
    mask = np.zeros((120, 160), bool)
    mask[20:100, 20:100] = True
    mask[50:70, 50:70] = False
    found = marks([20, 20, 100, 100], mask=lambda _: mask)
    image = draw_marks(canvas(), found, NAMES, show_boxes=False)
    touched = changed(image)
    assert touched[mask].all()
    assert not touched[55:65, 55:65].any()
    assert not touched[~mask][:100].any()
    assert not changed(draw_marks(canvas(), found, NAMES, show_boxes=False, show_masks=False)).any()


def test_keypoints_and_skeleton():
    points = np.zeros((1, 17, 3), np.float32)
    points[0, 5] = 40, 60, 0.9
    points[0, 6] = 100, 60, 0.9
    points[0, 7] = 150, 110, 0.1  # not visible
    found = marks([10, 10, 12, 12], keypoints=points)
    image = draw_marks(canvas(), found, NAMES, show_boxes=False)
    touched = changed(image)
    assert touched[60, 40]
    assert touched[60, 70]  # the limb between the shoulders
    assert not touched[105:115, 145:155].any()
    bare = draw_marks(canvas(), found, NAMES, show_boxes=False, kpt_line=False)
    assert not changed(bare)[60, 70]


def test_points_of_small_figures_are_small():
    grid = np.stack(np.meshgrid(range(4), range(4)), -1).reshape(-1, 2)
    radii = [fitted_radius((480, 640), grid * gap) for gap in (10, 20, 40, 100)]
    assert radii == sorted(radii)
    assert radii[0] < 2 < radii[2] < radii[3] == fitted_radius((480, 640), grid[:1])
    assert fitted_radius((128, 128), grid * 100) < radii[3]


def test_nan_points_are_left_out():
    points = np.full((1, 3, 2), np.nan, np.float32)
    draw_marks(canvas(), marks([1, 1, 5, 5], keypoints=points), NAMES)


def test_rotated_boxes():
    corners = np.array([[[80, 20], [120, 60], [80, 100], [40, 60]]], np.float32)
    found = marks([40, 20, 120, 100], corners=corners)
    touched = changed(draw_marks(canvas(), found, NAMES, show_labels=False))
    assert touched[40, 100]
    assert not touched[20, 40]  # no upright box


def test_labels_of_rotated_boxes_stand_at_the_upper_left():
    """Nearly upright ones too, whose highest corner may be the right one."""
    corners = np.array([[[50, 62], [150, 60], [152, 110], [52, 112]]], np.float32)
    found = marks([50, 60, 152, 112], corners=corners)
    lines = changed(draw_marks(canvas(), found, NAMES, show_labels=False))
    label = changed(draw_marks(canvas(), found, NAMES)) & ~lines
    rows, columns = np.nonzero(label)
    assert rows.max() < 66
    assert columns.mean() < 90


def test_crowds_of_small_objects_stay_visible():
    """Lines and letters shrink with the objects, unless their size was asked for."""
    x, y = (v.ravel() for v in np.meshgrid(np.arange(20, 980, 120), np.arange(20, 980, 120)))
    found = marks(*np.stack([x, y, x + 40, y + 24], 1).tolist())
    fitted = changed(draw_marks(canvas(1000, 1000), found, NAMES)).sum()
    fixed = draw_marks(canvas(1000, 1000), found, NAMES, line_width=5, font_size=19)
    assert fitted < 0.6 * changed(fixed).sum()


def test_probabilities_stay_in_the_corner():
    image = draw_probs(canvas(200, 300), [("cat", 0.9), ("dog", 0.1)])
    touched = changed(image)
    assert touched[5, 5]
    assert not touched[100:, 150:].any()
    draw_probs(canvas(10, 10), [("cat", 0.9)] * 5)


def test_other_scripts_are_written():
    plain = draw_marks(canvas(), marks([50, 60, 150, 110]), {0: "?????"})
    greek = draw_marks(canvas(), marks([50, 60, 150, 110]), {0: "αβγδε"})
    assert not np.array_equal(plain, greek)


def test_colours():
    assert color_of(3) == color_of(23)
    assert len({color_of(i) for i in range(20)}) == 20
    assert ink_on((0, 255, 255)) == (20, 20, 20)
    assert ink_on((120, 20, 20)) == (255, 255, 255)


def test_colour_by_instance():
    twins = Marks(np.array([[10, 20, 60, 90], [90, 20, 150, 90]], np.float32), np.zeros(2, int))
    image = draw_marks(canvas(), twins, NAMES, show_labels=False, color_mode="instance")
    assert not np.array_equal(image[50, 10], image[50, 90])


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.full((4, 5), 7, np.uint8), 7),
        (np.full((4, 5, 1), 7, np.uint8), 7),
        (np.full((4, 5, 2), 7, np.uint8), 7),
        (np.full((4, 5, 5), 7, np.uint8), 7),
        (np.full((4, 5, 3), 65535, np.uint16), 255),
    ],
)
def test_viewable(image, expected):
    picture = viewable(image)
    assert picture.shape == (4, 5, 3)
    assert picture.dtype == np.uint8
    assert (picture == expected).all()
    picture[:] = 1
    assert (image != 1).all()


def test_one_scale_applies_to_all_kinds_of_marks():
    scaled = marks([10, 10, 40, 40], keypoints=np.ones((1, 2, 3)), mask=lambda _: np.eye(60) > 0)
    half = scaled.scaled(0.5, (30, 30))
    assert half.boxes.tolist() == [[5, 5, 20, 20]]
    assert half.keypoints[0, 0].tolist() == [0.5, 0.5, 1]
    assert half.mask(0).shape == (30, 30)


def test_a_crowd_stays_visible():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, [600, 440], (2000, 2))
    crowd = Marks(np.concatenate([corner, corner + 12], 1), np.zeros(2000, int), rng.random(2000))
    bare = draw_marks(canvas(480, 640), crowd, NAMES, show_labels=False)
    full = draw_marks(canvas(480, 640), crowd, NAMES)
    hidden = (bare != full).any(axis=2).mean()
    assert 0.05 < hidden < 0.4
