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
import json
import mmap
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolo.data.folder import FileList, evenly_spaced, in_threads, list_files
from yolo.data.geometry import box_corners, ring_area, smallest_rectangle
from yolo.data.images import image_shape
from yolo.data.labels import HIGHEST, LOWEST, LabelFormat, LabelledImage, LabelRules
from yolo.data.masks import coco_polygon
from yolo.data.report import Problem, ScanReport
from yolo.data.sample import Instances, Polygon
from yolo.errors import DataError

CATEGORIES = re.compile(rb'"categories"\s*:\s*(?=\[)')
FILE_NAME = re.compile(rb'"file_name"\s*:\s*(?=")')
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


def read_categories(file: Path) -> dict[int, str]:
    """Return category id -> name in rising order of ids, without parsing the annotations.

    Raises:
        DataError: if the file isn't COCO JSON or its categories can't be used.
    """
    found: list[Any] = []
    with _mapped(file) as data:
        places = [match.end() for match in CATEGORIES.finditer(data)]
        if len(places) == 1:
            found = _decode_list(data, places[0])
    if not found:
        found = _load(file)["categories"]
    names: dict[int, str] = {}
    for entry in found:
        if not isinstance(entry, dict) or not _is_int(entry.get("id")) or "name" not in entry:
            raise DataError(f"{file}: expected categories with id and name, found {entry!r:.80}")
        if entry["id"] in names:
            raise DataError(f"{file}: category id {entry['id']} appears twice")
        names[entry["id"]] = str(entry["name"])
    if not names:
        raise DataError(f"{file}: expected at least one category, found none")
    return dict(sorted(names.items()))


def find_image_folder(file: Path) -> Path:
    """Find the folder that a COCO JSON's file names refer to, among the usual places.

    Tried in order: `images` beside the JSON, its own folder, `images` and the folder above, and
    below each of these a folder named like the end of the JSON's name (instances_NAME.json).

    Raises:
        DataError: if the first images are in none of them.
    """
    names: list[str] = []
    with _mapped(file) as data:
        for match in FILE_NAME.finditer(data):
            text = STRING.match(data, match.end())
            if text:
                names.append(json.loads(text.group()))
            if len(names) == 8:
                break
    part = file.stem.rpartition("_")[2]
    bases = [
        file.parent / "images",
        file.parent,
        file.parent.parent / "images",
        file.parent.parent,
    ]
    tried = [*bases, *(base / part for base in bases)]
    for folder in tried:
        if any((folder / name).is_file() for name in names):
            return folder
    raise DataError(
        f"{file}: none of its first images ({', '.join(names[:2]) or 'it names none'}) is in "
        f"{', '.join(map(str, tried[:4]))}; name the folder by `images:` in the dataset's YAML"
    )


@dataclass(slots=True)
class CocoSource:
    """COCO JSON files with their image folder, ready to be scanned.

    Attributes:
        jsons: the JSON files of the split.
        folder: what file_name refers to, or None: look in the usual places.
        names: class id -> name.
        category_ids: category id of each class.
        label_format: which kinds of label to keep.
        rules: classes and keypoints of the dataset.
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
            stat = file.stat()
            digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
            digest.update(self._images(file).fingerprint().encode())
        return digest.hexdigest()

    def scan(self, report: ScanReport, workers: int) -> Iterator[LabelledImage]:
        """Read annotations and image headers; report what is wrong, yield what is usable.

        Raises:
            DataError: if a JSON is malformed, its categories differ from the dataset's, or not
                one of its annotations fits an image and a class.
        """
        for file in self.jsons:
            self._check_categories(file)
            content = _load(file)
            images, by_image = self._match(file, content, report)
            chosen = [images[i] for i in evenly_spaced(len(images), self.fraction)]
            reader = _Reader(file, self)
            items = ((image, by_image.get(image["id"], [])) for image in chosen)
            for image, problems in in_threads(reader.read, items, workers):
                for problem in problems:
                    report.add(problem)
                if image is not None:
                    yield image

    def image_folder(self, file: Path) -> Path:
        """Return the folder that the file names of one JSON refer to."""
        return self.folder if self.folder is not None else find_image_folder(file)

    def _images(self, file: Path) -> FileList:
        folder = self.image_folder(file)
        return list_files([folder], folder)

    def _check_categories(self, file: Path) -> None:
        expected = {self.category_ids[i]: name for i, name in self.names.items()}
        found = read_categories(file)
        if found != expected:
            odd = sorted(set(found.items()) ^ set(expected.items()))[0]
            raise DataError(
                f"{file}: expected the categories of the dataset, found a difference at id "
                f"{odd[0]} ({odd[1]!r}); all splits need the same categories"
            )

    def _match(
        self, file: Path, content: dict[str, Any], report: ScanReport
    ) -> tuple[list[dict[str, Any]], dict[int, list[dict[str, Any]]]]:
        """Sort out the images, and the annotations of each."""
        images: dict[int, dict[str, Any]] = {}
        names: set[str] = set()
        for image in content["images"]:
            if (
                not isinstance(image, dict)
                or not _is_int(image.get("id"))
                or not isinstance(image.get("file_name"), str)
                or "\0" in image["file_name"]
            ):
                raise DataError(
                    f"{file}: expected images with id and file_name, found {image!r:.80}"
                )
            if image["id"] in images or image["file_name"] in names:
                reason = f"image id {image['id']} ({image['file_name']}) appears twice"
                report.add(Problem(str(file), 0, reason, "duplicate"))
                continue
            images[image["id"]] = image
            names.add(image["file_name"])
        by_image: dict[int, list[dict[str, Any]]] = {}
        matched = 0
        known = set(self.category_ids)
        for entry in content["annotations"]:
            if not isinstance(entry, dict):
                raise DataError(f"{file}: expected annotations as objects, found {entry!r:.80}")
            reason = ""
            if not _is_int(entry.get("image_id")) or entry["image_id"] not in images:
                reason = f"image_id {entry.get('image_id')!r} is none of the images"
            elif not _is_int(entry.get("category_id")) or entry["category_id"] not in known:
                reason = f"category_id {entry.get('category_id')!r} is none of the categories"
            if reason:
                report.add(Problem(str(file), 0, f"annotation {entry.get('id')}: {reason}"))
                continue
            matched += 1
            by_image.setdefault(entry["image_id"], []).append(entry)
        if content["annotations"] and not matched:
            raise DataError(
                f"{file}: none of its {len(content['annotations'])} annotations fits an image and "
                "a category; check image_id and category_id"
            )
        return sorted(images.values(), key=lambda image: image["file_name"]), by_image


class _Reader:
    """Turns one image's annotations into instances; used from several threads."""

    def __init__(self, file: Path, source: CocoSource) -> None:
        self.file = str(file)
        self.folder = source.image_folder(file)
        self.kinds = source.label_format.kinds
        self.rules = source.rules
        single = source.rules.single_cls
        self.classes = {c: 0 if single else i for i, c in enumerate(source.category_ids)}

    def read(
        self, item: tuple[dict[str, Any], list[dict[str, Any]]]
    ) -> tuple[LabelledImage | None, list[Problem]]:
        image, annotations = item
        path = os.path.abspath(self.folder / image["file_name"])
        try:
            shape = image_shape(path)
        except (DataError, FileNotFoundError) as error:
            return None, [Problem(path, 0, str(error).removeprefix(f"{path}: "), "image")]
        stated = (image.get("height", shape[0]), image.get("width", shape[1]))
        if stated != shape:
            reason = (
                f"the image is {shape[0]}x{shape[1]} pixels (h x w), {self.file} says "
                f"{stated[0]}x{stated[1]}; its boxes would be misplaced"
            )
            return None, [Problem(path, 0, reason, "image")]
        problems: list[Problem] = []
        good: list[dict[str, Any]] = []
        outlines: list[Polygon] = []
        corners: list[np.ndarray] = []
        for entry in annotations:
            reason = self._fault(entry, shape)
            try:
                if not reason and self.kinds & {"polygons", "corners"}:
                    outline = _outline(entry, shape)
                    if "corners" in self.kinds:
                        corners.append(_corners(entry, outline))
                    outlines.append(outline)
            except ValueError as error:
                reason = str(error)
            if reason:
                problems.append(Problem(self.file, 0, f"annotation {entry.get('id')}: {reason}"))
            else:
                good.append(entry)
        instances = self._instances(good, outlines, corners)
        return LabelledImage(path, shape, instances, image["id"]), problems

    def _fault(self, entry: dict[str, Any], shape: tuple[int, int]) -> str:
        """Say why an annotation can't be used, or return an empty string."""
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            return f"expected bbox [left, top, width, height] of finite numbers, found {box!r:.80}"
        left, top, width, height = box
        if width <= 0 or height <= 0:
            return f"expected a width and height above 0, found bbox {box}"
        if left >= shape[1] or top >= shape[0] or left + width <= 0 or top + height <= 0:
            return f"bbox {box} lies outside the image of {shape[0]}x{shape[1]} pixels"
        if "keypoints" in self.kinds and "keypoints" in entry:
            return self._keypoint_fault(entry["keypoints"], shape)
        return ""

    def _keypoint_fault(self, flat: Any, shape: tuple[int, int]) -> str:
        """Say why x, y, visibility by turns can't be used, or return an empty string."""
        count = self.rules.kpt_shape[0] * 3 if self.rules.kpt_shape else 0
        if not isinstance(flat, list) or len(flat) != count or not all(map(_is_number, flat)):
            found = f"{len(flat)} entries" if isinstance(flat, list) else f"{flat!r:.80}"
            return (
                f"expected {count} numbers in keypoints (x, y, visibility for each), found {found}"
            )
        for k, (x, y, flag) in enumerate(zip(flat[0::3], flat[1::3], flat[2::3], strict=True)):
            if flag not in (0, 1, 2):
                return f"expected the visibility of keypoint {k} as 0, 1 or 2, found {flag}"
            shares = (x / shape[1], y / shape[0])
            if flag and not all(LOWEST <= share <= HIGHEST for share in shares):
                return (
                    f"expected keypoint {k} inside the image of {shape[0]}x{shape[1]} pixels "
                    f"(h x w), found {x:g} {y:g}"
                )
        return ""

    def _instances(
        self,
        entries: list[dict[str, Any]],
        outlines: list[Polygon],
        corners: list[np.ndarray],
    ) -> Instances:
        if not entries:
            return Instances.empty()
        ltwh = np.array([entry["bbox"] for entry in entries], dtype=np.float64)
        area = [
            entry["area"] if _is_number(entry.get("area")) else entry["bbox"][2] * entry["bbox"][3]
            for entry in entries
        ]
        extra: dict[str, Any] = {}
        if "polygons" in self.kinds:
            extra["polygons"] = outlines
        if "corners" in self.kinds:
            extra["corners"] = np.array(corners)
        if "keypoints" in self.kinds and self.rules.kpt_shape:
            absent = [0.0] * (3 * self.rules.kpt_shape[0])
            flat = [entry.get("keypoints", absent) for entry in entries]
            extra["keypoints"] = np.array(flat, dtype=np.float64).reshape(len(flat), -1, 3)
        return Instances.from_boxes(
            [self.classes[entry["category_id"]] for entry in entries],
            np.concatenate([ltwh[:, :2], ltwh[:, :2] + ltwh[:, 2:]], axis=1),
            area=np.array(area, dtype=np.float64),
            ignore=np.array([bool(entry.get("iscrowd")) for entry in entries]),
            **extra,
        )


def _outline(entry: dict[str, Any], shape: tuple[int, int]) -> Polygon:
    """Return an annotation's rings; a crowd may go without.

    Raises:
        ValueError: saying what was expected and what was found.
    """
    found = entry.get("segmentation")
    return coco_polygon(found, shape) if found or not entry.get("iscrowd") else []


def _corners(entry: dict[str, Any], outline: Polygon) -> np.ndarray:
    """Return the corners (4, 2) of the smallest rectangle around an outline, else of the bbox.

    Raises:
        ValueError: if the outline has no area.
    """
    if not outline:  # a crowd
        left, top, width, height = entry["bbox"]
        outline = [box_corners(np.array([[left, top, left + width, top + height]]))[0]]
    corners = smallest_rectangle(np.concatenate(outline))
    if ring_area(corners) <= 1e-6:
        raise ValueError("expected an outline around an area, found all points on one line")
    return corners


def _is_int(value: Any) -> bool:
    # an id has to fit into the index's int64
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    # the bounds refuse nan, infinities, and whole numbers that no float holds
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e15 < value < 1e15


@contextmanager
def _mapped(file: Path) -> Iterator[mmap.mmap]:
    """Open a JSON file as bytes without reading it all."""
    try:
        with open(file, "rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise DataError(f"{file}: the file is empty; expected COCO JSON")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data
    except OSError as error:
        raise DataError(f"{file}: can't be read: {error.strerror}") from error


def _decode_list(data: mmap.mmap, start: int) -> list[Any]:
    """Decode the JSON list at `start`; empty if it isn't whole within a megabyte."""
    text = data[start : start + (1 << 20)].decode("utf-8", errors="ignore")
    try:
        found, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []


def _load(file: Path) -> dict[str, Any]:
    """Parse a whole COCO JSON and check its three lists.

    Raises:
        DataError: naming file and line, or the key that is missing.
    """
    try:
        content = json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: not valid JSON: {error.msg}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{file}: not a usable JSON file: {error}") from None
    for key in ("images", "annotations", "categories"):
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list):
            raise DataError(
                f"{file}: expected COCO JSON with a list {key!r}, "
                f"found {type(found if isinstance(content, dict) else content).__name__}"
            )
    checked: dict[str, Any] = content
    return checked
