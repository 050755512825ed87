# SPDX-License-Identifier: Apache-2.0
"""Every label of one split in flat arrays, shared by all processes. n images, m objects.

A Python object per image would be copied into each worker as soon as its reference count is
touched. Here a split is a few arrays, mapped from files where a cache folder is given, so that
workers and ranks share the same pages, and an index pickles as the name of its folder.

A label cache is such a folder: plain .npy files without pickle and a meta.json. Its name holds a
hash of everything that the labels depend on (paths, sizes and times of images and labels, names,
format, keypoints, classes); it is written once, under another name first, and never changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from yolo.data.class_folders import CLASSES, class_files
from yolo.data.coco import CocoSource
from yolo.data.datasets import MAPPING, DatasetSpec
from yolo.data.folder import label_reader, list_files, written_whole
from yolo.data.labels import LabelFormat, LabelledImage, LabelRules
from yolo.data.merge import MergedSource
from yolo.data.objects import ObjectSource, item_image
from yolo.data.report import ScanReport as ScanReport
from yolo.data.sample import FIELDS, Instances
from yolo.data.scan import Source
from yolo.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

VERSION = 1
"""Of the cache's files; a change of their meaning raises it."""

SINGLE_CLASS_NAME = "item"
POLYGONS = ("polygons.points", "polygons.rings", "polygons.objects")
"""(P, 2) points; offsets of the rings into them; offsets of the objects into the rings."""

PLACES = {
    "yolo": "in its label files, which belong in the folder `labels` that mirrors `images`",
    "coco": "in its JSON",
    CLASSES: "in its class folders",
    "objects": "in its items",
    "merged": "of the classes that it has",
}
"""Kind of a dataset -> where its labels are, for messages."""


class LabelIndex:
    """The images and objects of one split.

    Attributes:
        names: class id -> name (after `single_cls`).
        category_ids: COCO's id of each class, or None.
        kpt_shape: (keypoints, 2 or 3), or None where the objects carry no keypoints.
        kpt_oks_sigmas: the dataset's own spread of each keypoint, or None.
        shapes: (n, 2) int32 original (h, w), EXIF rotation applied.
        offsets: (n + 1,) int64; the objects of image i are rows offsets[i]:offsets[i + 1].
        arrays: read-only flat arrays by name: classes, boxes (xyxy, pixels of the original
            image), area, ignore, and what the label format adds.
        folder: where the arrays are mapped from, or None when they are in memory.
        sequences: what holds the images that are Python objects and no files.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        meta: Mapping[str, Any],
        folder: Path | None = None,
        sequences: Sequence[Sequence[Any]] = (),
    ) -> None:
        self.folder, self.sequences = folder, sequences
        self.arrays, self._meta = dict(arrays), dict(meta)
        self.shapes, self.offsets = self.arrays["shapes"], self.arrays["offsets"]
        self.names: dict[int, str] = dict(enumerate(meta["names"]))
        ids, shape = meta["category_ids"], meta["kpt_shape"]
        self.category_ids: tuple[int, ...] | None = ids and tuple(ids)
        self.kpt_shape: tuple[int, int] | None = shape and (shape[0], shape[1])
        self.kpt_oks_sigmas: tuple[float, ...] | None = meta["kpt_oks_sigmas"]

    @classmethod
    def open(cls, folder: Path | str) -> LabelIndex:
        """Map an index from its folder.

        Raises:
            OSError, ValueError, KeyError: if the folder isn't a whole index of this version.
        """
        path = Path(folder)
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        if meta["version"] != VERSION:
            raise ValueError(f"label cache of version {meta['version']}")
        arrays: dict[str, np.ndarray] = {}
        for name, (shape, dtype) in meta["arrays"].items():
            file = path / f"{name}.npy"
            if 0 in shape:  # an empty file can't be mapped
                arrays[name] = np.zeros(shape, dtype)
                continue
            # a plain view: slices of np.memmap are slow
            arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False).view(np.ndarray)
            if arrays[name].shape != tuple(shape) or arrays[name].dtype != np.dtype(dtype):
                raise ValueError(f"{file} isn't what meta.json says")
        return cls(arrays, meta, path)

    def save(self, folder: Path) -> LabelIndex:
        """Write the index to a folder (`folder.written_whole`); return it mapped."""
        with written_whole(folder) as waiting:
            for name, array in self.arrays.items():
                np.save(waiting / f"{name}.npy", array, allow_pickle=False)
            layout = {k: (v.shape, v.dtype.str) for k, v in self.arrays.items()}
            text = json.dumps({**self._meta, "arrays": layout})
            (waiting / "meta.json").write_text(text, encoding="utf-8")
        return LabelIndex.open(folder)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getstate__(self) -> dict[str, Any]:
        if self.folder is not None:
            return {"folder": str(self.folder)}
        return {"arrays": self.arrays, "meta": self._meta, "sequences": self.sequences}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "folder" in state:
            self.__dict__.update(LabelIndex.open(state["folder"]).__dict__)
        else:
            self.__init__(**state)  # type: ignore[misc]  # rebuilt in place

    @property
    def num_classes(self) -> int:
        """How many classes there are, with or without objects."""
        return len(self.names)

    @property
    def report(self) -> ScanReport:
        """What was counted and found when the labels were read."""
        return ScanReport.from_dict(self._meta["report"])

    def path(self, i: int) -> str:
        """Return the absolute file name of image i, or a made-up name such as "train[12]"."""
        start, end = self.arrays["path_offsets"][i : i + 2].tolist()
        return os.fsdecode(self.arrays["paths"][start:end].tobytes())

    def image(self, i: int, channels: int) -> np.ndarray | None:
        """Return the pixels (h, w, channels) of an image that is a Python object; None for a file.

        Raises:
            DataError: if it can't be used.
        """
        if not self.sequences:
            return None
        sequence, number = self.arrays["items"][i].tolist()
        if sequence < 0:
            return None
        return item_image(self.sequences[sequence], number, self.path(i), channels)

    def shape(self, i: int) -> tuple[int, int]:
        """Return (h, w) of image i, EXIF rotation applied."""
        height, width = self.shapes[i].tolist()
        return height, width

    def image_id(self, i: int) -> int | str:
        """Return COCO's id of image i; without one its file's stem, as int if all digits.

        Images of one name in two folders have the same stem: use i where uniqueness matters.
        """
        if "image_ids" in self.arrays:
            return int(self.arrays["image_ids"][i])
        stem = os.path.splitext(os.path.basename(self.path(i)))[0]
        return int(stem) if stem.isascii() and stem.isdecimal() else stem

    def instances(self, i: int) -> Instances:
        """Return fresh copies of the objects of image i, in pixels of the original image."""
        start, end = self.offsets[i : i + 2].tolist()
        arrays = self.arrays
        values: dict[str, Any] = {k: arrays[k][start:end].copy() for k in FIELDS if k in arrays}
        if POLYGONS[0] in self.arrays:
            points, rings, objects = (self.arrays[name] for name in POLYGONS)
            values["polygons"] = [
                [points[rings[r] : rings[r + 1]].copy() for r in range(first, last)]
                for first, last in pairwise(objects[start : end + 1].tolist())
            ]
        return Instances(**values)

    def objects(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the image (m,) and the class (m,) of each object, ignore regions left out."""
        real = ~self.arrays["ignore"]
        images = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        return images[real], self.arrays["classes"][real]

    def class_counts(self) -> np.ndarray:
        """Return (num_classes,) int64 counts of the objects, ignore regions left out."""
        return np.bincount(self.objects()[1], minlength=self.num_classes)


def open_split(
    spec: DatasetSpec,
    split: str,
    label_format: LabelFormat,
    fraction: float = 1.0,
    any_class: bool = False,
) -> Source:
    """Return what reads a split's labels and image headers.

    Args:
        spec: the dataset.
        split: "train", "val" or "test".
        label_format: what a label row means, and which kinds of label to keep.
        fraction: share of the images, spread evenly; of merged datasets, of each.
        any_class: class ids in labels aren't checked.

    Raises:
        DataError: if the split isn't named, there are no images, or labels with keypoints have no
            `kpt_shape`.
    """
    spec.require(split)
    kinds = label_format.kinds
    if spec.parts:
        parts = [
            (open_split(part, split, label_format, fraction), classes)
            for part, classes in spec.parts
            if split in part.splits
        ]
        others = len(spec.names) if spec.ignore_others and CLASSES not in kinds else 0
        return MergedSource(parts, others)
    if "keypoints" in kinds:
        spec.keypoint_shape()
    rules = LabelRules(None if any_class else len(spec.names), spec.kpt_shape)
    if spec.kind == "objects":
        name = split if spec.label == MAPPING else f"{spec.label}/{split}"
        return ObjectSource(spec.items[split], name, label_format, rules, spec.channels, fraction)
    paths = spec.sources(split)
    if spec.kind == "coco":
        folder, ids = spec.image_folders.get(split), spec.category_ids or ()
        return CocoSource(paths, folder, spec.names, ids, label_format, rules, fraction)
    if spec.kind == CLASSES:
        source = class_files(paths, spec.names, all_needed=split == "train")
    else:
        source = list_files(paths, spec.root, label_reader(label_format, rules))
    if not source.paths:
        raise DataError(f"{spec.where}: {split}: no images found in {', '.join(map(str, paths))}")
    return source.part(fraction)


def build_index(
    spec: DatasetSpec,
    split: str,
    label_format: LabelFormat | Callable[[], LabelFormat],
    cache_dir: Path | str | None = None,
    *,
    single_cls: bool = False,
    classes: int | Sequence[int] | None = None,
    fraction: float = 1.0,
    strict: bool = False,
    workers: int = 8,
) -> tuple[LabelIndex, ScanReport]:
    """Read a split's labels and image headers, or take them from the cache.

    Args:
        spec: the dataset.
        split: "train", "val" or "test".
        label_format: what a label row means; a class is called without arguments.
        cache_dir: where label caches live; None keeps the index in memory.
        single_cls: all objects get class 0, named "item", whatever id their labels have.
        classes: keep the objects of these class ids only; ids stay as they are.
        fraction: share of the images, spread evenly over the sorted list.
        strict: stop at the first problem.
        workers: threads for a first scan.

    Returns:
        The index, and the report of its scan (`report.cached` where there was none).

    Raises:
        DataError: if there are no usable images, no labels to train on, or, when strict, at the
            first problem.
        ConfigError: if `classes` or `fraction` is out of range.
    """
    label_format = label_format() if callable(label_format) else label_format
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction: expected a share above 0 and up to 1, found {fraction!r}")
    chosen = [classes] if isinstance(classes, int) else classes and sorted(map(int, set(classes)))
    for number in chosen or ():
        if number not in spec.names:
            known = f"ids from 0 to {len(spec.names) - 1}"
            raise ConfigError(f"classes: expected {known}, found {number}")
    source = open_split(spec, split, label_format, fraction, single_cls)
    posed = "keypoints" in label_format.kinds
    meta: dict[str, Any] = {
        "version": VERSION,
        "names": [SINGLE_CLASS_NAME] if single_cls else list(spec.names.values()),
        "category_ids": None if single_cls else spec.category_ids,
        "kpt_shape": spec.kpt_shape if posed else None,
        "kpt_oks_sigmas": spec.kpt_oks_sigmas if posed else None,
    }
    folder = None
    fingerprint = None if cache_dir is None else source.fingerprint()
    if cache_dir is not None and fingerprint is not None:
        # names decide the meaning of ids, so the originals count even when single_cls hides them
        key = [meta, spec.names, spec.category_ids, label_format.name, sorted(label_format.kinds)]
        # the keypoints' shape says how wide a row is
        key += [spec.kpt_shape, single_cls, chosen, fraction, split, fingerprint]
        digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).hexdigest()
        folder = Path(cache_dir).absolute() / f"labels-{split}-{digest}"
        index = _open_cached(folder)
        if index is not None:
            report = index.report
            if strict and report.problems:
                raise DataError(f"{report.problems[0]} (strict=True stops at the first problem)")
            return index, report
    report = ScanReport(split, strict=strict)
    images = _chosen(source.scan(report, workers), chosen, single_cls)
    if CLASSES in label_format.kinds:  # an image of no class that counts is no background
        images = (image for image in images if len(image.instances))
    index = _collect(images, meta, report)
    where = f"{spec.where}: {split}:"
    first = f" First problem: {report.problems[0]}" if report.problems else ""
    if not len(index):
        raise DataError(f"{where} not one usable image.{first}")
    if split == "train" and report.objects == report.ignored:
        raise DataError(f"{where} no object to train on {PLACES[spec.kind]}.{first}")
    return (index if folder is None else index.save(folder)), report


def _chosen(
    images: Iterator[LabelledImage], classes: Sequence[int] | None, single_cls: bool
) -> Iterator[LabelledImage]:
    """Keep the objects of the chosen classes, or all; then make one class of them if asked to."""
    for image in images:
        if classes is not None:
            image.instances = image.instances.select(np.isin(image.instances.classes, classes))
        if single_cls:
            image.instances.classes = np.zeros_like(image.instances.classes)
        yield image


def _open_cached(folder: Path) -> LabelIndex | None:
    """Open a cache that is there; one that can't be read is put out of the way."""
    if not folder.is_dir():
        return None
    try:
        return LabelIndex.open(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("label cache %s can't be read (%s); it is rebuilt", folder, error)
        broken = folder.with_name(f".{folder.name}.broken-{uuid.uuid4().hex[:8]}")
        os.rename(folder, broken)
        shutil.rmtree(broken, ignore_errors=True)
        return None


def _collect(
    images: Iterator[LabelledImage], meta: dict[str, Any], report: ScanReport
) -> LabelIndex:
    """Flatten labelled images into an index: parts of columns by name, joined at the end."""
    parts: dict[str, list[np.ndarray]] = {}
    paths: list[bytes] = []
    shapes: list[tuple[int, int]] = []
    counts: list[int] = []
    image_ids: list[int] = []
    sequences: list[Sequence[Any]] = []
    items: list[tuple[int, int]] = []
    for image in images:
        paths.append(os.fsencode(image.path))
        shapes.append(image.shape)
        counts.append(len(image.instances))
        if image.image_id is not None:
            image_ids.append(image.image_id)
        if image.item is not None and (not sequences or sequences[-1] is not image.item[0]):
            sequences.append(image.item[0])
        items.append((-1, 0) if image.item is None else (len(sequences) - 1, image.item[1]))
        if counts[-1]:
            _add(parts, image.instances)
    _add(parts, Instances.empty())
    arrays = {name: np.concatenate(listed) for name, listed in parts.items()}
    arrays |= {name: _edges(arrays[name]) for name in POLYGONS[1:] if name in arrays}
    arrays["paths"] = np.frombuffer(b"".join(paths), dtype=np.uint8)
    arrays["path_offsets"] = _edges([len(path) for path in paths])
    arrays["shapes"] = np.array(shapes, dtype=np.int32).reshape(-1, 2)
    arrays["offsets"] = _edges(counts)
    if image_ids:
        arrays["image_ids"] = np.array(image_ids, dtype=np.int64)
    if sequences:
        arrays["items"] = np.array(items, dtype=np.int64)
    report.images, report.background, report.objects = len(paths), counts.count(0), sum(counts)
    report.ignored = int(arrays["ignore"].sum())
    return LabelIndex(arrays, {**meta, "report": report.to_dict()}, sequences=sequences)


def _add(parts: dict[str, list[np.ndarray]], instances: Instances) -> None:
    """Add what instances carry to the columns; of outlines, points and counts of them."""
    for item in fields(Instances):
        value = getattr(instances, item.name)
        columns = {} if value is None else {item.name: value}
        if isinstance(value, list):
            rings = [ring for polygon in value for ring in polygon]
            points = np.concatenate(rings) if rings else np.zeros((0, 2))
            lengths = np.array([len(r) for r in rings]), np.array([len(p) for p in value])
            columns = dict(zip(POLYGONS, (points, *lengths), strict=True))
        for name, column in columns.items():
            parts.setdefault(name, []).append(column)


def _edges(counts: np.ndarray | list[int]) -> np.ndarray:
    """Turn k counts into k + 1 offsets."""
    return np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))]).astype(np.int64)
