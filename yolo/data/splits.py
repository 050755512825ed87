# SPDX-License-Identifier: Apache-2.0
"""From a dataset's description to what reads a split, whatever kind of dataset it is."""

from __future__ import annotations

from yolo.data.class_folders import CLASSES, ClassFolders
from yolo.data.coco import CocoSource
from yolo.data.datasets import MAPPING, DatasetSpec
from yolo.data.folder import FolderSource, evenly_spaced, list_files
from yolo.data.labels import LabelFormat, LabelRules
from yolo.data.merge import MergedSource, Source
from yolo.data.objects import ObjectSource
from yolo.errors import DataError

PLACES = {
    "yolo": "in its label files, which belong in the folder `labels` that mirrors `images`",
    "coco": "in its JSON",
    CLASSES: "in its class folders",
    "objects": "in its items",
    "merged": "of the classes that it has",
}
"""Kind of a dataset -> where its labels are, for messages."""


def open_split(
    spec: DatasetSpec,
    split: str,
    label_format: LabelFormat,
    fraction: float = 1.0,
    single_cls: bool = False,
) -> Source:
    """Return what reads a split's labels and image headers.

    Args:
        spec: the dataset.
        split: "train", "val" or "test".
        label_format: what a label row means, and which kinds of label to keep.
        fraction: share of the images, spread evenly; of merged datasets, of each.
        single_cls: all objects get class 0.

    Raises:
        DataError: if the split isn't named, or there are no images.
    """
    spec.require(split)
    rules = LabelRules(len(spec.names), spec.kpt_shape, single_cls)
    if spec.parts:
        parts = [
            (open_split(part, split, label_format, fraction), classes)
            for part, classes in spec.parts
            if split in part.splits
        ]
        return MergedSource(parts, single_cls)
    if spec.kind == "objects":
        name = split if spec.label == MAPPING else f"{spec.label}/{split}"
        return ObjectSource(spec.items[split], name, label_format, rules, spec.channels, fraction)
    paths = spec.sources(split)
    if spec.kind == "coco":
        assert spec.category_ids is not None
        return CocoSource(
            paths,
            spec.image_folders.get(split),
            spec.names,
            spec.category_ids,
            label_format,
            rules,
            fraction,
        )
    folders = None
    if spec.kind == CLASSES:
        folders = ClassFolders.find(
            paths, spec.names, all_needed=split == "train", single_cls=single_cls
        )
    files = folders.files if folders else list_files(paths, spec.root)
    if not files.paths:
        raise DataError(f"{spec.where}: {split}: no images found in {', '.join(map(str, paths))}")
    rows = evenly_spaced(len(files.paths), fraction)
    if len(rows) < len(files.paths):
        files.paths = [files.paths[i] for i in rows]
        files.stats = files.stats[rows]
    return folders or FolderSource(files, label_format, rules)
