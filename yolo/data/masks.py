# SPDX-License-Identifier: Apache-2.0
"""Masks of objects as rings, as pixels and as COCO's run lengths, and the ways between them.

Rings (`sample.Polygon`) are filled by the even-odd rule, a hole being a ring within a ring, or
part of the same ring over a bridge that is walked there and back. COCO's annotations differ: their
several parts are a union; `coco_polygon` makes rings of them that mean the same.

Pixel (i, j) has its middle at (j + 0.5, i + 0.5) and belongs to what holds its middle. Run lengths
go down the columns, one column after the other, and begin with those outside.

A label file may be a mask, too, `labels/x.png` in the place of `labels/x.txt`:
a PNG of the image's size with one channel of 8 or 16 bits, or a palette, whose colours don't count.
0 is the background; the pixels of any other value are one object, of class value // 1000: those of
the class 2 are 2000 to 2999, and 8 bits do for objects of the class 0 alone. Parts and holes are
kept to the pixel. (Instance files of Cityscapes are encoded so.)

Source: the run-length format and the rule by which it draws outlines are those of the COCO API,
https://github.com/cocodataset/cocoapi (common/maskApi).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from yolo.data.geometry import polygon_bounds, smallest_rectangle
from yolo.data.images import cv2
from yolo.data.keys import is_number
from yolo.data.labels import LabelledImage, LabelRules
from yolo.data.report import Problem
from yolo.data.sample import Instances, Polygon

_PIERS = 512  # points of a ring that bridges may start from

STEP = 1000
"""Values of a class."""

Size = tuple[int, int]
RLE = dict[str, Any]
"""{"size": [h, w], "counts": run lengths as a list, or packed as text or bytes}."""


def fill_polygons(
    polygons: Sequence[Polygon], size: Size, ratio: float = 1.0
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Fill instances, each within the smallest window of pixels that holds it.

    Args:
        polygons: rings in pixels; parts outside the canvas are cut off.
        size: (h, w) of the canvas to fill on.
        ratio: the rings' pixels per pixel of the canvas.

    Yields:
        For each instance the top row and left column of its window, and a mask (h', w') uint8 of 0
        and 1, which may have no pixel.
    """
    height, width = size
    rings = [ring for polygon in polygons for ring in polygon]
    none = [np.zeros((0, 2))]
    ends = [rings or none, [np.roll(ring, -1, 0) for ring in rings] or none]
    (x, y), (end_x, end_y) = (np.concatenate(points).T / ratio for points in ends)
    # From the upper to the lower end, so that there and back over a bridge are the same edge.
    turned = end_y < y
    x, end_x = np.where(turned, end_x, x), np.where(turned, x, end_x)
    y, end_y = np.where(turned, end_y, y), np.where(turned, y, end_y)
    # An edge crosses the middles of the rows first..last-1; there, everything right of it toggles.
    first, last = np.ceil(np.stack([y, end_y]) - 0.5).clip(0, height).astype(np.int64)
    crossed = last - first
    ended = np.cumsum(crossed)
    edge = np.repeat(np.arange(len(x)), crossed)
    row = np.arange(len(edge)) - (ended - crossed)[edge] + first[edge]
    rise = end_y - y
    slope = (end_x - x) / np.where(rise == 0, 1.0, rise)
    crossing = x[edge] + (row + 0.5 - y[edge]) * slope[edge]
    column = np.ceil(crossing - 0.5).clip(0, width).astype(np.int64)
    edges = np.cumsum([0] + [sum(map(len, polygon)) for polygon in polygons])
    bounds = np.concatenate([[0], ended])[edges].tolist()
    for start, stop in pairwise(bounds):
        yield _fill(row[start:stop], column[start:stop])


def _fill(row: np.ndarray, column: np.ndarray) -> tuple[int, int, np.ndarray]:
    """Fill what lies between the crossings of one instance, a pair at a time along each row."""
    if not len(row):
        return 0, 0, np.zeros((0, 0), np.uint8)
    top, left = int(row.min()), int(column.min())
    shape = int(row.max()) + 1 - top, int(column.max()) + 1 - left
    toggles = np.bincount((row - top) * shape[1] + column - left, minlength=shape[0] * shape[1])
    filled = np.cumsum(toggles.reshape(shape)[:, :-1], axis=1, dtype=np.uint8)
    return top, left, np.bitwise_and(filled, 1, out=filled)


def mask_rings(mask: np.ndarray) -> Polygon:
    """Trace the borders of a mask (h, w): filling the rings gives the same pixels back.

    Corners lie on the corners of pixels. Outer borders and holes are rings of their own; pixels
    that touch at a corner belong together.
    """
    rows, columns = np.flatnonzero(np.any(mask, 1)), np.flatnonzero(np.any(mask, 0))
    if not len(rows):
        return []
    window = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] != 0
    # OpenCV walks over the middles of pixels. With each pixel doubled, the even ones lie on the
    # left and upper sides and the odd ones on the right and lower sides of the border.
    doubled = window.view(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    traced = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[-2]
    rings, corner = [], np.array([columns[0], rows[0]])
    for contour in traced:
        ring = (contour.reshape(-1, 2) + 1) // 2
        ring = ring[(ring != np.roll(ring, 1, 0)).any(1)]
        if len(ring) > 2:
            rings.append((ring + corner).astype(np.float64))
    return rings


def joined_ring(polygon: Polygon) -> np.ndarray:
    """Join rings to one (P, 2) over bridges that are walked there and back and enclose nothing.

    A bridge leads from the longest ring to a near point of another. Memory grows with the points
    alone.
    """
    main, *others = sorted(polygon, key=len, reverse=True)
    step = -(-len(main) // _PIERS)
    piers, loops = main[::step], []
    for ring in others:
        # Not always the nearest pair, but found without a look at all pairs.
        i = int(((piers - ring[0]) ** 2).sum(1).argmin())
        j = int(((ring - piers[i]) ** 2).sum(1).argmin())
        i = int(((piers - ring[j]) ** 2).sum(1).argmin()) * step
        loops.append((i, np.concatenate([ring[j:], ring[: j + 1], main[i : i + 1]])))
    loops.sort(key=lambda loop: loop[0])
    pieces, start = [], 0
    for i, loop in loops:
        pieces += [main[start : i + 1], loop]
        start = i + 1
    return np.concatenate([*pieces, main[start:]])


def polygon_rle(polygon: Polygon, size: Size) -> RLE:
    """Return rings as packed run lengths on an image (h, w), by the rule that COCO scores with."""
    from faster_coco_eval import mask

    if not polygon:
        return encode_rle(np.zeros((0, 0), np.uint8), 0, 0, size)
    packed: RLE = mask.frPyObjects([joined_ring(polygon).ravel().tolist()], *size)[0]
    return packed


def encode_rle(window: np.ndarray, top: int, left: int, size: Size) -> RLE:
    """Return a mask as packed run lengths.

    Args:
        window: (h', w') of 0 and 1, or bool.
        top: row of the image where the window begins.
        left: column where it begins.
        size: (h, w) of the image; outside the window the mask is 0.
    """
    from faster_coco_eval import mask

    height, width = size
    strip = np.zeros((window.shape[1], height), np.int8)
    strip[:, top : top + window.shape[0]] = window.T
    turns = np.flatnonzero(np.diff(strip.ravel(), prepend=np.int8(0), append=np.int8(0)))
    turns = turns[turns < (width - left) * height] + left * height
    counts = np.diff(turns, prepend=0, append=height * width)
    plain = {"size": [height, width], "counts": counts.tolist()}
    packed: RLE = mask.frPyObjects(plain, height, width)
    return packed


def run_lengths(rle: RLE) -> np.ndarray:
    """Return the run lengths, int64, of packed or plain ones.

    Packed lengths are the differences to the one before the last, in groups of five bits, the
    lowest first; 32 says that more follow, and a character is the group plus 48.
    """
    counts = rle["counts"]
    if not isinstance(counts, str | bytes):
        return np.asarray(counts, dtype=np.int64)
    text = counts.encode("latin-1", "replace") if isinstance(counts, str) else counts
    groups = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((groups & 32) == 0)
    if not len(ends):
        return np.zeros(0, np.int64)
    groups, starts = groups[: ends[-1] + 1], np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    place = np.arange(len(groups)) - np.repeat(starts, sizes)
    values = np.add.reduceat((groups & 31) << np.minimum(5 * place, 60), starts)
    values -= np.where((groups[ends] & 16) != 0, 1 << np.minimum(5 * sizes, 62), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def decode_rle(rle: RLE) -> np.ndarray:
    """Return the mask (h, w) uint8 of 0 and 1 that run lengths stand for.

    Raises:
        ValueError: if they don't add up to the image.
    """
    height, width = rle["size"]
    counts, pixels = run_lengths(rle), height * width
    if ((counts < 0) | (counts > pixels)).any() or counts.sum() != pixels:
        text = f"expected run lengths that add up to {height} x {width} = {pixels} pixels"
        raise ValueError(f"{text}, found {counts.sum()}")
    values = (np.arange(len(counts)) & 1).astype(np.uint8)
    return np.repeat(values, counts).reshape(width, height).T


def coco_polygon(segmentation: Any, size: Size) -> Polygon:
    """Return the rings of a COCO annotation's `segmentation`.

    Parts that share no pixel stay as they are. Where some do, COCO means their union, and the rings
    trace its pixels, so that the even-odd rule gives the very mask that COCO scores with.

    Args:
        segmentation: outlines [x1, y1, ...], or run lengths.
        size: (h, w) of the image.

    Raises:
        ValueError: saying what was expected and what was found.
    """
    if isinstance(segmentation, dict):
        _check_rle(segmentation, size)
        traced = mask_rings(decode_rle(segmentation))
        if not traced:
            raise ValueError("expected a mask of at least one pixel, found run lengths of none")
        return traced
    listed = isinstance(segmentation, list) and segmentation
    if not listed or not all(map(_is_ring, segmentation)):
        text = "expected segmentation as polygons of at least 3 points each, or as run lengths"
        raise ValueError(f"{text}, found {segmentation!r:.80}")
    rings = [np.array(ring, dtype=np.float64).reshape(-1, 2) for ring in segmentation]
    if len(rings) == 1 or not _may_touch(rings):
        return rings
    from faster_coco_eval import mask

    parts = mask.frPyObjects([ring.ravel().tolist() for ring in rings], *size)
    union = mask.merge(parts)
    apart = int(mask.area(parts).sum()) == int(mask.area(union))
    return rings if apart else mask_rings(decode_rle(union))


def _check_rle(rle: RLE, image: Size) -> None:
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list) or tuple(size) != image:
        raise ValueError(f"expected run lengths of size {[*image]} (h, w), found {size!r:.80}")
    listed = isinstance(counts, list) and all(type(n) is int and 0 <= n < 2**63 for n in counts)
    if not listed and not isinstance(counts, str):
        raise ValueError(f"expected run lengths as text or numbers, found {counts!r:.80}")


def _is_ring(ring: Any) -> bool:
    listed = isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0
    return listed and all(map(is_number, ring))


def _may_touch(rings: Polygon) -> bool:
    """Tell whether the bounds of any two rings come within a pixel of each other."""
    low = np.array([ring.min(0) for ring in rings]) - 1.0
    high = np.array([ring.max(0) for ring in rings])
    both = ((low[:, None] < high[None]) & (low[None] < high[:, None])).all(2)
    return bool(both.sum() > len(rings))


def read_mask_labels(
    file: str, image: LabelledImage, kinds: frozenset[str], rules: LabelRules
) -> list[Problem]:
    """Fill in the objects of an image from its mask file.

    Args:
        file: the PNG.
        image: its instances are set.
        kinds: of labels that are wanted.
        rules: classes of the dataset.
    """
    try:
        with Image.open(Path(file)) as picture:
            pixels = np.asarray(picture)
    except Exception as error:  # Pillow raises nearly anything on mangled bytes
        return [Problem(file, 0, f"the mask can't be read: {error}")]
    reason = ""
    if pixels.shape != image.shape or pixels.dtype.kind not in "iu":
        reason = (
            f"expected a mask of whole numbers, {image.shape[0]}x{image.shape[1]} pixels (h x w) "
            f"like the image, found {pixels.dtype} of shape {pixels.shape}"
        )
    elif "keypoints" in kinds:
        reason = "expected a text file with keypoints, found a mask, which has none"
    if reason:
        return [Problem(file, 0, reason)]
    values = np.unique(pixels).astype(np.int64)
    values = values[values != 0]
    known = rules.known(values // STEP)
    polygons = [mask_rings(pixels == value) for value in values[known]]
    image.instances = Instances.from_boxes(
        values[known] // STEP,
        polygon_bounds(polygons, np.zeros((len(polygons), 4))),
        area=filled_areas(polygons, image.shape),
        polygons=polygons if "polygons" in kinds else None,
        corners=surrounded(polygons) if "corners" in kinds else None,
    )
    text = f"expected values below {rules.num_classes} * {STEP} (class * {STEP} + number)"
    return [Problem(file, 0, f"{text}, found {value}") for value in values[~known]]


def surrounded(polygons: list[Polygon]) -> np.ndarray:
    """Return the corners (N, 4, 2) of the smallest rotated rectangles around outlines."""
    found = [smallest_rectangle(np.concatenate(rings)) for rings in polygons]
    return np.array(found).reshape(-1, 4, 2)


def filled_areas(polygons: list[Polygon], shape: tuple[int, int]) -> np.ndarray:
    """Return how many pixels (N,) of an image (h, w) outlines fill."""
    windows = [window for _, _, window in fill_polygons(polygons, shape)]
    return np.array([float(window.sum()) for window in windows])
