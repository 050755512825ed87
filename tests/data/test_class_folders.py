# SPDX-License-Identifier: Apache-2.0
"""Image folders as a dataset: classes, splits, findings and errors."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from folders import paint, write_folders
from yolo.data import shapes
from yolo.data.check import check_dataset
from yolo.data.class_folders import CLASSES, ImageClasses, class_files, whole_image
from yolo.data.datasets import read_dataset
from yolo.data.index import build_index
from yolo.data.labels import LabelRules, parse_labels
from yolo.data.report import ScanReport
from yolo.errors import DataError

KINDS = ImageClasses().kinds


@pytest.fixture
def root(tmp_path):
    return write_folders(tmp_path / "set")


def read(data, **options):
    return read_dataset(data, kinds=KINDS, **options)


def index_of(data, split="train", **options):
    return build_index(read(data), split, ImageClasses, **options)


def classes_of(index):
    return [int(index.instances(i).classes[0]) for i in range(len(index))]


def test_classes_are_the_sorted_folders_and_every_image_has_one(root):
    spec = read(root)
    assert (spec.kind, spec.names) == (CLASSES, {0: "blue", 1: "green", 2: "red"})
    index, report = build_index(spec, "train", ImageClasses)
    assert classes_of(index) == [0] * 4 + [1] * 4 + [2] * 4
    assert all(names in index.path(i) for i, names in zip(range(12), ["blue"] * 4, strict=False))
    assert index.class_counts().tolist() == [4, 4, 4]
    assert (report.images, report.background, report.total) == (12, 0, 0)
    np.testing.assert_array_equal(index.instances(0).boxes, [[0, 0, 56, 40]])


def test_images_are_found_at_any_depth(root):
    paint(root / "train" / "red" / "a" / "b" / "deep.jpg", "red", 9)
    index, _ = index_of(root)
    assert classes_of(index).count(2) == 5


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_names_of_the_validation_folder(root, name):
    (root / "val").rename(root / name)
    assert read(root).splits["val"] == (root / name,)


def test_a_split_may_lack_classes_but_not_add_one(root, caplog):
    for file in (root / "val" / "green").iterdir():
        file.unlink()
    (root / "val" / "green").rmdir()
    assert classes_of(index_of(root, "val")[0]) == [0, 0, 2, 2]
    paint(root / "val" / "reed" / "0.png", "red", 0)
    with pytest.raises(DataError) as caught:
        index_of(root, "val")
    text = str(caught.value)
    assert text.startswith(str(root / "val" / "reed"))
    assert "one of the 3 classes (blue, green, red), found 'reed'. Similar: 'red'" in text


def test_an_empty_class_folder(root):
    for split in ("train", "val"):
        (root / split / "white").mkdir()
    (root / "train" / "white" / "notes.txt").write_text("soon")
    with pytest.raises(DataError, match=r"white: expected images .* found 1 other files; fill"):
        index_of(root)
    _, report = index_of(root, "val")  # a class that isn't validated is only a finding
    assert [p.file for p in report.problems] == [str(root / "val" / "white")]
    assert "found an empty folder" in report.problems[0].reason


def test_missing_splits_say_how_to_split(root, tmp_path):
    with pytest.raises(DataError) as caught:
        read(root / "train")
    text = str(caught.value)
    assert text.startswith(str(root / "train"))
    assert "expected the folder 'train'" in text
    assert "found blue, green, red" in text
    assert "about a fifth" in text
    (root / "val").rename(root / "vel")
    with pytest.raises(DataError, match=r"expected the folder 'val' .* found train, vel"):
        read(root)


def test_images_beside_the_class_folders_are_findings(root):
    paint(root / "train" / "loose.png", "red", 0)
    index, report = index_of(root)
    assert len(index) == 12
    assert report.found == {"image": 1}
    assert "found it beside them in 'train'" in str(report.problems[0])


def test_broken_images_are_findings(root):
    (root / "train" / "red" / "0.png").write_bytes(b"")
    whole = (root / "train" / "red" / "1.png").read_bytes()
    (root / "train" / "red" / "1.png").write_bytes(whole[: len(whole) // 2])
    index, report = index_of(root)
    assert len(index) == 10
    assert report.found == {"image": 2}
    assert "empty" in report.problems[0].reason
    assert "truncated" in report.problems[1].reason
    with pytest.raises(DataError, match="strict=True"):
        index_of(root, strict=True)


def test_a_text_beside_an_image_is_no_label(root):
    (root / "train" / "red" / "0.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (root / "train" / "red" / "other.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    _, report = index_of(root)
    assert report.total == 0


def test_yaml_with_names(root, tmp_path):
    file = tmp_path / "data.yaml"
    file.write_text("path: set\ntrain: train\nval: val\nnames: [red, green, blue, black]\n")
    spec = read(file)
    assert spec.names[0] == "red"
    index, _ = build_index(spec, "train", ImageClasses)
    assert classes_of(index) == [2] * 4 + [1] * 4 + [0] * 4
    file.write_text("path: set\ntrain: [train, val]\nval: val\n")
    index, _ = index_of(file)
    assert index.class_counts().tolist() == [6, 6, 6]
    file.write_text("path: set\ntrain: train\nval: val\nnc: 4\n")
    with pytest.raises(
        DataError, match=r"nc: expected 3, the number of class folders in `train`, .* found 4"
    ):
        read(file)
    file.write_text("path: set\ntrain: train\nval: val\nnames: [red, green]\n")
    with pytest.raises(DataError, match=r"train/blue: expected one of the 2 classes"):
        index_of(file)


def test_folders_of_other_data_are_refused(root, tmp_path):
    file = tmp_path / "data.yaml"
    file.write_text("path: set\ntrain: train/red\nval: val/red\nnames: [red]\n")
    with pytest.raises(DataError, match=r"a folder for each class .* found 4 files"):
        index_of(file)
    (tmp_path / "a.json").write_text("{}")
    file.write_text("train: a.json\nval: a.json\nnames: [red]\n")
    with pytest.raises(DataError, match=r"a\.json: expected a folder .* found a file"):
        index_of(file)


def test_a_folder_of_class_folders_is_none_for_other_tasks(root):
    with pytest.raises(DataError, match="one YAML file"):
        read_dataset(root)


def test_options(root):
    index, _ = index_of(root, fraction=0.5)
    assert index.class_counts().tolist() == [2, 2, 2]
    index, _ = index_of(root, classes=[0, 2])  # ids stay, images of other classes go
    assert classes_of(index) == [0] * 4 + [2] * 4
    index, _ = index_of(root, single_cls=True)
    assert set(classes_of(index)) == {0}
    assert index.names == {0: "item"}


def test_the_cache_knows_changed_folders(root, tmp_path):
    cache = tmp_path / "cache"
    first, report = index_of(root, cache_dir=cache)
    again, cached = index_of(root, cache_dir=cache)
    assert (report.cached, cached.cached) == (False, True)
    assert again.folder == first.folder
    assert classes_of(again) == classes_of(first)
    (root / "train" / "red" / "0.png").rename(root / "train" / "blue" / "x.png")
    moved, report = index_of(root, cache_dir=cache)
    assert not report.cached
    assert moved.class_counts().tolist() == [5, 4, 3]


def test_embedded_data_have_class_folders(tmp_path, monkeypatch):
    for name, value in (("TRAIN", 30), ("VAL", 5), ("SIZE", 96)):
        monkeypatch.setattr(shapes, name, value)
    spec = read("shapes", cache_dir=tmp_path)
    assert spec.kind == CLASSES
    assert spec.names == shapes.NAMES
    index, _ = build_index(spec, "train", ImageClasses)
    assert index.class_counts().sum() == 30


def test_check(root, caplog):
    (root / "val" / "red" / "0.png").write_bytes(b"no image")
    report = check_dataset(root, ImageClasses)
    assert [p.file for p in report.problems] == [str(root / "val" / "red" / "0.png")]
    with caplog.at_level(logging.INFO):
        assert "images" in report.table()


def test_the_longest_folder_counts_where_sources_lie_in_each_other(root):
    names = dict(enumerate(["blue", "green", "red", "val", "train"]))
    source = class_files([root, root / "train"], names, all_needed=False)
    images = source.scan(ScanReport("train"), 1)
    found = {names[int(x.instances.classes[0])]: Path(x.path) for x in images}
    assert found["red"].parent == root / "train" / "red"
    assert found["val"].parent.parent == root / "val"
    assert "train" not in found


def test_rows_are_no_labels():
    instances, problems = parse_labels(b"0 0.5 0.5 0.1 0.1", "a.txt", ImageClasses(), LabelRules(3))
    assert not len(instances)
    assert "class folders" in problems[0].reason


def test_objects(root):
    items = [{"image": np.zeros((8, 6, 3), np.uint8), "image_class": i % 2} for i in range(4)]
    data = {"train": items, "val": items, "names": ["a", "b"]}
    index, _ = index_of(data)
    assert classes_of(index) == [0, 1, 0, 1]
    np.testing.assert_array_equal(index.instances(1).boxes, whole_image(1, (8, 6)).boxes)
    for bad in (2, 0.5, None):
        items[3]["image_class"] = bad
        with pytest.raises(DataError, match=r"train\[3\]: image_class"):
            index_of(data)
