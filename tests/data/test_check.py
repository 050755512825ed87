# SPDX-License-Identifier: Apache-2.0
"""A dataset's problems, all of them, in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from yolo.data.check import check_dataset
from yolo.data.labels import BoxLabels
from yolo.errors import MissingFileError


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "labels" / split).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "images" / split / "a.png"), np.zeros((8, 8, 3), np.uint8))
        label = tmp_path / "labels" / split / "a.txt"
        label.write_text("0 .5 .5 .5 .5\n", encoding="utf-8")
    return {"path": str(tmp_path), "train": "images/train", "val": "images/val", "names": ["p"]}


def test_clean_dataset_has_no_problems(data: dict[str, Any]) -> None:
    report = check_dataset(data)
    assert report.problems == []
    assert [split.name for split in report.splits] == ["train", "val"]
    assert report.table().count("images") == 2


def test_problems_of_all_splits_are_listed(data: dict[str, Any]) -> None:
    root = Path(data["path"])
    (root / "labels/train/a.txt").write_text("0 .5 .5 .5 .5\n9 .5 .5 .5 .5\n", encoding="utf-8")
    (root / "images/val/b.jpg").write_bytes(b"junk")
    lines = [str(problem) for problem in check_dataset(data).problems]
    assert len(lines) == 2
    assert "labels/train/a.txt:2: expected a class id from 0 to 0" in lines[0]
    assert "images/val/b.jpg: not a readable image" in lines[1]


def test_unusable_split_does_not_hide_the_others(data: dict[str, Any]) -> None:
    root = Path(data["path"])
    (root / "images/train/a.png").unlink()
    (root / "labels/val/a.txt").write_text("0 nan .5 .5 .5\n", encoding="utf-8")
    lines = [str(problem) for problem in check_dataset(data).problems]
    assert "train: no images found" in lines[0]
    assert "a.txt:1: expected finite numbers" in lines[1]


def test_format_may_be_a_class(data: dict[str, Any]) -> None:
    assert check_dataset(data, BoxLabels).problems == []


def test_missing_description_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        check_dataset(tmp_path / "none.yaml")
