# SPDX-License-Identifier: Apache-2.0
"""Classes chosen and joined by name, and images of several kinds of datasets in one."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from yolo.data.datasets import read_dataset
from yolo.data.index import LabelIndex, build_index
from yolo.data.labels import BoxLabels
from yolo.data.merge import choose_classes
from yolo.errors import DataError
from yolo.tasks.pose.data import KeypointLabels

CATS = {0: "cat", 1: "dog"}
CARS = {0: "truck", 1: "cat", 2: "car"}


@pytest.mark.parametrize(
    ("wanted", "names", "maps"),
    [
        (None, ["cat", "dog", "truck", "car"], [(0, 1), (2, 0, 3)]),
        (["car", "cat"], ["car", "cat"], [(1, -1), (-1, 1, 0)]),
        ({"vehicle": ["car", "truck"], "cat": None}, ["vehicle", "cat"], [(1, -1), (0, 1, 0)]),
        ({"pet": "dog"}, ["pet"], [(-1, 0), (-1, -1, -1)]),
    ],
)
def test_classes_are_numbered_by_name(wanted: Any, names: list[str], maps: Any) -> None:
    found = choose_classes([CATS, CARS], wanted, "m.yaml")
    assert found == (dict(enumerate(names)), maps)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (
            ["cta"],
            "cta: there is no class 'cta'. Similar: 'cat', 'car'. Known: cat, dog, truck, car",
        ),
        ({"a": "cat", "b": ["dog", "cat"]}, "b: 'cat' stands further up already"),
        ([], "expected names, or new name: .old names., found "),
        ("cat", "expected names, or new name: .old names., found 'cat'"),
    ],
)
def test_bad_choices(wanted: Any, reason: str) -> None:
    with pytest.raises(DataError, match=f"^m.yaml: classes: {reason}"):
        choose_classes([CATS, CARS], wanted, "m.yaml")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((50, 100, 3), np.uint8))


@pytest.fixture
def datasets(tmp_path: Path) -> list[Any]:
    """The same two objects in three forms: class "a" on the left, "b" on the right."""
    picture(tmp_path / "yolo/images/1.png")
    (tmp_path / "yolo/labels").mkdir()
    text = "1 0.2 0.5 0.2 0.4\n0 0.7 0.5 0.2 0.4\n"
    (tmp_path / "yolo/labels/1.txt").write_text(text, encoding="utf-8")
    folder = {"path": str(tmp_path / "yolo"), "train": "images", "val": "images"}
    boxes = [[10, 15, 30, 35], [60, 15, 80, 35]]
    picture(tmp_path / "coco/images/2.png")
    content = {
        "categories": [{"id": 9, "name": "a"}, {"id": 4, "name": "b"}],
        "images": [{"id": 7, "file_name": "2.png", "height": 50, "width": 100}],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": category, "bbox": [x, 15, 20, 20]}
            for i, (category, x) in enumerate([(9, 10), (4, 60)])
        ],
    }
    file = tmp_path / "coco/set.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    item = {"image": np.zeros((50, 100), np.uint8), "classes": [0, 1], "boxes": boxes}
    objects = {"train": [item], "val": [item], "names": ["a", "b"]}
    return [{**folder, "names": ["b", "a"]}, file, objects]


def lefts(index: LabelIndex) -> list[list[tuple[int, float]]]:
    """Class and left side of each object of each image."""
    every = [index.instances(i) for i in range(len(index))]
    return [
        list(zip(x.classes.tolist(), x.boxes[:, 0].round(6).tolist(), strict=True)) for x in every
    ]


def test_kinds_of_datasets_merge(datasets: list[Any], tmp_path: Path) -> None:
    spec = read_dataset({"merge": datasets, "classes": ["a", "b"]})
    index, report = build_index(spec, "train", BoxLabels(), tmp_path / "cache")
    assert lefts(index) == [[(0, 10), (1, 60)]] * 3
    assert [Path(index.path(i)).name for i in range(3)] == ["1.png", "2.png", "train[0]"]
    assert index.path(2) == "merge[2]/train[0]"
    assert [index.image(i, 3) is None for i in range(3)] == [True, True, False]
    assert [index.image_id(i) for i in range(3)] == [1, 2, "train[0]"]
    assert report.objects == 6
    assert not (tmp_path / "cache").exists()  # objects leave nothing on disk
    assert index.category_ids is None


def test_classes_are_left_out_and_images_stay(datasets: list[Any]) -> None:
    spec = read_dataset({"merge": datasets, "classes": {"right": "b"}})
    assert lefts(build_index(spec, "train", BoxLabels())[0]) == [[(0, 60)]] * 3
    single = build_index(spec, "train", BoxLabels(), single_cls=True)[0]
    assert lefts(single) == [[(0, 60)]] * 3
    assert single.names == {0: "item"}
    nested = read_dataset([{"merge": [datasets[1]], "classes": {"left": "a"}}, datasets[2]])
    assert nested.names == {0: "left", 1: "a", 2: "b"}
    index = build_index(nested, "val", BoxLabels())[0]
    assert lefts(index) == [[(0, 10)], [(1, 10), (2, 60)]]
    chosen = build_index(nested, "val", BoxLabels(), classes=[2])[0]
    assert lefts(chosen) == [[], [(2, 60)]]


def test_one_coco_file_keeps_its_image_ids(datasets: list[Any]) -> None:
    spec = read_dataset({"merge": datasets[1], "classes": ["b"]})
    assert build_index(spec, "train", BoxLabels())[0].image_id(0) == 7


def test_a_merged_cache_depends_on_the_choice(datasets: list[Any], tmp_path: Path) -> None:
    def scan(data: Any) -> Any:
        return build_index(read_dataset(data), "train", BoxLabels(), tmp_path / "cache")[1]

    assert not scan(datasets[:2]).cached
    assert scan(datasets[:2]).cached
    assert not scan({"merge": datasets[:2], "classes": ["a", "b"]}).cached
    label = tmp_path / "yolo/labels/1.txt"
    label.write_text("0 0.2 0.5 0.2 0.4\n", encoding="utf-8")
    assert not scan(datasets[:2]).cached


def test_what_has_to_agree(datasets: list[Any]) -> None:
    pose = {**datasets[0], "kpt_shape": [2, 3], "flip_idx": [1, 0], "kpt_names": [["p", "q"]][0]}
    spec = read_dataset([pose, {**pose, "names": ["a"]}])
    assert (spec.kpt_shape, spec.flip_idx) == ((2, 3), (1, 0))
    assert spec.kpt_names == {0: ("p", "q"), 1: ("p", "q")}
    assert read_dataset([pose, datasets[0]]).kpt_shape is None
    with pytest.raises(DataError, match=r"one kpt_shape in all datasets, .* \(2, 3\) in merge"):
        read_dataset([pose, {**datasets[0], "kpt_shape": [3, 3]}])
    with pytest.raises(DataError, match="expected one channels in all datasets, found 3"):
        read_dataset([datasets[0], {**datasets[0], "channels": 4}])


def test_keypoints_go_together_or_not_at_all(datasets: list[Any]) -> None:
    pose = {**datasets[0], "kpt_shape": [2, 3], "flip_idx": [1, 0], "kpt_oks_sigmas": [0.1, 0.2]}
    spec = read_dataset([{**pose, "kpt_names": ["p", "q"]}, datasets[2]])
    assert (spec.kpt_shape, spec.flip_idx) == (None, None)
    assert (spec.kpt_oks_sigmas, spec.kpt_names) == (None, None)
    assert len(build_index(spec, "train", BoxLabels())[0]) == 2
    with pytest.raises(DataError, match=r"^merge\[1\]: expected the key 'kpt_shape'"):
        spec.keypoint_shape()
    with pytest.raises(DataError, match=r"^merge\[1\]: expected the key 'kpt_shape'"):
        build_index(spec, "train", KeypointLabels)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_other_classes_may_be_regions_to_ignore(datasets: list[Any], which: int) -> None:
    """A region for each class, as COCO's scoring goes by classes."""
    data = {"merge": datasets[which], "classes": ["b"], "others": "ignore"}
    spec = read_dataset(data)
    index, report = build_index(spec, "train", BoxLabels())
    found = index.instances(0)
    assert found.classes.tolist() == [0, 0]
    assert found.boxes[:, 0].round(6).tolist() == [60, 10]
    assert found.ignore.tolist() == [False, True]
    assert index.class_counts().tolist() == [1]
    assert report.ignored == 1
    two = read_dataset({"merge": [data, datasets[0]], "classes": ["b", "a"], "others": "ignore"})
    both = build_index(two, "train", BoxLabels())[0].instances(1)
    assert both.ignore.tolist() == [False, False]
    with pytest.raises(DataError, match="others: expected 'drop' or 'ignore', found 'keep'"):
        read_dataset({**data, "others": "keep"})


def test_the_choice_of_others_is_a_cache_of_its_own(datasets: list[Any], tmp_path: Path) -> None:
    data = {"merge": datasets[0], "classes": ["b"]}
    for others, objects in (("drop", 1), ("ignore", 2)):
        spec = read_dataset({**data, "others": others})
        for cached in (False, True):
            _, report = build_index(spec, "train", BoxLabels(), tmp_path / "cache")
            assert (report.objects, report.cached) == (objects, cached)


def test_a_share_of_each_dataset(datasets: list[Any], tmp_path: Path) -> None:
    for i in range(2, 9):
        picture(tmp_path / f"yolo/images/{i}.png")
    datasets[2]["train"] = datasets[2]["train"] * 4
    index, _ = build_index(read_dataset(datasets), "train", BoxLabels(), fraction=0.5)
    names = [index.path(i).rpartition("/")[2] for i in range(len(index))]
    assert names == ["1.png", "3.png", "5.png", "7.png", "2.png", "train[0]", "train[2]"]


def test_a_class_of_one_dataset_alone_is_told(
    datasets: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        read_dataset([datasets[0], {**datasets[0], "names": ["b", "c"]}])
    assert "'c' is a class of merge[1] alone" in caplog.text
    assert "'b' is" not in caplog.text


def test_a_split_that_only_one_has(datasets: list[Any]) -> None:
    more = {**datasets[2], "test": datasets[2]["val"]}
    spec = read_dataset([datasets[0], more])
    assert len(build_index(spec, "test", BoxLabels())[0]) == 1
    with pytest.raises(DataError, match="expected the key 'test', found train, val"):
        build_index(read_dataset(datasets), "test", BoxLabels())
