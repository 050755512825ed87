# SPDX-License-Identifier: Apache-2.0
"""The label index: what was labelled comes out, from memory, from files, in other processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import yolo.data.index as module
from yolo.data.class_folders import ImageClasses
from yolo.data.coco import CocoSource
from yolo.data.datasets import DatasetSpec, read_dataset
from yolo.data.folder import FileSource
from yolo.data.index import PLACES, LabelIndex, build_index, open_split
from yolo.data.labels import BoxLabels, LabelFormat, LabelledImage
from yolo.data.merge import MergedSource
from yolo.data.objects import ObjectSource
from yolo.data.report import ScanReport
from yolo.data.sample import Instances
from yolo.errors import ConfigError, DataError
from yolo.tasks.pose.data import KeypointLabels

BOXES = BoxLabels()


def add(
    root: Path, name: str, label: str | bytes | None = None, size: tuple[int, int] = (40, 80)
) -> None:
    image = root / "images" / f"{name}.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(image), np.zeros((*size, 3), np.uint8))
    if label is not None:
        text = root / "labels" / f"{name}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_bytes(label if isinstance(label, bytes) else label.encode())


@pytest.fixture
def spec(tmp_path: Path) -> DatasetSpec:
    root = tmp_path / "set"
    add(root, "train/b", "0 0.5 0.5 0.5 0.5\n1 0.25 0.5 0.1 0.2\n")
    add(root, "train/a", "1 0.5 0.5 0.25 0.25\n", (100, 60))
    add(root, "train/c")
    add(root, "val/x/7", "0 0.5 0.5 0.5 0.5\n")
    add(root, "val/y/7", "1 0.5 0.5 0.5 0.5\n")
    entries = {"path": str(root), "train": "images/train", "val": "images/val", "names": ["p", "q"]}
    return read_dataset(entries)


def same(one: LabelIndex, two: LabelIndex) -> bool:
    return one.arrays.keys() == two.arrays.keys() and all(
        np.array_equal(one.arrays[name], two.arrays[name]) for name in one.arrays
    )


def test_index_holds_pixels_of_the_original_images(spec: DatasetSpec) -> None:
    index, report = build_index(spec, "train", BOXES)
    assert [Path(index.path(i)).stem for i in range(len(index))] == ["a", "b", "c"]
    assert [index.shape(i) for i in range(3)] == [(100, 60), (40, 80), (40, 80)]
    assert index.instances(1).classes.tolist() == [0, 1]
    assert np.allclose(index.instances(1).boxes, [[20, 10, 60, 30], [16, 16, 24, 24]])
    assert np.allclose(index.instances(1).area, [800, 64])
    assert len(index.instances(2)) == 0
    assert index.class_counts().tolist() == [1, 2]
    assert (report.images, report.background, report.objects, report.total) == (3, 1, 3, 0)
    assert index.names == {0: "p", 1: "q"}
    assert index.category_ids is None


def test_instances_are_copies(spec: DatasetSpec, tmp_path: Path) -> None:
    for cache in (None, tmp_path / "cache"):
        index, _ = build_index(spec, "train", BOXES, cache)
        index.instances(1).boxes[:] = -1
        assert index.instances(1).boxes.min() > 0


def test_same_names_in_two_folders_are_two_images(spec: DatasetSpec) -> None:
    index, _ = build_index(spec, "val", BOXES)
    assert len(index) == 2
    assert [index.image_id(i) for i in range(2)] == [7, 7]
    assert [int(index.instances(i).classes[0]) for i in range(2)] == [0, 1]


def test_cache_is_used_until_anything_changes(
    spec: DatasetSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first, report = build_index(spec, "train", BOXES, cache)
    assert not report.cached
    with monkeypatch.context() as patch:
        patch.setattr(FileSource, "scan", None)  # nothing may be read again
        again, warm = build_index(spec, "train", BOXES, cache)
    assert warm.cached
    assert warm.objects == report.objects
    assert same(first, again)

    label = Path(spec.root, "labels/train/a.txt")
    label.write_text("0 0.5 0.5 0.25 0.25\n", encoding="utf-8")
    os.utime(label, ns=(10**18, 10**18))
    index, report = build_index(spec, "train", BOXES, cache)
    assert not report.cached
    assert index.instances(0).classes.tolist() == [0]
    for change in ({"single_cls": True}, {"classes": [1]}, {"fraction": 0.5}):
        assert not build_index(spec, "train", BOXES, cache, **change)[1].cached  # type: ignore[arg-type]
        assert build_index(spec, "train", BOXES, cache, **change)[1].cached  # type: ignore[arg-type]
    other = DatasetSpec(spec.root, spec.splits, {0: "q", 1: "p"})
    assert not build_index(other, "train", BOXES, cache)[1].cached
    assert not build_index(spec, "train", BoxLabels(name="boxes-2"), cache)[1].cached


def test_dataset_is_never_written_to(spec: DatasetSpec, tmp_path: Path) -> None:
    def listing() -> list[tuple[str, int, int]]:
        return [
            (str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(spec.root.rglob("*"))
        ]

    before = listing()
    build_index(spec, "train", BOXES, tmp_path / "cache")
    build_index(spec, "val", BOXES)
    assert listing() == before


def test_broken_cache_is_rebuilt(spec: DatasetSpec, tmp_path: Path) -> None:
    index, _ = build_index(spec, "train", BOXES, tmp_path)
    assert index.folder is not None
    for name, data in (("boxes.npy", b"junk"), ("meta.json", b"{"), ("meta.json", b"[]")):
        (index.folder / name).write_bytes(data)
        again, report = build_index(spec, "train", BOXES, tmp_path)
        assert not report.cached
        assert again.instances(1).classes.tolist() == [0, 1]
    (index.folder / "classes.npy").unlink()
    assert not build_index(spec, "train", BOXES, tmp_path)[1].cached
    leftovers = [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert leftovers == []


def test_pickle_in_a_cache_does_not_run(spec: DatasetSpec, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    index, _ = build_index(spec, "train", BOXES, tmp_path)
    assert index.folder is not None
    np.save(index.folder / "boxes.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    assert not build_index(spec, "train", BOXES, tmp_path)[1].cached
    assert not (tmp_path / "ran").exists()


def test_second_writer_takes_the_first_ones_folder(spec: DatasetSpec, tmp_path: Path) -> None:
    index, _ = build_index(spec, "train", BOXES)
    one = index.save(tmp_path / "cache/labels")
    two = index.save(tmp_path / "cache/labels")
    assert same(one, two)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["labels"]


def test_pickles_as_its_folder(spec: DatasetSpec, tmp_path: Path) -> None:
    memory, _ = build_index(spec, "train", BOXES)
    mapped, _ = build_index(spec, "train", BOXES, tmp_path)
    assert len(pickle.dumps(mapped)) < 400
    for index in (memory, mapped):
        again = pickle.loads(pickle.dumps(index))
        assert same(again, index)
        assert again.names == index.names
    assert not mapped.arrays["boxes"].flags.writeable
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(mapped.path, (1,)) == mapped.path(1)


def test_bad_rows_and_images_cost_themselves(spec: DatasetSpec, tmp_path: Path) -> None:
    add(spec.root, "train/d", "0 .5 .5 .2 .2\n5 .5 .5 .2 .2\n0 .5 .5 .2 .2\n0 .5 .5 .2\n")
    add(spec.root, "train/e", "0 .5 .5 .2 .2\n")
    (spec.root / "images/train/e.png").write_bytes(b"")
    (spec.root / "labels/train/lost.txt").write_bytes(b"0 .5 .5 .2 .2\n")
    index, report = build_index(spec, "train", BOXES, tmp_path / "cache")
    assert [Path(index.path(i)).stem for i in range(len(index))] == ["a", "b", "c", "d"]
    assert len(index.instances(3)) == 1
    assert report.found == {"orphan": 1, "row": 2, "duplicate": 1, "image": 1}
    lines = [str(problem) for problem in report.problems]
    assert any(
        "train/d.txt:2: expected a class id from 0 to 1, found '5 " in line for line in lines
    )
    assert any("train/e.png: the file is empty" in line for line in lines)
    warm = build_index(spec, "train", BOXES, tmp_path / "cache")[1]
    assert [str(problem) for problem in warm.problems] == lines
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(DataError, match="strict=True stops"):
            build_index(spec, "train", BOXES, cache, strict=True)


def test_threads_change_nothing(spec: DatasetSpec) -> None:
    for i in range(150):
        add(spec.root, f"train/n{i:03}", f"{i % 3} .5 .5 .{i % 9 + 1} .2\n", (8, 8))
    one, first = build_index(spec, "train", BOXES, workers=1)
    two, second = build_index(spec, "train", BOXES, workers=4)
    assert same(one, two)
    assert first.problems == second.problems
    assert first.total == 50


def test_single_class_chosen_classes_and_fraction(spec: DatasetSpec) -> None:
    single, _ = build_index(spec, "train", BoxLabels, single_cls=True)
    assert single.names == {0: "item"}
    assert single.class_counts().tolist() == [3]
    ones, report = build_index(spec, "train", BOXES, classes=1)
    assert ones.class_counts().tolist() == [0, 2]
    assert len(ones) == 3
    assert report.objects == 2
    few, _ = build_index(spec, "train", BOXES, fraction=0.67)
    assert [Path(few.path(i)).stem for i in range(len(few))] == ["a", "b"]
    with pytest.raises(ConfigError, match="classes: expected ids from 0 to 1, found 2"):
        build_index(spec, "train", BOXES, classes=[2])
    with pytest.raises(ConfigError, match="fraction"):
        build_index(spec, "train", BOXES, fraction=0.0)


def test_classes_are_chosen_before_they_become_one(spec: DatasetSpec) -> None:
    index, report = build_index(spec, "train", BOXES, classes=[0], single_cls=True)
    assert index.class_counts().tolist() == [1]
    assert (len(index), report.background) == (3, 2)


def test_objects_are_listed_without_ignored_regions(spec: DatasetSpec) -> None:
    images, classes = build_index(spec, "train", BOXES)[0].objects()
    assert (images.tolist(), classes.tolist()) == ([0, 1, 1], [1, 0, 1])


def test_a_change_of_keypoints_or_of_the_task_is_a_cache_of_its_own(tmp_path: Path) -> None:
    add(tmp_path, "a", "0 .5 .5 .2 .2 .4 .4 2\n")
    cache = tmp_path / "cache"
    entries = {"path": str(tmp_path), "train": "images", "val": "images", "names": ["p"]}
    for shape, label_format, rows in (
        ([1, 3], KeypointLabels, 1), ([1, 3], BoxLabels, 1), ([3, 1 + 1], BoxLabels, 0),
    ):  # fmt: skip
        posed = read_dataset({**entries, "kpt_shape": shape})
        for cached in (False, True):
            index, report = build_index(posed, "val", label_format, cache)
            assert (report.objects, report.cached) == (rows, cached)
            assert ("keypoints" in index.arrays) == (label_format is KeypointLabels)
    with pytest.raises(DataError, match="expected the key 'kpt_shape', which labels with keypoin"):
        build_index(read_dataset(entries), "val", KeypointLabels, cache)


def test_no_images_and_no_labels_are_errors(spec: DatasetSpec) -> None:
    add(spec.root, "bare/a")
    (spec.root / "images/none").mkdir()
    bare = (spec.root / "images/bare",)
    other = DatasetSpec(spec.root, {"train": bare, "val": bare, "test": ()}, {0: "p"})
    with pytest.raises(DataError, match="train: no object to train on in its label files"):
        build_index(other, "train", BOXES)
    assert build_index(other, "val", BOXES)[1].background == 1
    empty = DatasetSpec(spec.root, {"train": (spec.root / "images/none",)}, {0: "p"})
    with pytest.raises(DataError, match=r"train: no images found in .*images/none"):
        build_index(empty, "train", BOXES)
    (spec.root / "images/bare/a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"not one usable image\. First problem: .*a\.png"):
        build_index(other, "val", BOXES)


def test_every_kind_of_label_survives(tmp_path: Path) -> None:
    """Formats to come store polygons, keypoints and corners without a change here."""
    rings = [[np.arange(6.0).reshape(3, 2)], [np.ones((4, 2)), np.zeros((3, 2))]]
    full = Instances.from_boxes(
        [0, 1],
        [[0, 0, 2, 2], [1, 1, 3, 3]],
        ignore=np.array([False, True]),
        polygons=rings,
        keypoints=np.arange(12.0).reshape(2, 2, 3),
        corners=np.arange(16.0).reshape(2, 4, 2),
    )
    images = [
        LabelledImage("/a.jpg", (4, 4), full),
        LabelledImage("/bé.jpg", (4, 4), Instances.empty()),
        LabelledImage("/c.jpg", (4, 4), full.select(np.array([1]))),
    ]
    meta = {
        "version": module.VERSION,
        "names": ["p", "q"],
        "category_ids": None,
        "kpt_shape": (2, 3),
        "kpt_oks_sigmas": None,
    }
    report = ScanReport("train")
    index = module._collect(iter(images), meta, report).save(tmp_path / "i")
    assert report.ignored == 2
    assert index.class_counts().tolist() == [1, 0]
    assert index.path(1) == "/bé.jpg"
    assert len(index.instances(1)) == 0
    for i, expected in ((0, full), (2, full.select(np.array([1])))):
        got = index.instances(i)
        assert np.array_equal(got.keypoints, expected.keypoints)
        assert np.array_equal(got.corners, expected.corners)
        assert got.ignore.tolist() == expected.ignore.tolist()
        assert got.polygons is not None
        assert expected.polygons is not None
        assert [[r.tolist() for r in p] for p in got.polygons] == [
            [r.tolist() for r in p] for p in expected.polygons
        ]


def test_meta_is_plain_json(spec: DatasetSpec, tmp_path: Path) -> None:
    index, _ = build_index(spec, "train", BOXES, tmp_path)
    assert index.folder is not None
    assert json.loads((index.folder / "meta.json").read_text())["names"] == ["p", "q"]
    assert {p.suffix for p in index.folder.iterdir()} == {".npy", ".json"}


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """Four images, as a folder, as a COCO JSON, and as the class folders "a" and "b"."""
    names = [f"{i}.png" for i in range(4)]
    for folder in ("images", "train/a", "train/b", "val/a"):
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            cv2.imwrite(str(tmp_path / folder / name), np.zeros((20, 20, 3), np.uint8))
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [],
        "categories": [{"id": 0, "name": "a"}],
    }
    (tmp_path / "set.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("kind", ["yolo", "coco", "classes", "objects", "merged"])
def test_every_kind_opens(four: Path, kind: str) -> None:
    folder = {"path": str(four), "train": "images", "val": "images", "names": ["a"]}
    item = {"image": np.zeros((20, 20), np.uint8)}
    given: dict[str, tuple[Any, type, LabelFormat, int]] = {
        "yolo": (folder, FileSource, BoxLabels(), 4),
        "coco": (four / "set.json", CocoSource, BoxLabels(), 4),
        "classes": (four, FileSource, ImageClasses(), 8),
        "objects": ({"train": [item] * 6, "names": ["a"]}, ObjectSource, BoxLabels(), 6),
        "merged": ([folder, four / "set.json"], MergedSource, BoxLabels(), 8),
    }
    data, source_type, label_format, count = given[kind]
    spec = read_dataset(data, kinds=label_format.kinds)
    assert spec.kind == kind
    assert kind in PLACES
    for fraction in (1.0, 0.5):
        source = open_split(spec, "train", label_format, fraction)
        assert isinstance(source, source_type)
        assert len(list(source.scan(ScanReport("train"), 1))) == count * fraction
    with pytest.raises(DataError, match="expected the key 'test', found train"):
        open_split(spec, "test", label_format)
