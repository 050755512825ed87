# SPDX-License-Identifier: Apache-2.0
"""Labels of oriented boxes: rows, COCO JSON, and the targets of a batch under augmentation."""

from __future__ import annotations

import json
import math
import pickle
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from painted import MemoryStore, fill, painted, seen
from yolo.data.datasets import read_dataset
from yolo.data.geometry import clip_instances
from yolo.data.index import build_index
from yolo.data.labels import LabelRules, parse_labels, to_pixels
from yolo.data.order import EpochOrder
from yolo.data.recipe import Augment, RecipeBook
from yolo.data.sample import Instances, Sample
from yolo.data.transforms import apply
from yolo.nn.rotated import corners_to_xywhr, xywhr_to_corners
from yolo.tasks.obb.data import CornerLabels, rotated_boxes, rotated_targets

RULES = LabelRules(num_classes=3)


def parse(text):
    return parse_labels(text.encode(), "a.txt", CornerLabels(), RULES)


def test_rows_become_corners_in_pixels():
    instances, problems = parse("0 .5 .25 .75 .5 .5 .75 .25 .5\n2 .1 .1 .3 .1 .3 .2 .1 .2\n")
    assert problems == []
    assert instances.classes.tolist() == [0, 2]
    pixels = to_pixels(instances, (200, 400))
    assert pixels.corners[0].tolist() == [[200, 50], [300, 100], [200, 150], [100, 100]]
    assert pixels.boxes[0].tolist() == [100, 50, 300, 150]
    np.testing.assert_allclose(pixels.area, [200 * 100 / 2, 80 * 20])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("0 .5 .5 .2 .2", "expected 9 columns .*centre.*found 5 columns"),
        ("0 .1 .1 .5 .1 .5 .5", "outline of another number of points.*found 7 columns"),
        ("0 .1 .1 .5 .1 .5 .5 .3 .6 .1 .5", "found 11 columns"),
        ("0 .1 .1 .5 .1 .5 .5 .1", "found 8 columns"),
        ("3 .1 .1 .5 .1 .5 .5 .1 .5", "class id from 0 to 2"),
        ("0 .1 .1 .5 .1 .5 .5 nan .5", "finite numbers"),
        ("0 10 10 50 10 50 50 10 50", "from -1 to 2.*found '0 10 .*divide pixels"),
        ("0 .1 .1 .5 .1 .5 2.1 .1 .5", "from -1 to 2"),
        ("0 1.1 .1 1.5 .1 1.5 .5 1.1 .5", "reaches into the image"),
        ("0 .1 -.5 .5 -.5 .5 0 .1 0", "reaches into the image"),
        ("0 .1 .1 .5 .1 .5 .5 .5 .5", "four different corners, found one twice"),
        ("0 .5 .5 .5 .5 .5 .5 .5 .5", "four different corners"),
        ("0 .1 .1 .2 .2 .3 .3 .4 .4", "around an area, found all of them on one line"),
        ("0 .1 .2 .2 .2 .3 .2 .4 .2", "on one line"),
        ("0 .1 .1 .5 .5 .5 .1 .1 .5", "crosses itself"),
        ("0 .1 .1 .9 .1 .15 .15 .1 .9", "crosses itself or is no box"),
    ],
)
def test_bad_rows_cost_themselves_alone(row, reason):
    good = "1 .2 .2 .4 .2 .4 .3 .2 .3"
    instances, problems = parse(f"{good}\n{row}\n")
    assert instances.classes.tolist() == [1]
    (problem,) = problems
    assert (problem.file, problem.line) == ("a.txt", 2)
    assert re.search(reason, problem.reason), problem.reason


@pytest.mark.parametrize(
    "row",
    [
        "0 -.1 .5 .1 .3 .3 .5 .1 .7",  # a corner outside, as turned boxes at the edge have
        "0 .9 .9 1.2 .9 1.2 1.2 .9 1.2",
        "0 .1 .1 .1 .5 .5 .5 .5 .1",  # the other way round
        "0 .1 .1 .6 .15 .5 .5 .1 .4",  # no rectangle
        "0 .1 .1 .10001 .1 .10001 .5 .1 .5",  # thin
    ],
)
def test_unusual_but_good_rows(row):
    instances, problems = parse(row)
    assert problems == []
    assert len(instances) == 1


def dataset(root: Path, rows: dict[str, str], shape=(60, 90)) -> Path:
    for stem, text in rows.items():
        for folder in ("images", "labels"):
            (root / folder / "train").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / "images/train" / f"{stem}.png"), np.zeros((*shape, 3), np.uint8))
        (root / "labels/train" / f"{stem}.txt").write_text(text)
    (root / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [a, b, c]\n")
    return root / "data.yaml"


def test_index_keeps_the_corners(tmp_path):
    file = dataset(tmp_path, {"a": "1 .5 .25 .75 .5 .5 .75 .25 .5\n", "b": "0 .5 .5 .2 .2\n"})
    index, report = build_index(read_dataset(file), "train", CornerLabels, tmp_path / "cache")
    assert [p.line for p in report.problems] == [1]
    assert report.problems[0].file.endswith("b.txt")
    assert index.instances(0).corners.tolist() == [[[45, 15], [67.5, 30], [45, 45], [22.5, 30]]]


def test_coco_json(tmp_path):
    """Four points are corners; outlines and run lengths get the smallest rectangle around them."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((60, 90, 3), np.uint8))
    box = xywhr_to_corners(np.array([40.0, 30, 30, 10, 0.5]))
    middle = (box + np.roll(box, -1, 0)) / 2
    many = np.stack([box, middle], 1).reshape(-1)
    block = {"size": [60, 90], "counts": [10 * 60 + 5, 20, *[40, 20] * 9, 4800 - 585 - 20]}
    block["counts"][-1] = 60 * 90 - sum(block["counts"][:-1])
    masks = [[box.reshape(-1).tolist()], [many.tolist()], block, [[1, 1, 2, 2, 3, 3, 4, 4]], []]
    rows = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [10, 5, 20, 20], "segmentation": mask,
         "iscrowd": int(i == 4)}
        for i, mask in enumerate(masks)
    ]  # fmt: skip
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": rows,
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    index, report = build_index(
        read_dataset(str(tmp_path / "labels.json")), "train", CornerLabels, None
    )
    (problem,) = report.problems
    assert "annotation 3: expected an outline around an area" in problem.reason
    found = index.instances(0)
    boxes = corners_to_xywhr(found.corners)
    np.testing.assert_allclose(boxes[:2], [[40, 30, 30, 10, 0.5]] * 2, atol=1e-9)
    np.testing.assert_allclose(boxes[2, :4], [15, 15, 20, 10], atol=1.01)
    np.testing.assert_allclose(boxes[3], [20, 15, 20, 20, 0], atol=1e-9)  # the crowd's bbox
    assert found.ignore.tolist() == [False, False, False, True]


def sample_of(boxes, ignore=None):
    corners = xywhr_to_corners(np.asarray(boxes, np.float64).reshape(-1, 5))
    count = len(corners)
    hulls = np.concatenate([corners.min(1), corners.max(1)], 1) if count else np.zeros((0, 4))
    labels = Instances.from_boxes(np.zeros(count), hulls, corners=corners)
    if ignore is not None:
        labels.ignore = np.array(ignore)
    return Sample(np.zeros((64, 64, 3), np.uint8), labels)


def test_targets_are_fitted_padded_and_without_crowds():
    first = [[20, 20, 30, 10, 0.4], [40, 40, 12, 8, 2.0], [30, 30, 50, 40, 1.0]]
    samples = [sample_of(first, [False, True, False]), sample_of([]), Sample(np.zeros((8, 8, 3)))]
    extras = pickle.loads(pickle.dumps(rotated_targets(None, None)))
    assert extras is rotated_boxes
    made = extras(samples, (64, 64))["rotated"].numpy()
    assert made.shape == (3, 2, 5)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made[0], np.array(first)[[0, 2]], atol=1e-5)
    assert (made[1:] == 0).all()
    assert rotated_boxes([], (8, 8))["rotated"].shape == (0, 0, 5)


GEOMETRY = replace(
    Augment(), hsv_h=0.0, hsv_s=0.0, hsv_v=0.0, degrees=90, perspective=3e-4, flipud=0.5,
    scale=(0.6, 1.4), shear=5,
)  # fmt: skip


def check(sample, least):
    """Say that rotated targets cover what is shown, and at least a share of them shows it."""
    boxes = rotated_boxes([sample], sample.shape)["rotated"][0].numpy().astype(float)
    numbers = sample.instances.classes
    for number in set(numbers.tolist()):
        rows = np.flatnonzero(numbers == number)
        covered = np.zeros(sample.shape, bool)
        for row in rows:
            fill(covered, xywhr_to_corners(boxes[row]), True)
        shown = seen(sample.image, number)
        near = cv2.dilate(covered.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
        for x0, y0, x1, y1 in sample.instances.boxes[rows].round().astype(int).clip(0):
            window = (slice(y0, y1), slice(x0, x1))  # remnants without a label lie elsewhere
            stray = shown[window] & ~near[window]
            assert stray.sum() <= 0.05 * max(shown[window].sum(), 40)
        assert shown[covered].sum() > least * covered.sum() - 30


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({}, 0.4),  # a cut leaves corners of the rectangle empty, at most half of it
        ({"mosaic": 0}, 0.4),
        ({"cutmix": 1.0}, 0.05),  # what is hidden but for a tenth stays an object
    ],
    ids=str,
)
def test_targets_follow_the_pixels(changes, least):
    size, rng = (160, 160), np.random.default_rng(0)
    made = [painted(rng, s, [i], ("corners",)) for i, s in enumerate([(120, 160), (150, 110)] * 3)]
    store = MemoryStore([m[0] for m in made], [m[1] for m in made], size)
    book = RecipeBook(EpochOrder(6, 1), replace(GEOMETRY, **changes), size, store.loaded_shape)
    found = 0
    for epoch in range(5):
        for place in range(6):
            sample = apply(book.draw(epoch, place), store)
            check(sample, least)
            found += len(sample.instances)
    assert found > 25


def test_angles_survive_a_cut_at_the_border():
    """A box half outside is trained as the rest of it, at the angle it has."""
    box = np.array([0.0, 40, 60, 20, 0.35])
    cut = clip_instances(sample_of([box]).instances, (0, 0, 100, 100))
    (left,) = corners_to_xywhr(cut.corners)
    assert left[4] == pytest.approx(0.35, abs=1e-9)
    assert left[3] == pytest.approx(20, abs=1e-9)
    assert 30 < left[2] < 40
    corners = xywhr_to_corners(left)
    assert corners[:, 0].max() == pytest.approx(xywhr_to_corners(box)[:, 0].max(), abs=1e-9)
    turned = math.hypot(*(left[:2] - box[:2]))
    assert turned == pytest.approx(30 - left[2] / 2, abs=1e-9)
