# SPDX-License-Identifier: Apache-2.0
"""Every kind of dataset opens, whole or in part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from yolo.data.class_folders import ImageClasses
from yolo.data.coco import CocoSource
from yolo.data.datasets import read_dataset
from yolo.data.folder import FileSource
from yolo.data.labels import BoxLabels, LabelFormat
from yolo.data.merge import MergedSource
from yolo.data.objects import ObjectSource
from yolo.data.report import ScanReport
from yolo.data.splits import PLACES, open_split
from yolo.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
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
def test_every_kind_opens(root: Path, kind: str) -> None:
    folder = {"path": str(root), "train": "images", "val": "images", "names": ["a"]}
    item = {"image": np.zeros((20, 20), np.uint8)}
    given: dict[str, tuple[Any, type, LabelFormat, int]] = {
        "yolo": (folder, FileSource, BoxLabels(), 4),
        "coco": (root / "set.json", CocoSource, BoxLabels(), 4),
        "classes": (root, FileSource, ImageClasses(), 8),
        "objects": ({"train": [item] * 6, "names": ["a"]}, ObjectSource, BoxLabels(), 6),
        "merged": ([folder, root / "set.json"], MergedSource, BoxLabels(), 8),
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
