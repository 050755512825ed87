# SPDX-License-Identifier: Apache-2.0
"""What `data=` may be, and what is said when it can't be used."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from yolo.data.datasets import GENERATORS, DatasetSpec, read_dataset
from yolo.errors import DataError, MissingFileError

GOOD: dict[str, Any] = {"train": "images/train", "val": "images/val", "names": ["a", "b"]}
POSE: dict[str, Any] = {**GOOD, "kpt_shape": [3, 3]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
    return tmp_path


def dump(path: Path, entries: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(entries), encoding="utf-8")
    return path


def test_yaml_folder_and_mapping_agree(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = dump(folder / "data.yaml", GOOD)
    spec = read_dataset(file)
    assert spec.names == {0: "a", 1: "b"}
    assert spec.sources("train") == (folder / "images/train",)
    assert spec.channels == 3
    assert spec.kind == "yolo"
    assert spec.file == file
    assert read_dataset(folder) == spec
    assert read_dataset(spec) is spec
    monkeypatch.chdir(folder)
    assert read_dataset("data.yaml") == spec
    assert read_dataset(GOOD).splits == spec.splits


def test_path_is_relative_to_the_yaml_first_then_to_the_current_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sub/set/images").mkdir(parents=True)
    (folder / "set").mkdir()
    (folder / "only_here").mkdir()
    monkeypatch.chdir(folder)
    near = dump(folder / "sub/a.yaml", {**GOOD, "path": "set"})
    assert read_dataset(near).root == folder / "sub/set"
    far = dump(folder / "sub/b.yaml", {**GOOD, "path": "only_here"})
    assert read_dataset(far).root == folder / "only_here"
    monkeypatch.setenv("HOME", str(folder))
    home = {**GOOD, "path": "~/set", "val": "~/only_here"}
    assert read_dataset(home).root == folder / "set"
    assert read_dataset(home).splits["val"] == (folder / "only_here",)
    gone = dump(folder / "sub/c.yaml", {**GOOD, "path": "nowhere", "download": "http://x/y.zip"})
    with pytest.raises(DataError, match=r"c\.yaml: path: .*sub/nowhere.*not run here"):
        read_dataset(gone)


def test_splits_may_be_lists_and_validation_is_val(folder: Path) -> None:
    entries = {**GOOD, "train": ["images/train", "list.txt"], "validation": "images/val"}
    del entries["val"]
    spec = read_dataset(dump(folder / "d.yaml", entries))
    assert spec.splits["train"] == (folder / "images/train", folder / "list.txt")
    assert spec.splits["val"] == (folder / "images/val",)
    assert "test" not in spec.splits
    with pytest.raises(DataError, match=r"d\.yaml: expected the key 'test', found train, val"):
        spec.sources("test")


def test_absent_images_name_the_nearest_and_download_never_runs(folder: Path) -> None:
    mark = folder / "ran"
    entries = {**GOOD, "val": "images/vals", "download": f"open({str(mark)!r}, 'w')"}
    spec = read_dataset(dump(folder / "d.yaml", entries))
    with pytest.raises(DataError, match=r"val: there is nothing at .*Similar: 'val'.*is not run"):
        spec.sources("val")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("names", "nc", "expected"),
    [
        (["x", "y"], None, {0: "x", 1: "y"}),
        ({1: "y", 0: "x"}, 2, {0: "x", 1: "y"}),
        ({"0": "x", "1": 7}, None, {0: "x", 1: "7"}),
        (None, 2, {0: "class_0", 1: "class_1"}),
    ],
)
def test_names_and_nc(folder: Path, names: Any, nc: Any, expected: dict[int, str]) -> None:
    spec = read_dataset(dump(folder / "d.yaml", {**GOOD, "names": names, "nc": nc}))
    assert spec.names == expected
    assert list(spec.names) == [0, 1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"train": None}, "expected the key 'train'"),
        ({"val": None}, "expected the key 'val'"),
        ({"val": 5}, "val: expected paths, found 5"),
        ({"names": None}, "expected the key 'names'"),
        ({"names": ["a"], "nc": 2}, "nc is 2, but `names` holds 1"),
        ({"names": {0: "a", 2: "b"}}, "ids 0 to 1, found 0 to 2"),
        ({"names": {"x": "a"}}, "whole numbers as ids"),
        ({"names": [True, False]}, "names: 0: expected text, found True; put it in quotes"),
        ({"names": "cat"}, "expected a list"),
        ({"nc": 0}, "nc: expected a number of classes"),
        ({"nc": "2"}, "nc: expected a number of classes"),
        ({"channels": 0}, "channels: expected"),
        ({"path": 3}, "path: expected a folder"),
        ({"path": "https://x/y.zip"}, "path: expected a folder"),
        ({"kpt_shape": [3]}, "kpt_shape: expected"),
        ({"kpt_shape": [3, 4]}, "kpt_shape: expected"),
        ({"kpt_shape": [3, 3], "flip_idx": [0, 1, 1]}, "flip_idx: expected each of 0 to 2 once"),
        ({"kpt_shape": [3, 3], "kpt_oks_sigmas": [0.1, 0.2]}, "kpt_oks_sigmas: expected 3"),
        ({"kpt_shape": [3, 3], "kpt_oks_sigmas": [0.1, 0.2, -1]}, "kpt_oks_sigmas: expected 3"),
        ({"kpt_shape": [3, 3], "kpt_names": {0: ["nose"]}}, "kpt_names: 0: expected 3 names"),
        ({"train": "a.json"}, "expected all splits as COCO JSON or none"),
    ],
)
def test_bad_keys_name_file_and_key(folder: Path, change: dict[str, Any], reason: str) -> None:
    entries = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(DataError, match=f"^{folder / 'd.yaml'}: .*{reason}"):
        read_dataset(dump(folder / "d.yaml", entries))


def test_keypoint_keys(folder: Path) -> None:
    entries = {
        **POSE,
        "flip_idx": [0, 2, 1],
        "kpt_oks_sigmas": [0.1, 0.2, 0.2],
        "kpt_names": {0: ["nose", "left", "right"]},
        "channels": 4,
    }
    spec = read_dataset(dump(folder / "d.yaml", entries))
    assert spec.kpt_shape == (3, 3)
    assert spec.flip_idx == (0, 2, 1)
    assert spec.kpt_oks_sigmas == (0.1, 0.2, 0.2)
    assert spec.kpt_names == {0: ("nose", "left", "right")}
    assert spec.channels == 4


def test_misspelt_key_is_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_dataset(dump(folder / "d.yaml", {**GOOD, "chanels": 4, "roboflow": {"x": 1}}))
    assert "'chanels' isn't used. Similar: 'channels'" in caplog.text
    assert "roboflow" not in caplog.text


def test_missing_file_names_the_nearest(folder: Path) -> None:
    dump(folder / "blood.yaml", GOOD)
    with pytest.raises(MissingFileError, match=r"blod.yaml.*Similar: .*blood\.yaml"):
        read_dataset(folder / "blod.yaml")
    with pytest.raises(MissingFileError, match="Similar: 'shapes'"):
        read_dataset("shape")


def test_other_things_are_refused(folder: Path) -> None:
    (folder / "a.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="unpack an archive first"):
        read_dataset(folder / "a.zip")
    with pytest.raises(DataError, match="folder with one YAML file, found 0"):
        read_dataset(folder)
    with pytest.raises(DataError, match="expected a YAML or JSON file"):
        read_dataset(3)  # type: ignore[arg-type]
    (folder / "bad.yaml").write_text("names: [a\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.yaml:"):
        read_dataset(folder / "bad.yaml")


def test_embedded_name_is_generated_into_the_cache_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Path, int]] = []

    def generate(cache_dir: Path, seed: int, kinds: frozenset[str]) -> Path:
        calls.append((cache_dir, seed))
        return dump(folder / "made.yaml", GOOD)

    parts = {**GENERATORS._parts, "made-up": generate}
    monkeypatch.setattr(GENERATORS, "_parts", parts)
    assert read_dataset("made-up", folder / "cache", seed=3).names == {0: "a", 1: "b"}
    assert calls == [(folder / "cache", 3)]
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    read_dataset("made-up")
    assert calls[1][0].parent == folder


def coco(path: Path, categories: list[tuple[int, str]]) -> Path:
    content = {
        "categories": [{"id": i, "name": name} for i, name in categories],
        "images": [],
        "annotations": [],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_bare_coco_json_serves_both_splits_and_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = coco(folder / "instances_train.json", [(7, "dog"), (3, "cat")])
    with caplog.at_level(logging.WARNING):
        spec = read_dataset(file)
    assert "training and for validation" in caplog.text
    assert spec.kind == "coco"
    assert spec.splits == {"train": (file,), "val": (file,)}
    assert spec.names == {0: "cat", 1: "dog"}
    assert spec.category_ids == (3, 7)


def test_coco_yaml_with_image_folders_and_an_order_of_names(folder: Path) -> None:
    coco(folder / "t.json", [(7, "dog"), (3, "cat")])
    entries = {"train": "t.json", "val": "t.json", "names": ["dog", "cat"], "images": "images"}
    spec = read_dataset(dump(folder / "d.yaml", entries))
    assert spec.category_ids == (7, 3)
    assert spec.image_folders == {"train": folder / "images", "val": folder / "images"}
    entries["images"] = {"train": "images/train", "val": "images/none"}
    with pytest.raises(DataError, match="images: val: there is no folder"):
        read_dataset(dump(folder / "d.yaml", entries))
    entries["names"] = ["dog", "bird"]
    with pytest.raises(DataError, match="first difference: 'bird'"):
        read_dataset(dump(folder / "d.yaml", entries))


def test_spec_is_frozen() -> None:
    spec = DatasetSpec(Path("/"), {}, {0: "a"})
    with pytest.raises(AttributeError):
        spec.channels = 4  # type: ignore[misc]
    assert spec.where == "the dataset mapping"
