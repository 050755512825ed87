# SPDX-License-Identifier: Apache-2.0
"""COCO JSON as labels: categories, images, annotations.

The format: https://cocodataset.org/#format-data.
Category ids may have gaps; class ids are their ranks. Boxes, areas and crowd flags are kept as the
file has them, so that COCO's own evaluation can be repeated. Exact duplicates stay, too: COCO's
evaluation counts them. Outlines and run-length masks both become rings, of the very pixels that
COCO scores with.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolo.data.coco_json import find_image_folder, read_categories, read_json
from yolo.data.folder import list_files
from yolo.data.geometry import box_corners, ring_area, smallest_rectangle
from yolo.data.keys import is_number, is_whole
from yolo.data.labels import HIGHEST, LOWEST, LabelFormat, LabelledImage, LabelRules
from yolo.data.masks import coco_polygon
from yolo.data.report import Problem, ScanReport
from yolo.data.sample import Instances, Polygon
from yolo.data.scan import evenly_spaced, scan_files
from yolo.errors import DataError

Entry = dict[str, Any]
"""An image or an annotation, as the JSON has it."""


@dataclass(slots=True)
class CocoSource:
    """COCO JSON files with their image folder, ready to be scanned.

    Attributes:
        jsons: the JSON files of the split.
        folder: what file_name refers to, or None: look in the usual places.
        names: class id -> name.
        category_ids: category id of each class.
        label_format: which kinds of label to keep.
        rules: keypoints of the dataset.
        fraction: share of the images to use.
    """

    jsons: Sequence[Path]
    folder: Path | None
    names: Mapping[int, str]
    category_ids: Sequence[int]
    label_format: LabelFormat
    rules: LabelRules
    fraction: float = 1.0

    def fingerprint(self) -> str:
        """Return a hash that changes with the JSON files and everything in the image folder."""
        digest = hashlib.blake2b(digest_size=16)
        for file in self.jsons:
            stat, folder = file.stat(), self.image_folder(file)
            digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
            digest.update(list_files([folder], folder).fingerprint().encode())
        return digest.hexdigest()

    def scan(self, report: ScanReport, workers: int) -> Iterator[LabelledImage]:
        """Read annotations and image headers; report what is wrong, yield what is usable.

        Raises:
            DataError: if a JSON is malformed, its categories differ from the dataset's, or not
                one of its annotations fits an image and a class.
        """
        for file in self.jsons:
            self._check_categories(file)
            content = read_json(file)
            images = _images(file, content["images"], report)
            objects = self._by_image(file, content["annotations"], images, report)
            listed = sorted(images.values(), key=lambda image: image["file_name"])
            chosen = [listed[i] for i in evenly_spaced(len(listed), self.fraction)]
            folder = self.image_folder(file)
            paths = [os.path.abspath(folder / image["file_name"]) for image in chosen]
            known = [(image, objects.get(image["id"], [])) for image in chosen]
            label = _Annotations(file, self).label
            yield from scan_files(zip(paths, known, strict=True), label, report, workers)

    def image_folder(self, file: Path) -> Path:
        """Return the folder that the file names of one JSON refer to."""
        return self.folder if self.folder is not None else find_image_folder(file)

    def _check_categories(self, file: Path) -> None:
        expected = {self.category_ids[i]: name for i, name in self.names.items()}
        found = read_categories(file)
        if found != expected:
            odd = sorted(set(found.items()) ^ set(expected.items()))[0]
            raise DataError(
                f"{file}: expected the categories of the dataset, found a difference at id "
                f"{odd[0]} ({odd[1]!r}); all splits need the same categories"
            )

    def _by_image(
        self, file: Path, annotations: list[Any], images: Mapping[int, Entry], report: ScanReport
    ) -> dict[int, list[Entry]]:
        """Return the annotations of each image, by its id."""
        found: dict[int, list[Entry]] = {}
        known = set(self.category_ids)
        for entry in annotations:
            if not isinstance(entry, dict):
                raise DataError(f"{file}: expected annotations as objects, found {entry!r:.80}")
            image: Any = entry.get("image_id")
            category = entry.get("category_id")
            reason = ""
            if not is_whole(image) or image not in images:
                reason = f"image_id {image!r} is none of the images"
            elif not is_whole(category) or category not in known:
                reason = f"category_id {category!r} is none of the categories"
            if reason:
                report.add(Problem(str(file), 0, f"annotation {entry.get('id')}: {reason}"))
            else:
                found.setdefault(image, []).append(entry)
        if annotations and not found:
            raise DataError(
                f"{file}: none of its {len(annotations)} annotations fits an image and "
                "a category; check image_id and category_id"
            )
        return found


def _images(file: Path, listed: list[Any], report: ScanReport) -> dict[int, Entry]:
    """Return the images by their ids; of those that appear twice, the first."""
    images: dict[int, Entry] = {}
    names: set[str] = set()
    for image in listed:
        name = image.get("file_name") if isinstance(image, dict) else None
        if not isinstance(name, str) or "\0" in name or not is_whole(image.get("id")):
            raise DataError(f"{file}: expected images with id and file_name, found {image!r:.80}")
        if image["id"] in images or name in names:
            reason = f"image id {image['id']} ({name}) appears twice"
            report.add(Problem(str(file), 0, reason, "duplicate"))
        else:
            images[image["id"]] = image
            names.add(name)
    return images


class _Annotations:
    """Turns one image's annotations into instances; used from several threads."""

    def __init__(self, file: Path, source: CocoSource) -> None:
        self.file = str(file)
        self.kinds = source.label_format.kinds
        self.count = source.rules.kpt_shape[0] if source.rules.kpt_shape else 0
        self.classes = {category: i for i, category in enumerate(source.category_ids)}

    def label(self, image: LabelledImage, known: tuple[Entry, list[Entry]]) -> list[Problem]:
        """Fill in the id and the objects of an image.

        Raises:
            DataError: if the image isn't of the size that the JSON says.
        """
        entry, annotations = known
        (height, width), image.image_id = image.shape, entry["id"]
        stated = (entry.get("height", height), entry.get("width", width))
        if stated != image.shape:
            raise DataError(
                f"{image.path}: the image is {height}x{width} pixels (h x w), {self.file} says "
                f"{stated[0]}x{stated[1]}; its boxes would be misplaced"
            )
        problems: list[Problem] = []
        good: list[Entry] = []
        outlines: list[Polygon] = []
        corners: list[np.ndarray] = []
        for found in annotations:
            try:
                self._check(found, image.shape)
                if self.kinds & {"polygons", "corners"}:
                    outline = _outline(found, image.shape)
                    if "corners" in self.kinds:
                        corners.append(_corners(found, outline))
                    outlines.append(outline)
                good.append(found)
            except ValueError as error:
                reason = f"annotation {found.get('id')}: {error}"
                problems.append(Problem(self.file, 0, reason))
        if good:
            image.instances = self._instances(good, outlines, corners)
        return problems

    def _check(self, entry: Entry, shape: tuple[int, int]) -> None:
        """Check box and keypoints.

        Raises:
            ValueError: saying what was expected and what was found; so do all functions below.
        """
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            raise ValueError(
                f"expected bbox [left, top, width, height] of finite numbers, found {box!r:.80}"
            )
        left, top, width, height = box
        if width <= 0 or height <= 0:
            raise ValueError(f"expected a width and height above 0, found bbox {box}")
        if left >= shape[1] or top >= shape[0] or left + width <= 0 or top + height <= 0:
            raise ValueError(f"bbox {box} lies outside the image of {shape[0]}x{shape[1]} pixels")
        if "keypoints" in self.kinds and "keypoints" in entry:
            self._check_keypoints(entry["keypoints"], shape)

    def _check_keypoints(self, flat: Any, shape: tuple[int, int]) -> None:
        """Check x, y, visibility by turns."""
        if (
            not isinstance(flat, list)
            or len(flat) != 3 * self.count
            or not all(map(is_number, flat))
        ):
            found = f"{len(flat)} entries" if isinstance(flat, list) else f"{flat!r:.80}"
            raise ValueError(
                f"expected {3 * self.count} numbers in keypoints (x, y, visibility for each), "
                f"found {found}"
            )
        for k, (x, y, flag) in enumerate(zip(flat[0::3], flat[1::3], flat[2::3], strict=True)):
            if flag not in (0, 1, 2):
                raise ValueError(
                    f"expected the visibility of keypoint {k} as 0, 1 or 2, found {flag}"
                )
            shares = (x / shape[1], y / shape[0])
            if flag and not all(LOWEST <= share <= HIGHEST for share in shares):
                raise ValueError(
                    f"expected keypoint {k} inside the image of {shape[0]}x{shape[1]} pixels "
                    f"(h x w), found {x:g} {y:g}"
                )

    def _instances(
        self, entries: list[Entry], outlines: list[Polygon], corners: list[np.ndarray]
    ) -> Instances:
        ltwh = np.array([entry["bbox"] for entry in entries], dtype=np.float64)
        area = [
            entry["area"] if is_number(entry.get("area")) else entry["bbox"][2] * entry["bbox"][3]
            for entry in entries
        ]
        extra: dict[str, Any] = {}
        if "polygons" in self.kinds:
            extra["polygons"] = outlines
        if "corners" in self.kinds:
            extra["corners"] = np.array(corners)
        if "keypoints" in self.kinds:
            absent = [0.0] * (3 * self.count)
            flat = [entry.get("keypoints", absent) for entry in entries]
            extra["keypoints"] = np.array(flat, dtype=np.float64).reshape(len(flat), -1, 3)
        return Instances.from_boxes(
            [self.classes[entry["category_id"]] for entry in entries],
            np.concatenate([ltwh[:, :2], ltwh[:, :2] + ltwh[:, 2:]], axis=1),
            area=np.array(area, dtype=np.float64),
            ignore=np.array([bool(entry.get("iscrowd")) for entry in entries]),
            **extra,
        )


def _outline(entry: Entry, shape: tuple[int, int]) -> Polygon:
    """Return an annotation's rings; a crowd may go without."""
    found = entry.get("segmentation")
    return coco_polygon(found, shape) if found or not entry.get("iscrowd") else []


def _corners(entry: Entry, outline: Polygon) -> np.ndarray:
    """Return the corners (4, 2) of the smallest rectangle around an outline, else of the bbox."""
    if not outline:  # a crowd
        left, top, width, height = entry["bbox"]
        outline = [box_corners(np.array([[left, top, left + width, top + height]]))[0]]
    corners = smallest_rectangle(np.concatenate(outline))
    if ring_area(corners) <= 1e-6:
        raise ValueError("expected an outline around an area, found all points on one line")
    return corners
