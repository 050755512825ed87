# SPDX-License-Identifier: Apache-2.0
"""Datasets of Python objects: `train(data={"train": items, "val": items, "names": [...]})`.

A split is anything with `len()` and `[i]`: a list, a torch-style dataset. An item is a dict or a
dataclass with these fields, all in pixels of its image, all optional but the image; N objects:

* image: (H, W), (H, W, 1), (H, W, 3) BGR or (H, W, 4), uint8 or uint16, or a PIL picture;
* classes: N class ids;
* boxes: (N, 4) xyxy; where they are left out, the bounds of masks or corners;
* masks: (N, H, W) bool; or a list with, for each object, an (H, W) bool mask, an outline (P, 2), or
  a list of outlines, which are parts and holes (even-odd rule);
* keypoints: (N, K, 2), or (N, K, 3) with visibility 0, 1 or 2; a negative coordinate is absent;
* corners: (N, 4, 2) of oriented boxes; where they are left out, around the masks;
* image_class: class id of the whole image.

Every item is asked for once at the start, for its size and labels; its image again whenever it is
needed, and it has to be the same then. Images are only held as `cache` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolo.data.arrays import check_image, fit_channels, from_pil
from yolo.data.class_folders import CLASSES, whole_image
from yolo.data.geometry import polygon_bounds, ring_area
from yolo.data.keys import as_mapping
from yolo.data.labels import LabelFormat, LabelledImage, LabelRules
from yolo.data.mask_files import filled_areas, surrounded
from yolo.data.masks import mask_rings
from yolo.data.report import ScanReport
from yolo.data.sample import Instances, Polygon
from yolo.data.scan import evenly_spaced
from yolo.errors import DataError, nearest

FIELDS = ("image", "classes", "boxes", "masks", "keypoints", "corners", "image_class")
NEEDED = {"polygons": "masks", "keypoints": "keypoints", "corners": "corners"}
"""Kind of label -> the field of an item that it comes from."""


@dataclass(slots=True)
class ObjectSource:
    """A split of Python objects, ready to be scanned.

    Attributes:
        items: the split.
        name: what items are called, followed by their numbers.
        label_format: which kinds of label to keep.
        rules: classes and keypoints of the dataset.
        channels: of the images.
        fraction: share of the items to use.
    """

    items: Sequence[Any]
    name: str
    label_format: LabelFormat
    rules: LabelRules
    channels: int = 3
    fraction: float = 1.0

    def fingerprint(self) -> None:
        """Return None: objects leave nothing in a cache."""

    def scan(self, report: ScanReport, workers: int) -> Iterator[LabelledImage]:
        """Read all items, one after the other.

        Raises:
            DataError: naming the first bad item, and its field.
        """
        for number in evenly_spaced(len(self.items), self.fraction).tolist():
            reader = _Item(self.items[number], f"{self.name}[{number}]")
            image = reader.image(self.channels)
            shape = (image.shape[0], image.shape[1])
            instances = reader.instances(shape, self.label_format, self.rules)
            yield LabelledImage(reader.name, shape, instances, item=(self.items, number))


def item_image(items: Sequence[Any], number: int, name: str, channels: int) -> np.ndarray:
    """Return the image of an item as `images.read_image` returns one from a file.

    Raises:
        DataError: if it can't be used.
    """
    return _Item(items[number], name).image(channels)


class _Item:
    """One item, checked field by field."""

    def __init__(self, item: Any, name: str) -> None:
        self.name = name
        item = as_mapping(item)
        if not isinstance(item, Mapping):
            raise DataError(
                f"{name}: expected a dict or a dataclass with image, classes, boxes, ..., found "
                f"{type(item).__name__}"
            )
        for key in item:
            if key not in FIELDS:
                raise DataError(
                    f"{name}: expected the fields {', '.join(FIELDS)}, found {key!r}. "
                    f"{nearest(key, FIELDS)}".rstrip()
                )
        self.values = {key: value for key, value in item.items() if value is not None}

    def image(self, channels: int) -> np.ndarray:
        """Return the pixels (H, W, channels); a view where the item's array fits already."""
        image = self.values.get("image")
        try:
            if hasattr(image, "getbands"):
                return from_pil(image, channels)
            if not isinstance(image, np.ndarray):
                raise DataError(
                    "expected an array (h, w, channels) uint8 BGR or a PIL picture, found "
                    f"{'nothing' if image is None else type(image).__name__}"
                )
            return fit_channels(check_image(image, copy=False), channels)[:]
        except DataError as error:
            raise self.fault("image", str(error)) from None

    def fault(self, field: str, reason: str) -> DataError:
        """Return an error about a field."""
        return DataError(f"{self.name}: {field}: {reason}")

    def numbers(self, field: str, given: Any, shape: tuple[int | str, ...]) -> np.ndarray:
        """Return what a field holds as finite float64; letters in `shape` stand for any extent."""
        try:
            found = np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise self.fault(field, f"expected numbers of shape {_text(shape)}: {error}") from None
        fits = found.ndim == len(shape) and all(
            isinstance(n, str) or n == m for n, m in zip(shape, found.shape, strict=True)
        )
        if not fits:
            raise self.fault(field, f"expected shape {_text(shape)}, found {_text(found.shape)}")
        if not np.isfinite(found).all():
            raise self.fault(field, "expected finite numbers, found nan or infinity")
        return found

    def instances(
        self, shape: tuple[int, int], label_format: LabelFormat, rules: LabelRules
    ) -> Instances:
        """Return the objects with the kinds of label that are wanted."""
        kinds = label_format.kinds
        if CLASSES in kinds:
            return whole_image(self.image_class(rules), shape)
        classes = self.class_ids("classes", self.values.get("classes", ()), rules)
        count = len(classes)
        if not count:
            self.refuse_objects()
            return Instances.empty()
        found: dict[str, Any] = {}
        if "masks" in self.values:
            found["polygons"] = self.polygons(count, shape)
        if "corners" in self.values:
            found["corners"] = self.corners(count)
        elif "polygons" in found and "corners" in kinds:
            found["corners"] = surrounded(found["polygons"])
        if "keypoints" in self.values and "keypoints" in kinds:
            found["keypoints"] = self.keypoints(count, rules)
        for kind, field in NEEDED.items():
            if kind in kinds and kind not in found:
                raise self.needed(field, f"{field} of its {count} object(s)")
        boxes = self.boxes(count, shape, found)
        kept = {kind: found[kind] for kind in kinds & found.keys()}
        instances = Instances.from_boxes(classes, boxes, **kept)
        # As of labels in files, whose format may know better than the box.
        instances.area *= getattr(label_format, "area_share", 1.0)
        if "polygons" in found:
            instances.area = filled_areas(found["polygons"], shape)
        return instances

    def needed(self, field: str, what: str) -> DataError:
        """Return the error about a field that the task learns and that isn't there."""
        found = ", ".join(self.values)
        return self.fault(field, f"expected {what}, which the task needs, found {found}")

    def one_each(self, field: str, count: int, others: str, found: int | str = "none") -> DataError:
        """Return the error about a field of another length than `others`."""
        return self.fault(field, f"expected {count}, one for each of {others}, found {found}")

    def refuse_objects(self) -> None:
        """Make sure that an item without classes has no objects."""
        for field in ("boxes", "masks", "keypoints", "corners"):
            if count := _count(self.values.get(field, ())):
                raise self.one_each("classes", count, field)

    def image_class(self, rules: LabelRules) -> int:
        """Return the class id of the whole image."""
        if "image_class" not in self.values:
            raise self.needed("image_class", "a class id")
        value = self.values["image_class"]
        if np.ndim(value):
            raise self.fault("image_class", f"expected one class id, found {value!r:.60}")
        return int(self.class_ids("image_class", [value], rules)[0])

    def class_ids(self, field: str, given: Any, rules: LabelRules) -> np.ndarray:
        """Return class ids (N,) int64."""
        ids = self.numbers(field, given, ("N",))
        if (ids != np.floor(ids)).any():
            raise self.fault(field, f"expected whole numbers, found {ids.tolist()!r:.80}")
        if rules.num_classes is not None and not rules.known(ids).all():
            text = f"expected ids from 0 to {rules.num_classes - 1}, as `names` has them"
            raise self.fault(field, f"{text}, found {ids.astype(int).tolist()!r:.80}")
        return ids.astype(np.int64)

    def boxes(self, count: int, shape: tuple[int, int], found: Mapping[str, Any]) -> np.ndarray:
        """Return boxes_xyxy (N, 4) as given, or around masks or corners."""
        if "boxes" not in self.values:
            if "polygons" in found:
                return polygon_bounds(found["polygons"], np.zeros((count, 4)))
            if "corners" in found:
                return np.concatenate([found["corners"].min(1), found["corners"].max(1)], axis=1)
            raise self.one_each("boxes", count, "classes")
        boxes = self.numbers("boxes", self.values["boxes"], (count, 4))
        flat = (boxes[:, 2:] <= boxes[:, :2]).any(1)
        outside = (boxes[:, :2] >= shape[::-1]).any(1) | (boxes[:, 2:] <= 0).any(1)
        self.refuse("boxes", boxes, flat, "xyxy with x0 < x1 and y0 < y1")
        inside = f"a box in the image of {shape[0]}x{shape[1]} pixels (h x w)"
        self.refuse("boxes", boxes, outside, inside)
        if boxes.max() <= 1.0:
            raise self.fault("boxes", "expected pixels, found shares; multiply by width and height")
        return boxes

    def refuse(self, field: str, values: np.ndarray, bad: Any, expected: str) -> None:
        """Raise an error about the first bad one of N values."""
        if bad.any():
            row = int(bad.argmax())
            found = values[row].tolist()
            raise self.fault(f"{field}[{row}]", f"expected {expected}, found {found}")

    def keypoints(self, count: int, rules: LabelRules) -> np.ndarray:
        """Return (N, K, 3) with visibility."""
        assert rules.kpt_shape is not None
        points = self.numbers(
            "keypoints", self.values["keypoints"], (count, rules.kpt_shape[0], "2 or 3")
        )
        if points.shape[2] not in (2, 3):
            reason = f"expected x, y and perhaps visibility, found {points.shape[2]} numbers"
            raise self.fault("keypoints", reason)
        if points.shape[2] == 2:
            points = np.concatenate([points, np.full((*points.shape[:2], 1), 2.0)], axis=2)
        if not np.isin(points[..., 2], (0, 1, 2)).all():
            raise self.fault("keypoints", "expected visibility 0, 1 or 2, found other numbers")
        points[(points[..., :2] < 0).any(2), 2] = 0.0
        return points

    def corners(self, count: int) -> np.ndarray:
        """Return (N, 4, 2) corners of boxes with an area."""
        corners = self.numbers("corners", self.values["corners"], (count, 4, 2))
        flat = np.array([ring_area(ring) < 1e-6 for ring in corners])
        self.refuse("corners", corners, flat, "a box with an area")
        return corners

    def polygons(self, count: int, shape: tuple[int, int]) -> list[Polygon]:
        """Return N lists of rings."""
        masks = self.values["masks"]
        if _count(masks) != count:
            raise self.one_each("masks", count, "classes", _count(masks))
        return [self._polygon(mask, f"masks[{row}]", shape) for row, mask in enumerate(masks)]

    def _polygon(self, mask: Any, field: str, shape: tuple[int, int]) -> Polygon:
        if not isinstance(mask, list | tuple):
            mask = np.asarray(mask)
            if mask.dtype == bool or mask.shape == shape:
                if mask.shape != shape:
                    reason = f"the image's shape {_text(shape)}, found {_text(mask.shape)}"
                    raise self.fault(field, f"expected {reason}")
                rings = mask_rings(mask)
                if not rings:
                    raise self.fault(field, "expected an object, found an empty mask")
                return rings
        flat = len(mask) and np.ndim(mask[0]) == 1
        rings = [self._ring(ring, field) for ring in ([mask] if flat else mask)]
        if not rings:
            raise self.fault(field, "expected an object, found no outline")
        return rings

    def _ring(self, ring: Any, field: str) -> np.ndarray:
        try:
            points = np.asarray(ring, dtype=np.float64)
        except (TypeError, ValueError):
            points = np.zeros(0)
        fits = points.ndim == 2 and points.shape[1] == 2 and len(points) >= 3
        if not fits or not np.isfinite(points).all() or (np.ptp(points, axis=0) <= 0).any():
            raise self.fault(
                field, "expected a bool mask (H, W), or outlines (P, 2) of at least 3 points with "
                f"an extent in both directions, found {ring!r:.60}"
            )  # fmt: skip
        return points


def _count(values: Any) -> int:
    return len(values) if hasattr(values, "__len__") else 1


def _text(shape: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
