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
from yolo.data.masks import filled_areas, mask_rings, surrounded
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
        self.name, item = name, as_mapping(item)
        if not isinstance(item, Mapping):
            text = f"{name}: expected a dict or a dataclass with image, classes, boxes, ..."
            raise DataError(f"{text}, found {type(item).__name__}")
        for key in item:
            if key not in FIELDS:
                text = f"{name}: expected the fields {', '.join(FIELDS)}, found {key!r}."
                raise DataError(f"{text} {nearest(key, FIELDS)}".rstrip())
        self.values = {key: value for key, value in item.items() if value is not None}

    def fault(self, field: str, text: str, found: Any) -> DataError:
        """Return an error about a field."""
        return DataError(f"{self.name}: {field}: expected {text}, found {found}")

    def image(self, channels: int) -> np.ndarray:
        """Return the pixels (H, W, channels); a view where the item's array fits already."""
        image = self.values.get("image")
        if not isinstance(image, np.ndarray) and not hasattr(image, "getbands"):
            found = "nothing" if image is None else type(image).__name__
            raise self.fault("image", "an array (h, w, channels) uint8 BGR or a PIL picture", found)
        try:
            if not isinstance(image, np.ndarray):
                return from_pil(image, channels)
            return fit_channels(check_image(image, copy=False), channels)[:]
        except DataError as error:
            raise DataError(f"{self.name}: image: {error}") from None

    def numbers(self, field: str, given: Any, shape: tuple[int | str, ...]) -> np.ndarray:
        """Return what a field holds as finite float64; letters in `shape` stand for any extent."""
        text = f"({', '.join(map(str, shape))})"
        try:
            found = np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise self.fault(field, f"numbers of shape {text}", error) from None
        pairs = zip(shape, found.shape, strict=False)
        if found.ndim != len(shape) or any(n != m for n, m in pairs if not isinstance(n, str)):
            raise self.fault(field, f"shape {text}", found.shape)
        if not np.isfinite(found).all():
            raise self.fault(field, "finite numbers", "nan or infinity")
        return found

    def instances(
        self, shape: tuple[int, int], label_format: LabelFormat, rules: LabelRules
    ) -> Instances:
        """Return the objects with the kinds of label that are wanted."""
        kinds = label_format.kinds
        if CLASSES in kinds:
            given = self.needed("image_class", "a class id")
            if np.ndim(given):
                raise self.fault("image_class", "one class id", f"{given!r:.60}")
            return whole_image(int(self.class_ids("image_class", [given], rules)[0]), shape)
        classes = self.class_ids("classes", self.values.get("classes", ()), rules)
        if not len(classes):
            for field in ("boxes", "masks", "keypoints", "corners"):
                if count := _count(self.values.get(field, ())):
                    raise self.fault("classes", f"{count}, one for each of {field}", "none")
            return Instances.empty()
        found: dict[str, Any] = {}
        if "masks" in self.values:
            found["polygons"] = self.polygons(len(classes), shape)
        if "corners" in self.values:
            found["corners"] = self.corners(len(classes))
        elif "polygons" in found and "corners" in kinds:
            found["corners"] = surrounded(found["polygons"])
        if "keypoints" in self.values and "keypoints" in kinds:
            found["keypoints"] = self.keypoints(len(classes), rules)
        for kind, field in NEEDED.items():
            if kind in kinds and kind not in found:
                self.needed(field, f"{field} of its {len(classes)} object(s)")
        boxes = self.boxes(len(classes), shape, found)
        kept = {kind: found[kind] for kind in kinds & found.keys()}
        instances = Instances.from_boxes(classes, boxes, **kept)
        # As of labels in files, whose format may know better than the box.
        instances.area *= getattr(label_format, "area_share", 1.0)
        if "polygons" in found:
            instances.area = filled_areas(found["polygons"], shape)
        return instances

    def needed(self, field: str, what: str) -> Any:
        """Return a field that the task learns from."""
        if field not in self.values:
            raise self.fault(field, f"{what}, which the task needs", ", ".join(self.values))
        return self.values[field]

    def class_ids(self, field: str, given: Any, rules: LabelRules) -> np.ndarray:
        """Return class ids (N,) int64."""
        ids = self.numbers(field, given, ("N",))
        if (ids != np.floor(ids)).any():
            raise self.fault(field, "whole numbers", f"{ids.tolist()!r:.80}")
        if not rules.known(ids).all() and rules.num_classes is not None:
            text = f"ids from 0 to {rules.num_classes - 1}, as `names` has them"
            raise self.fault(field, text, f"{ids.astype(int).tolist()!r:.80}")
        return ids.astype(np.int64)

    def boxes(self, count: int, shape: tuple[int, int], found: Mapping[str, Any]) -> np.ndarray:
        """Return boxes_xyxy (N, 4) as given, or around masks or corners."""
        if "boxes" not in self.values:
            outlines = found.get("polygons") or [[ring] for ring in found.get("corners", ())]
            if not outlines:
                raise self.fault("boxes", f"{count}, one for each of classes", "none")
            return polygon_bounds(outlines, np.zeros((count, 4)))
        boxes = self.numbers("boxes", self.values["boxes"], (count, 4))
        flat = (boxes[:, 2:] <= boxes[:, :2]).any(1)
        outside = (boxes[:, :2] >= shape[::-1]).any(1) | (boxes[:, 2:] <= 0).any(1)
        self.refuse("boxes", boxes, flat, "xyxy with x0 < x1 and y0 < y1")
        inside = f"a box in the image of {shape[0]}x{shape[1]} pixels (h x w)"
        self.refuse("boxes", boxes, outside, inside)
        if boxes.max() <= 1.0:
            raise self.fault("boxes", "pixels", "shares; multiply by width and height")
        return boxes

    def refuse(self, field: str, values: np.ndarray, bad: Any, expected: str) -> None:
        """Raise an error about the first bad one of N values."""
        if bad.any():
            row = int(bad.argmax())
            raise self.fault(f"{field}[{row}]", expected, values[row].tolist())

    def keypoints(self, count: int, rules: LabelRules) -> np.ndarray:
        """Return (N, K, 3) with visibility."""
        assert rules.kpt_shape is not None
        shape = (count, rules.kpt_shape[0], "2 or 3")
        points = self.numbers("keypoints", self.values["keypoints"], shape)
        if points.shape[2] not in (2, 3):
            raise self.fault(
                "keypoints", "x, y and perhaps visibility", f"{points.shape[2]} numbers"
            )
        if points.shape[2] == 2:
            points = np.concatenate([points, np.full((*points.shape[:2], 1), 2.0)], axis=2)
        if not np.isin(points[..., 2], (0, 1, 2)).all():
            raise self.fault("keypoints", "visibility 0, 1 or 2", "other numbers")
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
            raise self.fault("masks", f"{count}, one for each of classes", _count(masks))
        return [self._polygon(mask, f"masks[{row}]", shape) for row, mask in enumerate(masks)]

    def _polygon(self, mask: Any, field: str, shape: tuple[int, int]) -> Polygon:
        if not isinstance(mask, list | tuple):
            mask = np.asarray(mask)
            if mask.dtype == bool or mask.shape == shape:
                if mask.shape != shape:
                    raise self.fault(field, f"the image's shape {shape}", mask.shape)
                if not mask.any():
                    raise self.fault(field, "an object", "an empty mask")
                return mask_rings(mask)
        if not len(mask):
            raise self.fault(field, "an object", "no outline")
        rings = [mask] if np.ndim(mask[0]) == 1 else mask
        return [self._ring(ring, field) for ring in rings]

    def _ring(self, ring: Any, field: str) -> np.ndarray:
        try:
            points = np.asarray(ring, dtype=np.float64)
        except (TypeError, ValueError):
            points = np.zeros(0)
        fits = points.ndim == 2 and points.shape[1] == 2 and len(points) >= 3
        if not fits or not np.isfinite(points).all() or (np.ptp(points, axis=0) <= 0).any():
            text = "a bool mask (H, W), or outlines (P, 2) of at least 3 points with an extent"
            raise self.fault(field, f"{text} in both directions", f"{ring!r:.60}")
        return points


def _count(values: Any) -> int:
    return len(values) if hasattr(values, "__len__") else 1
