# SPDX-License-Identifier: Apache-2.0
"""COCO JSON files: malformed ones named, categories and folders without parsing all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from yolo.data.coco_json import find_image_folder, read_categories
from yolo.errors import DataError


def save(folder: Path, content: Any, name: str = "instances_train.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


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
