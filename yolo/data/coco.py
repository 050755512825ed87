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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

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

CATEGORIES = re.compile(rb'"categories"\s*:\s*(?=\[)')
FILE_NAME = re.compile(rb'"file_name"\s*:\s*(?=")')
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


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
        if odd := sorted(read_categories(file).items() ^ expected.items()):
            raise DataError(
                f"{file}: expected the categories of the dataset, found a difference at id "
                f"{odd[0][0]} ({odd[0][1]!r}); all splits need the same categories"
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
            category: Any = entry.get("category_id")
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
            text = (
                f"{file}: none of its {len(annotations)} annotations fits an image and a category"
            )
            raise DataError(f"{text}; check image_id and category_id")
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
        parts: list[Instances] = []
        for found in annotations:
            try:
                parts.append(self._instance(found, image.shape))
            except ValueError as error:
                reason = f"annotation {found.get('id')}: {error}"
                problems.append(Problem(self.file, 0, reason))
        image.instances = Instances.concatenate(parts)
        return problems

    def _instance(self, entry: Entry, shape: tuple[int, int]) -> Instances:
        """Return one annotation's object.

        Raises:
            ValueError: saying what was expected and what was found; so do all functions below.
        """
        box, area, crowd = entry.get("bbox"), entry.get("area"), bool(entry.get("iscrowd"))
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            text = "expected bbox [left, top, width, height] of finite numbers"
            raise ValueError(f"{text}, found {box!r:.80}")
        left, top, width, height = box
        if width <= 0 or height <= 0:
            raise ValueError(f"expected a width and height above 0, found bbox {box}")
        if left >= shape[1] or top >= shape[0] or left + width <= 0 or top + height <= 0:
            raise ValueError(f"bbox {box} lies outside the image of {shape[0]}x{shape[1]} pixels")
        xyxy = np.array([[left, top, left + width, top + height]], dtype=np.float64)
        kinds: dict[str, Any] = {"ignore": np.array([crowd])}
        if is_number(area):
            kinds["area"] = np.array([area], dtype=np.float64)
        if "keypoints" in self.kinds:
            flat = entry.get("keypoints", [0.0] * (3 * self.count))
            kinds["keypoints"] = self._keypoints(flat, shape)[None]
        if self.kinds & {"polygons", "corners"}:
            found = entry.get("segmentation")
            outline = coco_polygon(found, shape) if found or not crowd else []
            if "polygons" in self.kinds:
                kinds["polygons"] = [outline]
            if "corners" in self.kinds:
                kinds["corners"] = _corners(outline or [box_corners(xyxy)[0]])[None]
        return Instances.from_boxes([self.classes[entry["category_id"]]], xyxy, **kinds)

    def _keypoints(self, flat: Any, shape: tuple[int, int]) -> np.ndarray:
        """Return (K, 3) of x, y, visibility by turns."""
        wanted = 3 * self.count
        listed = isinstance(flat, list) and len(flat) == wanted
        if not listed or not all(map(is_number, flat)):
            found = f"{len(flat)} entries" if isinstance(flat, list) else f"{flat!r:.80}"
            text = f"expected {wanted} numbers in keypoints (x, y, visibility for each)"
            raise ValueError(f"{text}, found {found}")
        points = np.array(flat, dtype=np.float64).reshape(-1, 3)
        for k, (x, y, flag) in enumerate(points.tolist()):
            if flag not in (0, 1, 2):
                raise ValueError(
                    f"expected the visibility of keypoint {k} as 0, 1 or 2, found {flag:g}"
                )
            shares = (x / shape[1], y / shape[0])
            if flag and not all(LOWEST <= share <= HIGHEST for share in shares):
                text = f"inside the image of {shape[0]}x{shape[1]} pixels (h x w)"
                raise ValueError(f"expected keypoint {k} {text}, found {x:g} {y:g}")
        return points


def _corners(outline: Polygon) -> np.ndarray:
    """Return the corners (4, 2) of the smallest rectangle around an outline."""
    corners = smallest_rectangle(np.concatenate(outline))
    if ring_area(corners) <= 1e-6:
        raise ValueError("expected an outline around an area, found all points on one line")
    return corners


def read_categories(file: Path) -> dict[int, str]:
    """Return category id -> name in rising order of ids, without parsing the annotations.

    Raises:
        DataError: if the file isn't COCO JSON or its categories can't be used.
    """
    found: Any = None
    with _mapped(file) as data:
        places = [match.end() for match in CATEGORIES.finditer(data)]
        if len(places) == 1:  # as a rule, they stand whole within a megabyte
            text = data[places[0] : places[0] + (1 << 20)].decode("utf-8", errors="ignore")
            with suppress(ValueError, RecursionError):
                found, _ = json.JSONDecoder().raw_decode(text)
    names: dict[int, str] = {}
    for entry in found or read_json(file)["categories"]:
        if not isinstance(entry, dict) or not is_whole(entry.get("id")) or "name" not in entry:
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
    below each of these a folder named like the end of the JSON's name (instances_NAME.json). File
    names may be absolute.

    Raises:
        DataError: if the first images are in none of them.
    """
    with _mapped(file) as data:
        found = (STRING.match(data, match.end()) for match in FILE_NAME.finditer(data))
        names = [json.loads(text.group()) for text in islice(filter(None, found), 8)]
    part, here, above = file.stem.rpartition("_")[2], file.parent, file.parent.parent
    bases = [here / "images", here, above / "images", above]
    for folder in [*bases, *(base / part for base in bases)]:
        if folder.is_dir() and any((folder / name).is_file() for name in names):
            return folder
    raise DataError(
        f"{file}: none of its first images ({', '.join(names[:2]) or 'it names none'}) is in "
        f"{', '.join(map(str, bases))}; name the folder by `images:` in the dataset's YAML"
    )


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


def read_json(file: Path) -> dict[str, Any]:
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
        found = content.get(key) if isinstance(content, dict) else content
        if not isinstance(found, list) or found is content:
            kind = type(found).__name__
            raise DataError(f"{file}: expected COCO JSON with a list {key!r}, found {kind}")
    checked: dict[str, Any] = content
    return checked
