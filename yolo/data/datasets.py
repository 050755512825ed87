# SPDX-License-Identifier: Apache-2.0
"""Which images, labels and names a dataset consists of: YAML file, mapping, COCO JSON or a name.

A mapping may hold the images themselves (`yolo.data.objects`), and several datasets make one
(`yolo.data.merge`).

Nothing a dataset file says is ever executed or fetched; a `download:` key is reported, not run.
"""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from yolo.cfg.load import read_yaml
from yolo.data.class_folders import CLASSES, class_names, split_folders
from yolo.data.coco import read_categories
from yolo.data.keys import as_mapping, bad, read_channels, read_keypoints, read_names, read_splits
from yolo.data.merge import merge
from yolo.data.shapes import shapes
from yolo.errors import DataError, MissingFileError, nearest

logger = logging.getLogger(__name__)

Kinds = frozenset[str]

SPLIT_KEYS = ("train", "validation", "val", "test")

GENERATORS: dict[str, Callable[[Path, int, Kinds], Path]] = {"shapes": shapes}
"""Embedded datasets: (cache_dir, seed, kinds of labels) -> the YAML file, or the folder of class
folders, of a dataset written under cache_dir."""

KEYS = frozenset(
    {"path", "train", "val", "validation", "test", "names", "nc", "channels", "images", "download"}
    | {"kpt_shape", "flip_idx", "kpt_names", "kpt_oks_sigmas", "merge", "classes", "others"}
)


MAPPING = "the dataset mapping"


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset's description; every path is absolute, nothing has been scanned yet.

    Attributes:
        root: folder that relative entries refer to.
        splits: train, val, test -> image folders and image lists, or COCO JSON files; nothing
            where `items` or `parts` hold the images.
        names: class id -> name, ids 0..n-1.
        channels: image channels; other than 3, images keep their channels and value range.
        kpt_shape: (keypoints, numbers a keypoint: 2 or 3), or None.
        flip_idx: for each keypoint the one it becomes in a mirror.
        kpt_names: class id -> keypoint names.
        kpt_oks_sigmas: for each keypoint its OKS sigma.
        file: the YAML or JSON file behind this, for messages.
        kind: "yolo" (label text files), "coco" (COCO JSON), "classes" (class folders), "objects"
            or "merged".
        image_folders: COCO only: split -> folder that file_name refers to, where it was given.
        category_ids: COCO only: the JSON's id of each class.
        download: the text of the `download` key, which is never run.
        items: Python objects: split -> sequence of items.
        parts: merged: the datasets, each with the class here of each of its classes, -1 for none.
        ignore_others: merged: objects of class -1 are regions to ignore, and not left out.
        label: stands for the file in messages where there is none.
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
    items: Mapping[str, Sequence[Any]] = field(default_factory=dict, repr=False, compare=False)
    parts: tuple[tuple[DatasetSpec, tuple[int, ...]], ...] = ()
    ignore_others: bool = False
    label: str = MAPPING

    @property
    def where(self) -> str:
        """The file behind this, or a stand-in, for messages."""
        return str(self.file) if self.file else self.label

    def require(self, split: str) -> None:
        """Raise DataError if a split isn't named."""
        if split not in self.splits:
            found = ", ".join(self.splits) or "no split at all"
            raise DataError(f"{self.where}: expected the key {split!r}, found {found}")

    def sources(self, split: str) -> tuple[Path, ...]:
        """Return a split's folders, lists or JSON files, all of which exist.

        Raises:
            DataError: if the split isn't named, or one of its paths isn't there.
        """
        self.require(split)
        for path in self.splits[split]:
            if not path.exists():
                beside = [entry.name for entry in path.parent.glob("*")]
                text = f"{self.where}: {split}: there is nothing at {path}."
                text = f"{text} {nearest(path.name, beside)} {how_to_fetch(self.download)}"
                raise DataError(text.rstrip())
        return self.splits[split]

    def keypoint_shape(self) -> tuple[int, int]:
        """Return `kpt_shape` for labels with keypoints.

        Raises:
            DataError: if the dataset doesn't have it.
        """
        for part, _ in self.parts:
            part.keypoint_shape()
        if self.kpt_shape is None:
            raise DataError(
                f"{self.where}: expected the key 'kpt_shape', which labels with keypoints need, "
                "found none; add kpt_shape: [number of keypoints, 2 (x, y) or 3 (and visibility)]"
            )
        return self.kpt_shape


Reader = Callable[[Any], DatasetSpec]


def how_to_fetch(download: Any) -> str:
    """Say that a dataset's `download` key, if it has one, is not run."""
    text = "The file's `download:` ({:.80}) is not run here: fetch the images yourself"
    return text.format(str(download)) if download else ""


def read_dataset(
    data: Any,
    cache_dir: Path | str | None = None,
    *,
    kinds: Kinds = frozenset(),
    within: tuple[Path, ...] = (),
) -> DatasetSpec:
    """Find out what a `data=` argument describes.

    Args:
        data: a YAML file, a mapping (or dataclass) with the same keys, whose splits may be
            sequences of Python objects (`yolo.data.objects`), a COCO JSON file (which then serves
            for training and validation), a folder with one YAML file or, for the kind "classes",
            with class folders, the name of an embedded dataset, or a list of all these, which are
            merged.
        cache_dir: folder for an embedded dataset's files; None means a temporary folder that is
            removed when the process ends.
        kinds: of labels, as a label format names them, that an embedded dataset is to have.
        within: the files whose `merge` led here.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if the description is wrong; the message names file and key.
    """
    if isinstance(data, DatasetSpec):
        return data
    again = partial(read_dataset, cache_dir=cache_dir, kinds=kinds, within=within)
    data = {"merge": data} if isinstance(data, list | tuple) else as_mapping(data)
    if isinstance(data, Mapping):
        return _from_mapping(data, None, again, kinds)
    if not isinstance(data, str | Path):
        raise DataError(
            "data: expected a YAML or JSON file, a name, a mapping such as {'train': items, "
            f"'val': items, 'names': [...]}}, or a list of these, found {data!r:.80}"
        )
    path = Path(data).expanduser().absolute()
    if not path.exists():
        return _from_generator(str(data), cache_dir, kinds)
    if path.is_dir():
        found = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        if CLASSES in kinds and (len(found) != 1 or (path / "train").is_dir()):
            return _from_mapping({"path": path, **split_folders(path)}, path, again, kinds)
        if len(found) != 1:
            text = f"expected a folder with one YAML file, found {len(found)}; name the file"
            raise DataError(f"{path}: {text}")
        path = found[0]
    if path.suffix.lower() == ".json":
        logger.warning("%s is used for training and for validation alike", path)
        return _from_mapping({"train": path.name, "val": path.name}, path, again, kinds)
    if path.suffix.lower() not in (".yaml", ".yml"):
        text = "expected a .yaml file, COCO JSON or a folder; unpack an archive first"
        raise DataError(f"{path}: {text}")
    if path in within:
        raise DataError(f"{path}: merge: this file is among the datasets that it merges")
    again = partial(again, within=(*within, path))
    return _from_mapping(read_yaml(path, error=DataError), path, again, kinds)


def recordable(data: Any) -> Any:
    """Return what `data=` was as plain data, with counts in the place of Python objects.

    `read_dataset` reads it again, or says that the objects have to be given again.
    """
    if isinstance(data, DatasetSpec):
        return str(data.file) if data.file else data.where
    data = as_mapping(data)
    if isinstance(data, Mapping):
        items = {
            k: {"objects": len(v)} for k, v in data.items() if k in SPLIT_KEYS and _holds_items(v)
        }
        return {str(key): items.get(key) or recordable(value) for key, value in data.items()}
    return [recordable(item) for item in data] if isinstance(data, list | tuple) else data


def _from_generator(name: str, cache_dir: Path | str | None, kinds: Kinds) -> DatasetSpec:
    if name not in GENERATORS:
        files = [*Path(name).parent.glob("*.y*ml"), *Path(name).parent.glob("*.json")]
        raise MissingFileError(
            f"data: there is no file {name!r} (current folder: {Path.cwd()}) and no embedded "
            f"dataset of that name. {nearest(name, [*map(str, files), *GENERATORS])} "
            f"Embedded: {', '.join(GENERATORS)}. Nothing is downloaded."
        )
    if cache_dir is None:
        cache_dir = tempfile.mkdtemp(prefix="yolo-data-")
        atexit.register(shutil.rmtree, cache_dir, ignore_errors=True)
    return read_dataset(GENERATORS[name](Path(cache_dir), 0, kinds), kinds=kinds)


def _from_mapping(
    entries: Mapping[str, Any], file: Path | None, again: Reader, kinds: Kinds
) -> DatasetSpec:
    where = str(file) if file else MAPPING
    for key in entries:
        similar = nearest(str(key), KEYS)
        if key not in KEYS and similar:
            logger.warning("%s: the key %r isn't used. %s", where, key, similar)
    root = _find_root(entries, file, where)
    if entries.keys() & {"merge", "classes"}:
        return _from_parts(entries, file, root, again, kinds)
    more = {"channels": read_channels(entries, where), **read_keypoints(entries, where)}
    if entries.get("download"):
        more["download"] = str(entries["download"])
    spec = DatasetSpec(root, {}, read_names(entries, where) or {}, file=file, **more)
    values = {key: entries[key] for key in SPLIT_KEYS if entries.get(key) is not None}
    values = {"val" if key == "validation" else key: value for key, value in values.items()}
    if any(map(_holds_items, values.values())):
        for split, value in values.items():
            if not _holds_items(value):
                expected = "a sequence of items as in the other splits (or data=[one, other])"
                raise bad(where, split, expected, value)
        spec = replace(spec, splits=dict.fromkeys(values, ()), items=values, kind="objects")
    else:
        spec = replace(spec, splits=read_splits(values, entries, root, where))
        if CLASSES in kinds:
            return _with_class_folders(spec, entries)
        paths = [path for listed in spec.splits.values() for path in listed]
        in_json = {path.suffix.lower() == ".json" for path in paths}
        if len(in_json) > 1:
            raise DataError(f"{where}: expected all splits as COCO JSON or none, found both")
        if in_json == {True}:
            return _with_categories(spec, entries)
    if not spec.names:
        raise DataError(f"{where}: expected the key 'names' (or at least 'nc'), found neither")
    return spec


def _holds_items(value: Any) -> bool:
    """Tell a sequence of items from paths."""
    if isinstance(value, list | tuple):
        return bool(value) and not isinstance(value[0], str | Path)
    named = isinstance(value, str | Path | Mapping)
    return not named and hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _from_parts(
    entries: Mapping[str, Any], file: Path | None, root: Path, again: Reader, kinds: Kinds
) -> DatasetSpec:
    """Read what `merge` and `classes` make of this dataset and others."""
    where = str(file) if file else MAPPING
    own = {k: v for k, v in entries.items() if k not in {"merge", "classes", "others"}}
    parts: list[DatasetSpec] = []
    if own.keys() & SPLIT_KEYS:
        parts.append(_from_mapping(own, file, again, kinds))
    elif lost := sorted(own.keys() & KEYS - {"path", "download"}):
        text = "is what the merged datasets say; to choose, rename or order classes, use `classes`"
        raise DataError(f"{where}: {lost[0]}: {text}")
    listed = entries.get("merge", [])
    listed = listed if isinstance(listed, list | tuple) else [listed]
    for number, entry in enumerate(listed):
        if isinstance(entry, str | Path) and (root / Path(entry).expanduser()).exists():
            entry = root / Path(entry).expanduser()
        part = again(entry)
        parts.append(part if part.file else replace(part, label=f"merge[{number}]"))
    if not parts:
        raise bad(where, "merge", "at least one dataset", listed)
    return merge(parts, entries, where, file)


def _with_class_folders(spec: DatasetSpec, entries: Mapping[str, Any]) -> DatasetSpec:
    """Complete a dataset of class folders: without `names`, the training folders are the classes.

    Which folders there are is compared with the names when they are listed.
    """
    if not entries.get("names"):
        names = class_names(spec.sources("train"))
        if spec.names and len(names) != len(spec.names):
            text = f"{len(names)}, the number of class folders in `train`, or no such key"
            raise bad(spec.where, "nc", text, len(spec.names))
        spec = replace(spec, names=names)
    return replace(spec, kind=CLASSES)


def _with_categories(spec: DatasetSpec, entries: Mapping[str, Any]) -> DatasetSpec:
    """Complete a COCO dataset: classes from its categories, and where its images are."""
    there = [paths[0] for paths in spec.splits.values() if paths[0].exists()]
    file = (there or spec.sources("train"))[0]
    categories = read_categories(file)
    ids = {name: number for number, name in categories.items()}
    order = list(spec.names.values()) or list(categories.values())
    if sorted(order) != sorted(categories.values()) or len(ids) != len(order):
        odd = sorted(set(order) ^ set(ids)) or sorted(order)
        raise DataError(
            f"{spec.where}: expected `names` to be the {len(ids)} categories of {file}, "
            f"found {len(order)} names; first difference: {odd[0]!r}"
        )
    folders = entries.get("images") or {}
    if not isinstance(folders, Mapping):
        folders = dict.fromkeys(spec.splits, folders)
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
        raise bad(where, "path", "a folder", given)
    tried = [folder / Path(given).expanduser() for folder in (base, Path.cwd())]
    for folder in tried:
        if folder.is_dir():
            return folder.resolve()
    text = f"{where}: path: there is no folder {' and no '.join(dict.fromkeys(map(str, tried)))}. "
    raise DataError(f"{text}{how_to_fetch(entries.get('download'))}".rstrip())
