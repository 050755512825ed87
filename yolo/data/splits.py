# SPDX-License-Identifier: Apache-2.0
"""From a dataset's description to what reads a split, whatever kind of dataset it is."""

from __future__ import annotations

from yolo.data.class_folders import CLASSES, class_files
from yolo.data.coco import CocoSource
from yolo.data.datasets import MAPPING, DatasetSpec
from yolo.data.folder import FileSource, label_reader, list_files
from yolo.data.labels import LabelFormat, LabelRules
from yolo.data.merge import MergedSource
from yolo.data.objects import ObjectSource
from yolo.data.scan import Source
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
        source = FileSource(list_files(paths, spec.root), label_reader(label_format, rules))
    if not source.files.paths:
        raise DataError(f"{spec.where}: {split}: no images found in {', '.join(map(str, paths))}")
    source.files = source.files.part(fraction)
    return source
