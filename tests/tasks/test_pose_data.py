# SPDX-License-Identifier: Apache-2.0
"""Keypoint labels: rows and their faults, COCO JSON, mirrors, targets, spreads."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest

from yolo.data.cache import ImageStore
from yolo.data.datasets import read_dataset
from yolo.data.index import build_index
from yolo.data.labels import LabelRules, parse_labels
from yolo.data.loader import TrainLoader
from yolo.data.recipe import Augment
from yolo.data.sample import Instances, Sample
from yolo.data.shapes import write_shapes
from yolo.engine.overlaps import COCO_SIGMAS
from yolo.errors import DataError
from yolo.tasks.pose.data import BODY_SHARE, KeypointLabels, KeypointTargets, oks_sigmas

THREE, TWO = LabelRules(2, kpt_shape=(2, 3)), LabelRules(2, kpt_shape=(2, 2))


def parse(text, rules=THREE):
    return parse_labels(text.encode(), "a.txt", KeypointLabels(), rules)


def test_rows_with_visibility():
    found, problems = parse(
        "1 .5 .5 .4 .2 .3 .4 2 .9 .8 1\n"
        "0 .5 .5 .4 .4 7 -7 0 .1 .1 2\n"
        "0 .5 .5 .2 .2 1.005 0 1 0 0 0\n"
    )
    assert not problems
    assert found.classes.tolist() == [1, 0, 0]
    assert found.keypoints[0].tolist() == [[0.3, 0.4, 2], [0.9, 0.8, 1]]
    assert found.keypoints[1].tolist() == [[0, 0, 0], [0.1, 0.1, 2]]  # absent: anything goes
    assert found.keypoints[2].tolist() == [[1, 0, 1], [0, 0, 0]]  # within the tolerance
    np.testing.assert_allclose(found.boxes[0], [0.3, 0.4, 0.7, 0.6])
    np.testing.assert_allclose(found.area, BODY_SHARE * np.array([0.08, 0.16, 0.04]))


def test_rows_without_visibility():
    """A negative coordinate says that the keypoint is absent."""
    found, problems = parse("0 .5 .5 .4 .2 .3 .4 -1 .5\n0 .5 .5 .4 .4 0 0 .5 -.001\n", TWO)
    assert not problems
    assert found.keypoints[0].tolist() == [[0.3, 0.4, 2], [0, 0, 0]]
    assert found.keypoints[1].tolist() == [[0, 0, 2], [0, 0, 0]]


def test_predicted_visibilities_can_be_read():
    found, problems = parse("0 .5 .5 .4 .2 .3 .4 .73 .9 .8 .49\n")
    assert not problems
    assert found.keypoints[0, :, 2].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("row", "rules", "message"),
    [
        (
            "0 .5 .5 .4 .2",
            THREE,
            "expected 11 columns (class cx cy w h, then x y v for each of 2 keypoints), found 5",
        ),
        ("0 .5 .5 .4 .2 .1 .1 2 .2 .2 2 .3 .3 2", THREE, "of 2 keypoints), found 14 columns"),
        ("0 .5 .5 .4 .2 .1 .1 .2", TWO, "expected 9 columns (class cx cy w h, then x y for each"),
        ("0 .5 .5 .4 .2 .1 .1 2 .1 .1 3", THREE, "the visibility of keypoint 1 as 0 (absent), 1"),
        ("0 .5 .5 .4 .2 .1 .1 -1 .1 .1 1", THREE, "keypoint 0 as 0 (absent), 1 (hidden) or 2 (vi"),
        ("0 .5 .5 .4 .2 .1 .1 2 120 .1 2", THREE, "expected keypoint 1 within 0 to 1 (-0.01 to"),
        ("0 .5 .5 .4 .2 .1 .1 2 120 .1 2", THREE, "found 120 0.1; divide pixels by"),
        ("0 .5 .5 .4 .2 .1 1.2 .1 .1", TWO, "expected keypoint 0 within 0 to 1"),
        ("0 .5 .5 .4 0 .1 .1 2 .1 .1 1", THREE, "expected a width and height above 0"),
        ("7 .5 .5 .4 .2 .1 .1 2 .1 .1 1", THREE, "expected a class id from 0 to 1"),
        ("0 .5 .5 .4 .2", LabelRules(1), "the key kpt_shape in the dataset's YAML"),
    ],
)
def test_bad_rows_cost_themselves_alone(row, rules, message):
    numbers = " .2 .2 1" if rules is THREE else " .2 .2"
    good = "0 .4 .4 .2 .2" + 2 * numbers
    found, problems = parse(f"{good}\n{row}\n", rules)
    assert len(found) == (1 if rules.kpt_shape else 0)
    (problem,) = [p for p in problems if p.line == 2]
    assert message in f"{problem}"
    assert str(problem).startswith("a.txt:2")


def test_every_bad_row_is_named_with_its_own_number():
    good = "0 .4 .4 .2 .2 .1 .1 2 .2 .2 "
    _, problems = parse(f"{good}3\n{good}1\n{good}4\n")
    assert [(p.line, str(p)[-7:]) for p in problems] == [(1, "found 3"), (3, "found 4")]


# ---------------------------------------------------------------------- datasets


def write_coco(folder, rows, **keys):
    """Write an image of 100 x 80 pixels and annotations with two keypoints."""
    cv2.imwrite(str(folder / "a.png"), np.zeros((80, 100, 3), np.uint8))
    base = {"image_id": 1, "category_id": 4, "bbox": [10, 10, 40, 40], "area": 700, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 80, "width": 100}],
        "categories": [{"id": 4, "name": "fly"}],
        "annotations": [{"id": i + 1, **base, **row} for i, row in enumerate(rows)],
    }
    (folder / "a.json").write_text(json.dumps(content), encoding="utf-8")
    return read_dataset({"path": str(folder), "train": "a.json", "val": "a.json", **keys})


def test_coco_json(tmp_path):
    data = write_coco(
        tmp_path,
        [
            {"keypoints": [20, 30, 2, 40, 40, 1], "num_keypoints": 2},
            {"keypoints": [0] * 6, "num_keypoints": 0},
            {"iscrowd": 1, "segmentation": {"counts": [0], "size": [80, 100]}},
            {"keypoints": [20, 30, 2, 40, 40, 1]},
            {"keypoints": [20, 30, 3, 40, 40, 1]},
            {"keypoints": [20, 30, 2, 400, 40, 1]},
            {"keypoints": [20, 30, 2]},
        ],
        kpt_shape=[2, 3],
        kpt_oks_sigmas=[0.1, 0.2],
    )
    index, report = build_index(data, "train", KeypointLabels)
    found = index.instances(0)
    assert found.keypoints[:, :, 2].tolist() == [[2, 1], [0, 0], [0, 0], [2, 1]]
    assert found.keypoints[0, 0].tolist() == [20, 30, 2]
    assert found.ignore.tolist() == [False, False, True, False]
    assert found.area.tolist() == [700] * 4  # COCO's own
    assert index.kpt_shape == (2, 3)
    assert index.kpt_oks_sigmas == (0.1, 0.2)
    text = " | ".join(map(str, report.problems))
    assert "annotation 5: expected the visibility of keypoint 0 as 0, 1 or 2, found 3" in text
    assert "annotation 6: expected keypoint 1 inside the image of 80x100 pixels" in text
    assert "annotation 7: expected 6 numbers in keypoints" in text
    assert "found 3 entries" in text


def test_data_without_the_key_say_so(tmp_path):
    from yolo.engine.inputs import dataset
    from yolo.tasks.pose import TASK

    config = TASK.train_config(data=str(write_shapes(tmp_path / "set", train=1, val=1, size=96)))
    with pytest.raises(DataError, match=r"data\.yaml: expected the key 'kpt_shape', which labels"):
        dataset(config, TASK, None)


def test_the_label_cache_depends_on_the_sigmas(tmp_path):
    data = write_coco(tmp_path, [{"keypoints": [20, 30, 2, 40, 40, 1]}], kpt_shape=[2, 3])
    first, _ = build_index(data, "train", KeypointLabels, tmp_path / "cache")
    assert first.kpt_oks_sigmas is None
    other = replace(data, kpt_oks_sigmas=(0.1, 0.2))
    for _ in range(2):  # written, then read
        second, _ = build_index(other, "train", KeypointLabels, tmp_path / "cache")
        assert tuple(second.kpt_oks_sigmas) == (0.1, 0.2)


@pytest.fixture(scope="module")
def posed(tmp_path_factory):
    file = write_shapes(
        tmp_path_factory.mktemp("posed") / "set", train=6, val=1, size=96, kind="keypoints"
    )
    return read_dataset(file)


def first_batch(data, **gains):
    index, _ = build_index(data, "train", KeypointLabels)
    store = ImageStore(index, (96, 96), channels=3)
    still = {"mosaic": 0.0, "translate": 0.0, "scale": 0.0, "hsv_h": 0.0, "hsv_s": 0.0}
    augment = Augment(**{**still, "hsv_v": 0.0, "fliplr": 0.0, "flip_idx": data.flip_idx, **gains})
    extras = KeypointTargets(data.kpt_shape[0])
    loader = TrainLoader(index, store, augment, batch=6, size=(96, 96), extras=extras)
    return next(loader.epoch(0))


@pytest.mark.parametrize("flip", ["fliplr", "flipud"])
def test_flips_change_left_and_right(posed, flip):
    """An arrow's left wing is on the left of its heading in the mirror, too."""
    plain, mirrored = first_batch(posed), first_batch(posed, **{flip: 1.0})
    before, after = (b.targets.extras["keypoints"].numpy() for b in (plain, mirrored))
    axis = 0 if flip == "fliplr" else 1
    expected = before[:, :, [0, 3, 2, 1]].copy()
    expected[..., axis] = 96 - expected[..., axis]
    there = (before[..., 2] > 0).any(-1)
    np.testing.assert_allclose(after[there], expected[there], atol=1e-3)
    nose, left, tail, right = np.moveaxis(after[(after[..., 2] > 0).all(-1)][..., :2], 1, 0)
    (hx, hy), (ax, ay) = (nose - tail).T, (right - left).T
    assert len(nose) > 3
    assert (hx * ay - hy * ax > 0).all()  # the right is to the right of the heading


def test_without_flip_idx_nothing_is_mirrored(posed, caplog):
    blind = replace(posed, flip_idx=None)
    flipped = first_batch(blind, fliplr=1.0, flipud=1.0)
    assert caplog.text.count("flips are off") == 1
    plain = first_batch(blind)
    assert (flipped.images == plain.images).all()
    assert (flipped.targets.extras["keypoints"] == plain.targets.extras["keypoints"]).all()


# ---------------------------------------------------------------------- targets


def sample(keypoints, ignore=None):
    n = len(keypoints)
    instances = Instances.from_boxes([0] * n, [[0, 0, 9, 9]] * n, keypoints=keypoints)
    if ignore is not None:
        instances.ignore = np.array(ignore)
    return Sample(np.zeros((9, 9, 3), np.uint8), instances, path="x.jpg")


def test_targets_are_padded_without_crowds():
    points = np.arange(24.0).reshape(3, 4, 2)
    points = np.concatenate([points, np.full((3, 4, 1), 2.0)], 2)
    empty = Sample(np.zeros((9, 9, 3), np.uint8))
    make = pickle.loads(pickle.dumps(KeypointTargets(4)))
    found = make([sample(points, [False, True, False]), empty], (9, 9))["keypoints"]
    assert found.shape == (2, 2, 4, 3)
    np.testing.assert_array_equal(found[0], points[[0, 2]])
    assert (found[1] == 0).all()
    assert make([empty], (9, 9))["keypoints"].shape == (1, 0, 4, 3)


def test_lost_keypoints_are_an_error():
    with pytest.raises(DataError, match=r"x.jpg: expected keypoints of shape \(1, 4, 3\)"):
        KeypointTargets(4)([sample(np.zeros((1, 5, 3)))], (9, 9))
    lost = sample(np.zeros((1, 4, 3)))
    lost.instances.keypoints = None
    with pytest.raises(DataError, match="found None; a transform of your own"):
        KeypointTargets(4)([lost], (9, 9))


def test_spreads():
    np.testing.assert_array_equal(oks_sigmas(17, 3), COCO_SIGMAS)
    np.testing.assert_allclose(oks_sigmas(17, 2), 1 / 17)
    np.testing.assert_allclose(oks_sigmas(4, 3), [0.25] * 4)
    assert oks_sigmas(2, 3, (0.1, 0.2)).tolist() == [0.1, 0.2]
