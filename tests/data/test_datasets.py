# SPDX-License-Identifier: Apache-2.0
"""What `data=` may be, and what is said when it can't be used."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from yolo.data.datasets import GENERATORS, DatasetSpec, read_dataset, recordable
from yolo.errors import DataError, MissingFileError

GOOD: dict[str, Any] = {"train": "images/train", "val": "images/val", "names": ["a", "b"]}


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
    ("change", "reason"),
    [
        ({"train": None}, "expected the key 'train'"),
        ({"val": None}, "expected the key 'val'"),
        ({"val": 5}, "val: expected paths, .* found 5"),
        ({"names": None}, "expected the key 'names'"),
        ({"path": 3}, "path: expected a folder"),
        ({"path": "https://x/y.zip"}, "path: expected a folder"),
        ({"train": "a.json"}, "expected all splits as COCO JSON or none"),
    ],
)
def test_bad_keys_name_file_and_key(folder: Path, change: dict[str, Any], reason: str) -> None:
    entries = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(DataError, match=f"^{folder / 'd.yaml'}: .*{reason}"):
        read_dataset(dump(folder / "d.yaml", entries))


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

    monkeypatch.setitem(GENERATORS, "made-up", generate)
    assert read_dataset("made-up", folder / "cache").names == {0: "a", 1: "b"}
    assert calls == [(folder / "cache", 0)]
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


class Items:
    """A torch-style dataset: length and items, nothing else."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> dict[str, Any]:
        raise AssertionError("nothing is read yet")


def test_python_objects() -> None:
    entries = {"train": Items(), "val": [{"image": 1}], "names": ["a"], "channels": 1}
    spec = read_dataset(entries)
    assert spec.kind == "objects"
    assert spec.items["train"] is entries["train"]
    assert list(spec.splits) == ["train", "val"]
    assert (spec.names, spec.channels) == ({0: "a"}, 1)

    @dataclass
    class Data:
        train: Any
        names: list[str]
        val: Any = None

    spec = read_dataset(Data(Items(), ["a"]))
    assert list(spec.splits) == ["train"]
    with pytest.raises(DataError, match="the dataset mapping: expected the key 'val', found train"):
        spec.require("val")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"val": "images/val"}, "val: expected a sequence of items as in the other splits"),
        ({"train": (i for i in [1]), "val": "x"}, r"train: expected paths, .* len\(\)"),
        ({"names": None}, "expected the key 'names'"),
        ({"train": {"objects": 9}, "val": {"objects": 2}}, "run's 9 images were Python objects"),
    ],
)
def test_bad_python_objects(change: dict[str, Any], reason: str) -> None:
    entries = {"train": Items(), "val": Items(), "names": ["a"], **change}
    with pytest.raises(DataError, match=f"^the dataset mapping: .*{reason}"):
        read_dataset(entries)


def test_a_record_says_how_many_objects_there_were(folder: Path) -> None:
    data = {"train": Items(), "val": [{"image": 1}], "names": {0: "a"}}
    kept = recordable([data, folder, {"train": ["a", "b"]}])
    assert kept[0] == {"train": {"objects": 2}, "val": {"objects": 1}, "names": {"0": "a"}}
    assert kept[1:] == [folder, {"train": ["a", "b"]}]
    assert recordable("shapes") == "shapes"
    assert recordable(None) is None
    with pytest.raises(DataError, match="give them again"):
        read_dataset(kept)


def test_merge_reads_relative_to_the_file(folder: Path) -> None:
    (folder / "sub").mkdir()
    a = dump(folder / "sub/a.yaml", {**GOOD, "path": str(folder)})
    for data in (
        dump(folder / "m.yaml", {"merge": ["sub/a.yaml", {**GOOD, "names": ["b", "c"]}]}),
        [a, {**GOOD, "path": str(folder), "names": ["b", "c"]}],
    ):
        spec = read_dataset(data)
        assert spec.kind == "merged"
        assert spec.names == {0: "a", 1: "b", 2: "c"}
        assert [classes for _, classes in spec.parts] == [(0, 1), (1, 2)]
        assert [part.where for part, _ in spec.parts] == [str(a), "merge[1]"]
        assert set(spec.splits) == {"train", "val"}


def test_classes_are_chosen_from_the_file_itself(folder: Path) -> None:
    file = dump(folder / "d.yaml", {**GOOD, "classes": {"x": "b"}})
    spec = read_dataset(file)
    assert spec.names == {0: "x"}
    assert spec.where == str(file)
    both = read_dataset(dump(folder / "e.yaml", {**GOOD, "merge": "d.yaml", "classes": ["x", "a"]}))
    assert [classes for _, classes in both.parts] == [(1, -1), (0,)]


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"merge": []}, "merge: expected at least one dataset"),
        ({"merge": "m.yaml"}, "merge: this file is among the datasets that it merges"),
        ({"merge": ["a.yaml"], "names": ["a"]}, "names: is what the merged datasets say"),
        ({**GOOD, "classes": ["c"]}, "classes: c: there is no class 'c'"),
    ],
)
def test_bad_merges(folder: Path, entries: dict[str, Any], reason: str) -> None:
    dump(folder / "a.yaml", GOOD)
    with pytest.raises(DataError, match=f"^{folder / 'm.yaml'}: {reason}"):
        read_dataset(dump(folder / "m.yaml", entries))
