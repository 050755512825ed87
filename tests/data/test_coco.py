# SPDX-License-Identifier: Apache-2.0
"""COCO JSON: sparse ids round trip, crowds and areas kept, odd entries named."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from yolo.data.coco import find_image_folder, read_categories
from yolo.data.datasets import read_dataset
from yolo.data.index import build_index
from yolo.data.labels import BoxLabels
from yolo.data.masks import decode_rle, encode_rle, polygon_rle, run_lengths
from yolo.errors import DataError

BOXES = BoxLabels()


@dataclass(frozen=True)
class Everything(BoxLabels):
    """A format that wants all that COCO has."""

    name: str = "everything"
    kinds: frozenset[str] = frozenset({"polygons", "keypoints"})


def annotation(number: int, image: int, category: int, **more: Any) -> dict[str, Any]:
    entry = {"id": number, "image_id": image, "category_id": category, "bbox": [10, 5, 20, 10]}
    return {**entry, "area": 120.5, "iscrowd": 0, **more}


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "images").mkdir()
    for name in ("b.png", "a.png", "c.png"):
        cv2.imwrite(str(tmp_path / "images" / name), np.zeros((40, 60, 3), np.uint8))
    sizes = {"height": 40, "width": 60}
    return {
        "info": {"note": 'a "categories": [ in text'},
        "images": [
            {"id": 500, "file_name": "b.png", **sizes},
            {"id": 30, "file_name": "a.png", **sizes},
            {"id": 31, "file_name": "c.png", **sizes},
        ],
        "annotations": [
            annotation(1, 500, 90),
            annotation(2, 500, 17, iscrowd=1, segmentation={"counts": [0], "size": [40, 60]}),
            annotation(3, 30, 17, bbox=[0.5, 0.25, 3.5, 4.5]),
        ],
        "categories": [{"id": 90, "name": "brush"}, {"id": 17, "name": "cat"}],
    }


def save(folder: Path, content: Any, name: str = "instances_train.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_file_names_may_be_absolute(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "elsewhere").mkdir()
    for image in content["images"]:
        image["file_name"] = str(tmp_path / "images" / image["file_name"])
    spec = read_dataset(save(tmp_path / "elsewhere", content))
    for cached in (False, True):
        index, report = build_index(spec, "train", BOXES, tmp_path / "cache")
        assert Path(index.path(0)) == tmp_path / "images" / "a.png"
        assert report.cached == cached


def test_sparse_ids_areas_and_crowds(tmp_path: Path, content: dict[str, Any]) -> None:
    spec = read_dataset(save(tmp_path, content))
    index, report = build_index(spec, "train", BOXES, tmp_path / "cache")
    assert index.names == {0: "cat", 1: "brush"}
    assert index.category_ids == (17, 90)
    assert [index.image_id(i) for i in range(3)] == [30, 500, 31]
    assert [Path(index.path(i)).name for i in range(3)] == ["a.png", "b.png", "c.png"]
    both = index.instances(1)
    assert [index.category_ids[c] for c in both.classes] == [90, 17]
    assert both.ignore.tolist() == [False, True]
    assert both.area.tolist() == [120.5, 120.5]
    assert index.instances(0).boxes.tolist() == [[0.5, 0.25, 4.0, 4.75]]
    assert index.class_counts().tolist() == [1, 1]
    assert (report.objects, report.ignored, report.background, report.total) == (3, 1, 1, 0)
    again, warm = build_index(spec, "train", BOXES, tmp_path / "cache")
    assert warm.cached
    assert again.image_id(1) == 500
    assert again.category_ids == (17, 90)


def test_cache_follows_json_and_images(tmp_path: Path, content: dict[str, Any]) -> None:
    spec = read_dataset(save(tmp_path, content))
    build_index(spec, "train", BOXES, tmp_path / "cache")
    cv2.imwrite(str(tmp_path / "images/c.png"), np.ones((40, 61, 3), np.uint8))
    index, report = build_index(spec, "train", BOXES, tmp_path / "cache")
    assert not report.cached
    assert len(index) == 2
    assert "40x61 pixels (h x w)" in report.problems[0].reason
    content["annotations"].pop()
    save(tmp_path, content)
    assert not build_index(spec, "train", BOXES, tmp_path / "cache")[1].cached


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (annotation(9, 1, 17), "annotation 9: image_id 1 is none"),
        (annotation(9, 30, 1), "annotation 9: category_id 1 is none"),
        (annotation(9, 30, 17, bbox=[1, 2, 3]), "expected bbox"),
        (annotation(9, 30, 17, bbox=None), "expected bbox"),
        (annotation(9, 30, 17, bbox=[1, 2, float("nan"), 4]), "expected bbox"),
        (annotation(9, 30, 17, bbox=[1, 2, 10**400, 4]), "expected bbox"),
        (annotation(9, 30, 17, bbox=[1, 2, -3, 4]), "width and height above 0"),
        (annotation(9, 30, 17, bbox=[1, 2, 3, 0]), "width and height above 0"),
        (annotation(9, 30, 17, bbox=[60, 2, 3, 4]), "lies outside the image"),
    ],
)
def test_a_bad_annotation_costs_itself(
    tmp_path: Path, content: dict[str, Any], entry: dict[str, Any], reason: str
) -> None:
    content["annotations"].append(entry)
    spec = read_dataset(save(tmp_path, content))
    index, report = build_index(spec, "train", BOXES)
    assert report.objects == 3
    assert len(index) == 3
    assert [p.kind for p in report.problems] == ["row"]
    assert reason in str(report.problems[0])
    with pytest.raises(DataError, match="strict=True"):
        build_index(spec, "train", BOXES, strict=True)


def test_area_defaults_to_the_box(tmp_path: Path, content: dict[str, Any]) -> None:
    del content["annotations"][2]["area"]
    index, _ = build_index(read_dataset(save(tmp_path, content)), "train", BOXES)
    assert index.instances(0).area.tolist() == [3.5 * 4.5]


def test_missing_image_costs_itself(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "images/c.png").unlink()
    index, report = build_index(read_dataset(save(tmp_path, content)), "train", BOXES)
    assert len(index) == 2
    assert str(report.problems[0]).endswith("c.png: no such image")


@pytest.mark.parametrize("change", [{"id": 2**70}, {"file_name": "a\0.png"}])
def test_unusable_image_entries_name_the_file(
    tmp_path: Path, content: dict[str, Any], change: dict[str, Any]
) -> None:
    content["images"].append({**content["images"][0], "id": 99, "file_name": "z.png", **change})
    spec = read_dataset(save(tmp_path, content))
    with pytest.raises(DataError, match=r"\.json: expected images with id and file_name"):
        build_index(spec, "train", BOXES)


def test_repeated_image_is_kept_once(tmp_path: Path, content: dict[str, Any]) -> None:
    content["images"].append(content["images"][0])
    index, report = build_index(read_dataset(save(tmp_path, content)), "train", BOXES)
    assert len(index) == 3
    assert report.found == {"duplicate": 1}


def test_nothing_matched_is_an_error(tmp_path: Path, content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        entry["image_id"] = str(entry["image_id"])
    spec = read_dataset(save(tmp_path, content))
    for split in ("train", "val"):
        with pytest.raises(DataError, match="none of its 3 annotations fits"):
            build_index(spec, split, BOXES)
    content["annotations"] = []
    spec = read_dataset(save(tmp_path, content))
    with pytest.raises(DataError, match="no object to train on in its JSON"):
        build_index(spec, "train", BOXES)
    assert build_index(spec, "val", BOXES)[1].background == 3


def test_splits_need_the_same_categories(tmp_path: Path, content: dict[str, Any]) -> None:
    save(tmp_path, content, "t.json")
    content["categories"][0]["id"] = 91
    save(tmp_path, content, "v.json")
    spec = read_dataset({"path": str(tmp_path), "train": "t.json", "val": "v.json"})
    assert len(build_index(spec, "train", BOXES)[0]) == 3
    with pytest.raises(DataError, match=r"v\.json: .*difference at id 90 \('brush'\)"):
        build_index(spec, "val", BOXES)


def test_single_class(tmp_path: Path, content: dict[str, Any]) -> None:
    spec = read_dataset(save(tmp_path, content))
    index, _ = build_index(spec, "train", BOXES, single_cls=True)
    assert index.class_counts().tolist() == [2]
    assert index.category_ids is None


def test_other_kinds_are_kept_for_formats_that_want_them(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    rings = [[0, 0, 4, 0, 4, 4], [1, 1, 2, 1, 2, 2, 1, 2]]
    content["annotations"][0].update(segmentation=rings, keypoints=[1, 2, 2, 0, 0, 0])
    content["annotations"][1].update(segmentation=[])  # a crowd may go without
    content["annotations"][2].update(segmentation={"counts": "x", "size": [40, 60]})
    spec = read_dataset(
        {
            "train": str(save(tmp_path, content)),
            "val": str(save(tmp_path, content)),
            "kpt_shape": [2, 3],
        }
    )
    index, report = build_index(spec, "train", Everything())
    full = index.instances(1)
    assert full.polygons is not None
    assert full.keypoints is not None
    assert [len(ring) for ring in full.polygons[0]] == [3, 4]
    assert full.polygons[1] == []
    assert full.keypoints.tolist() == [[[1, 2, 2], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
    assert "expected run lengths that add up to 40 x 60" in report.problems[0].reason
    content["annotations"][0]["keypoints"] = [1, 2]
    save(tmp_path, content)
    problems = build_index(spec, "val", Everything())[1].problems
    assert any("expected 6 numbers in keypoints" in p.reason for p in problems)


def test_masks_of_every_form_become_rings(tmp_path: Path, content: dict[str, Any]) -> None:
    """Run lengths, packed and plain, of objects and crowds; parts that overlap are a union."""
    mask = np.zeros((40, 60), np.uint8)
    mask[5:20, 8:30] = 1
    mask[9:12, 12:20] = 0
    packed = encode_rle(mask, 0, 0, mask.shape)
    plain = {"size": [40, 60], "counts": run_lengths(packed).tolist()}
    parts = [[2, 2, 20, 2, 20, 20, 2, 20], [10, 10, 30, 10, 30, 30, 10, 30]]
    text = {**packed, "counts": packed["counts"].decode()}
    for entry, found in zip(content["annotations"], (text, plain, parts), strict=True):
        entry["segmentation"] = found
    index, report = build_index(
        read_dataset(save(tmp_path, content)), "train", Everything(kinds=frozenset({"polygons"}))
    )
    assert report.problems == []
    assert index.instances(1).ignore.tolist() == [False, True]
    for polygon in index.instances(1).polygons or []:
        assert [len(ring) for ring in polygon] == [4, 4]
        assert np.array_equal(decode_rle(polygon_rle(polygon, (40, 60))), mask)
    (union,) = index.instances(0).polygons or []
    assert decode_rle(polygon_rle(union, (40, 60))).sum() == 18 * 18 + 20 * 20 - 10 * 10


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "polygons of at least 3 points each, or as run lengths, found None"),
        ([], "or as run lengths, found []"),
        ([[1, 1, 2, 2]], "at least 3 points each, or as run lengths, found [[1, 1, 2, 2]]"),
        ([[1, 1, 2, 2, 3, "4"]], "at least 3 points"),
        ({"size": [60, 40], "counts": [2400]}, "size [40, 60] (h, w), found [60, 40]"),
        ({"counts": [2400]}, "size [40, 60] (h, w), found None"),
        ({"size": [40, 60], "counts": [2400]}, "at least one pixel"),
        ({"size": [40, 60], "counts": [2401, -1]}, "as text or numbers, found [2401, -1]"),
        ({"size": [40, 60], "counts": [99, 1]}, "40 x 60 = 2400 pixels, found 100"),
        ({"size": [40, 60], "counts": 3}, "as text or numbers, found 3"),
    ],
)
def test_bad_masks(tmp_path: Path, content: dict[str, Any], found: Any, reason: str) -> None:
    for entry in content["annotations"]:
        entry["segmentation"] = [[1, 1, 5, 1, 5, 5]]
    content["annotations"][0]["segmentation"] = found
    spec = read_dataset(save(tmp_path, content))
    index, report = build_index(spec, "train", Everything(kinds=frozenset({"polygons"})))
    assert sum(map(int, index.offsets[1:] - index.offsets[:-1])) == 2
    (problem,) = report.problems
    assert "annotation 1: expected" in problem.reason
    assert reason in problem.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the file is empty"),
        ("{", r"t\.json:1: not valid JSON"),
        ('{"images": [],\n "annotations": [}', r"t\.json:2: not valid JSON"),
        ("[]", "expected COCO JSON with a list 'images', found list"),
        ('{"images": [], "categories": []}', "a list 'annotations', found NoneType"),
        ('{"images": [], "annotations": [], "categories": []}', "at least one category"),
        ('{"images":[],"annotations":[],"categories":[{"id":"1","name":"a"}]}', "id and name"),
        ('{"images":[],"annotations":[],"categories":[{"id":1,"name":"a"},{"id":1,"name":"b"}]}',
         "category id 1 appears twice"),
        ("[" * 100_000, "t.json"),
    ],
)  # fmt: skip
def test_malformed_json_names_the_file(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_categories(save(tmp_path, text, "t.json"))


def test_categories_are_found_without_parsing_the_rest(tmp_path: Path) -> None:
    text = '{"info": "\\"categories\\": [", "categories" : [{"id": 2, "name": "é"}], "images": ['
    assert read_categories(save(tmp_path, text)) == {2: "é"}
    nested = {
        "images": [{"categories": [{"id": 8, "name": "tag"}]}],
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}],
    }
    assert read_categories(save(tmp_path, nested)) == {1: "a"}


@pytest.mark.parametrize("place", ["anno/images", "anno", "images", ".", "train", "images/train"])
def test_image_folder_is_found_in_the_usual_places(tmp_path: Path, place: str) -> None:
    (tmp_path / "anno").mkdir()
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / "ü.jpg").touch()
    path = save(tmp_path / "anno", {"images": [{"file_name": "ü.jpg"}]})
    assert find_image_folder(path).resolve() == (tmp_path / place).resolve()
    (tmp_path / place / "ü.jpg").unlink()
    with pytest.raises(DataError, match=r"none of its first images \(ü\.jpg\).*`images:`"):
        find_image_folder(path)
