# SPDX-License-Identifier: Apache-2.0
"""Which images, labels and names a dataset consists of: YAML file, mapping, COCO JSON or a name.

Nothing a dataset file says is ever executed or fetched; a `download:` key is reported, not run.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from yolo.cfg.load import read_yaml
from yolo.data.coco import read_categories
from yolo.errors import DataError, MissingFileError, nearest
from yolo.registry import Registry

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")

Generator = Callable[[Path, int, frozenset[str]], Path]
"""(cache_dir, seed, kinds of labels) -> the YAML file, or the folder of class folders, of a
dataset written under cache_dir."""

GENERATORS: Registry[Generator] = Registry("embedded dataset")

GENERATOR_MODULES = ("yolo.data.shapes",)
"""Modules that register embedded datasets when they are imported, which happens at first need."""

KEYS = frozenset(
    {"path", "train", "val", "validation", "test", "names", "nc", "channels", "images", "download"}
    | {"kpt_shape", "flip_idx", "kpt_names", "kpt_oks_sigmas"}
)


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset's description; every path is absolute, nothing has been scanned yet.

    Attributes:
        root: folder that relative entries refer to.
        splits: train, val, test -> image folders and image lists, or COCO JSON files.
        names: class id -> name, ids 0..n-1.
        channels: image channels; other than 3, images keep their channels and value range.
        kpt_shape: (keypoints, numbers a keypoint: 2 or 3), or None.
        flip_idx: for each keypoint the one it becomes in a mirror.
        kpt_names: class id -> keypoint names.
        kpt_oks_sigmas: for each keypoint its OKS sigma.
        file: the YAML or JSON file behind this, for messages.
        kind: "yolo" (label text files) or "coco" (COCO JSON).
        image_folders: COCO only: split -> folder that file_name refers to, where it was given.
        category_ids: COCO only: the JSON's id of each class.
        download: the text of the `download` key, which is never run.
    """

    root: Path
    splits: dict[str, tuple[Path, ...]]
    names: dict[int, str]
    channels: int = 3
    kpt_shape: tuple[int, int] | None = None
    flip_idx: tuple[int, ...] | None = None
    kpt_names: dict[int, tuple[str, ...]] | None = None
    kpt_oks_sigmas: tuple[float, ...] | None = None
    file: Path | None = None
    kind: str = "yolo"
    image_folders: dict[str, Path] = field(default_factory=dict)
    category_ids: tuple[int, ...] | None = None
    download: str | None = None

    @property
    def where(self) -> str:
        """The file behind this, or a stand-in, for messages."""
        return str(self.file) if self.file else "the dataset mapping"

    def sources(self, split: str) -> tuple[Path, ...]:
        """Return a split's folders, lists or JSON files, all of which exist.

        Raises:
            DataError: if the split isn't named, or one of its paths isn't there.
        """
        if not self.splits.get(split):
            raise DataError(
                f"{self.where}: expected the key {split!r}, found "
                f"{', '.join(self.splits) or 'no split at all'}"
            )
        for path in self.splits[split]:
            if not path.exists():
                raise DataError(self._explain_absence(split, path))
        return self.splits[split]

    def _explain_absence(self, split: str, path: Path) -> str:
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        text = f"{self.where}: {split}: there is nothing at {path}. {nearest(path.name, beside)}"
        if self.download:
            text = (
                f"{text.rstrip()} The file's `download:` ({self.download:.80}) is not run here: "
                f"fetch the images yourself and put them under {self.root}"
            )
        return text.rstrip()


def read_dataset(
    data: DatasetSpec | Mapping[str, Any] | str | Path,
    cache_dir: Path | str | None = None,
    *,
    seed: int = 0,
    kinds: frozenset[str] = frozenset(),
) -> DatasetSpec:
    """Find out what a `data=` argument describes.

    Args:
        data: a YAML file, a mapping with the same keys, a COCO JSON file (which then serves for
            training and validation), a folder with one YAML file, or the name of an embedded
            dataset.
        cache_dir: folder for an embedded dataset's files; None means a temporary folder that is
            removed when the process ends.
        seed: of an embedded dataset.
        kinds: of labels, as a label format names them, that an embedded dataset is to have.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if the description is wrong; the message names file and key.
    """
    if isinstance(data, DatasetSpec):
        return data
    if isinstance(data, Mapping):
        return _from_mapping(data, None)
    if not isinstance(data, str | Path):
        raise DataError(
            f"data: expected a YAML or JSON file, a mapping or a name, found {data!r:.80}"
        )
    path = Path(data).expanduser()
    if not path.exists():
        return _from_generator(str(data), cache_dir, seed, kinds)
    path = path.absolute()
    if path.is_dir():
        found = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        if len(found) != 1:
            raise DataError(
                f"{path}: expected a folder with one YAML file, found {len(found)}; name the file"
            )
        path = found[0]
    if path.suffix.lower() == ".json":
        logger.warning("%s is used for training and for validation alike", path)
        return _from_mapping({"train": path.name, "val": path.name}, path)
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise DataError(
            f"{path}: expected a .yaml file, COCO JSON or a folder; unpack an archive first"
        )
    return _from_mapping(read_yaml(path, error=DataError), path)


def _from_generator(
    name: str, cache_dir: Path | str | None, seed: int, kinds: frozenset[str]
) -> DatasetSpec:
    for module in GENERATOR_MODULES:
        importlib.import_module(module)
    if name not in GENERATORS:
        path = Path(name)
        beside = list(path.parent.iterdir()) if path.parent.is_dir() else []
        known = [
            str(path.parent / p.name) for p in beside if p.suffix in (".yaml", ".yml", ".json")
        ]
        raise MissingFileError(
            f"data: there is no file {name!r} (current folder: {Path.cwd()}) and no embedded "
            f"dataset of that name. {nearest(name, [*known, *GENERATORS])} "
            f"Embedded: {', '.join(GENERATORS)}. Nothing is downloaded."
        )
    if cache_dir is None:
        cache_dir = tempfile.mkdtemp(prefix="yolo-data-")
        atexit.register(shutil.rmtree, cache_dir, ignore_errors=True)
    return read_dataset(GENERATORS[name](Path(cache_dir), seed, kinds))


def _from_mapping(entries: Mapping[str, Any], file: Path | None) -> DatasetSpec:
    where = str(file) if file else "the dataset mapping"
    for key in entries:
        similar = nearest(str(key), KEYS)
        if key not in KEYS and similar:
            logger.warning("%s: the key %r isn't used. %s", where, key, similar)
    root = _find_root(entries, file, where)
    splits = _read_splits(entries, root, where)
    kinds = {path.suffix.lower() == ".json" for paths in splits.values() for path in paths}
    if len(kinds) > 1:
        raise DataError(f"{where}: expected all splits as COCO JSON or none, found both")
    names = _read_names(entries, where)
    common: dict[str, Any] = {
        "root": root,
        "splits": splits,
        "channels": _read_channels(entries, where),
        "file": file,
        "download": str(entries["download"]) if entries.get("download") else None,
        **_read_keypoints(entries, where),
    }
    if kinds == {True}:
        return _with_categories(DatasetSpec(names={}, **common), names, entries)
    if names is None:
        raise DataError(f"{where}: expected the key 'names' (or at least 'nc'), found neither")
    return DatasetSpec(names=names, **common)


def _with_categories(
    spec: DatasetSpec, names: dict[int, str] | None, entries: Mapping[str, Any]
) -> DatasetSpec:
    """Complete a COCO dataset: classes from its categories, and where its images are."""
    file = next(
        (paths[0] for paths in spec.splits.values() if paths[0].exists()), spec.sources("train")[0]
    )
    categories = read_categories(file)
    ids = {name: number for number, name in categories.items()}
    order = list(categories.values()) if names is None else list(names.values())
    if sorted(order) != sorted(categories.values()) or len(ids) != len(order):
        odd = sorted(set(order) ^ set(ids)) or sorted(order)
        raise DataError(
            f"{spec.where}: expected `names` to be the {len(ids)} categories of {file}, "
            f"found {len(order)} names; first difference: {odd[0]!r}"
        )
    folders = entries.get("images")
    if not isinstance(folders, Mapping):
        folders = dict.fromkeys(spec.splits, folders) if folders else {}
    image_folders = {str(split): spec.root / str(name) for split, name in folders.items()}
    for split, folder in image_folders.items():
        if not folder.is_dir():
            raise DataError(f"{spec.where}: images: {split}: there is no folder {folder}")
    return replace(
        spec,
        kind="coco",
        names=dict(enumerate(order)),
        category_ids=tuple(ids[name] for name in order),
        image_folders=image_folders,
    )


def _find_root(entries: Mapping[str, Any], file: Path | None, where: str) -> Path:
    """Resolve `path`: absolute, else from the YAML's folder, else from the current folder."""
    base = file.parent if file else Path.cwd()
    given = entries.get("path")
    if given is None:
        return base
    if not isinstance(given, str | Path) or "://" in str(given):
        raise DataError(f"{where}: path: expected a folder, found {given!r:.80}")
    given = Path(given).expanduser()
    tried = list(dict.fromkeys([base / given, Path.cwd() / given]))
    for folder in tried:
        if folder.is_dir():
            return folder.resolve()
    text = f"{where}: path: there is no folder {' and no '.join(map(str, tried))}"
    if entries.get("download"):
        text += "; `download:` is not run here: fetch the images yourself and put them there"
    raise DataError(text)


def _read_splits(entries: Mapping[str, Any], root: Path, where: str) -> dict[str, tuple[Path, ...]]:
    values = {split: entries.get(split) for split in SPLITS}
    if values["val"] is None:
        values["val"] = entries.get("validation")
    splits: dict[str, tuple[Path, ...]] = {}
    for split, value in values.items():
        if value is None:
            if split == "test":
                continue
            raise DataError(
                f"{where}: expected the key {split!r} (a folder, a list file or a JSON file), "
                f"found {', '.join(map(str, entries)) or 'nothing'}"
            )
        listed = value if isinstance(value, list | tuple) else [value]
        if not listed or not all(isinstance(item, str | Path) and str(item) for item in listed):
            raise DataError(f"{where}: {split}: expected paths, found {value!r:.80}")
        splits[split] = tuple(
            Path(os.path.abspath(root / Path(item).expanduser())) for item in listed
        )
    return splits


def _read_names(entries: Mapping[str, Any], where: str) -> dict[int, str] | None:
    names, count = entries.get("names"), entries.get("nc")
    if count is not None and (not _is_whole(count) or count < 1):
        raise DataError(f"{where}: nc: expected a number of classes from 1 on, found {count!r}")
    if names is None:
        return None if count is None else {i: f"class_{i}" for i in range(count)}
    if isinstance(names, list | tuple):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping) or not names:
        raise DataError(f"{where}: names: expected a list or id: name pairs, found {names!r:.80}")
    try:
        ids = sorted(int(key) for key in names)
    except (TypeError, ValueError):
        raise DataError(
            f"{where}: names: expected whole numbers as ids, found {names!r:.80}"
        ) from None
    if ids != list(range(len(names))):
        raise DataError(
            f"{where}: names: expected the ids 0 to {len(names) - 1}, found {ids[0]} to {ids[-1]} "
            f"({len(names)} names)"
        )
    for key, name in names.items():
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise DataError(
                f"{where}: names: {key}: expected text, found {name!r}; put it in quotes"
            )
    if count is not None and count != len(names):
        raise DataError(
            f"{where}: nc is {count}, but `names` holds {len(names)}; correct one or leave nc out"
        )
    return {i: str(name) for i, name in sorted((int(key), name) for key, name in names.items())}


def _read_channels(entries: Mapping[str, Any], where: str) -> int:
    channels = entries.get("channels", 3)
    if not _is_whole(channels) or channels < 1:
        raise DataError(f"{where}: channels: expected a whole number from 1 on, found {channels!r}")
    return int(channels)


def _read_keypoints(entries: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check kpt_shape and the keys that depend on it."""
    shape = entries.get("kpt_shape")
    if shape is None:
        return {}
    if (
        not isinstance(shape, list | tuple)
        or len(shape) != 2
        or not all(map(_is_whole, shape))
        or shape[0] < 1
        or shape[1] not in (2, 3)
    ):
        raise DataError(
            f"{where}: kpt_shape: expected [number of keypoints, 2 or 3], found {shape!r}"
        )
    count = shape[0]
    found: dict[str, Any] = {"kpt_shape": (count, shape[1])}
    flip = entries.get("flip_idx")
    if flip is not None:
        if not isinstance(flip, list | tuple) or sorted(map(str, flip)) != sorted(
            map(str, range(count))
        ):
            raise DataError(
                f"{where}: flip_idx: expected each of 0 to {count - 1} once, found {flip!r}"
            )
        found["flip_idx"] = tuple(map(int, flip))
    sigmas = entries.get("kpt_oks_sigmas")
    if sigmas is not None:
        numbers = [s for s in sigmas if _is_positive(s)] if isinstance(sigmas, list | tuple) else []
        if len(numbers) != count or len(sigmas) != count:
            raise DataError(
                f"{where}: kpt_oks_sigmas: expected {count} numbers above 0, found {sigmas!r}"
            )
        found["kpt_oks_sigmas"] = tuple(map(float, numbers))
    names = entries.get("kpt_names")
    if names is not None:
        by_class = names if isinstance(names, Mapping) else {0: names}
        for key, listed in by_class.items():
            if not isinstance(listed, list | tuple) or len(listed) != count:
                raise DataError(f"{where}: kpt_names: {key}: expected {count} names of keypoints")
        found["kpt_names"] = {int(k): tuple(map(str, v)) for k, v in by_class.items()}
    return found


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9
