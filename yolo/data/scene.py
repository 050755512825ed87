# SPDX-License-Identifier: Apache-2.0
"""Drawn scenes whose labels of every kind are known exactly.

A scene shows a few figures (arrow, drop, magnet, mark, ring) on a textured ground with clutter.
Each figure is mirror-symmetric about its heading and differs front from back, so its heading, its
oriented box and its four keypoints are well defined; colour and texture say nothing about the
class. The labels are amodal, as the figures are before others cover them:

* polygons: the outline; a ring has a hole, a mark has two parts (even-odd rule);
* boxes: tight around the outline;
* corners: the box around the outline along the heading: front-left, front-right, back-right,
  back-left, which is clockwise on the screen;
* keypoints: nose and tail, the foremost and rearmost points on the axis, and left and right, the
  widest points seen along the heading; visibility 1 where another figure covers the point, else 2;
* image class: the class of the largest figure, whose oriented box is at least `DOMINANCE` times as
  large, side by side, as the next.

Whole figures lie inside the image, and a place that would hide more than `MAX_HIDDEN` of a figure
(`MAX_HIDDEN_LARGEST` of the largest) is drawn anew, so everything that can be seen is labelled.

Shape letters: H W image, N figures, P points of a ring.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from yolo.data.figures import FIGURES, NAMES, Rng
from yolo.data.geometry import polygon_bounds, ring_area
from yolo.data.images import cv2
from yolo.data.sample import Instances, Polygon

SPLITS = {"train": 0, "val": 1, "test": 2}
DOMINANCE = 1.35
MAX_HIDDEN = 0.55
MAX_HIDDEN_LARGEST = 0.3
SMALLEST, LARGEST = 0.12, 0.46  # root of the oriented box's area over the image's short side
ASPECTS = ((0.75, 1.0), (1.0, 0.75), (0.9, 0.9))
_FINE = 640  # pixels of the longer side that a figure's mask is drawn at before it is reduced


@dataclass(slots=True)
class Scene:
    """One drawn image with all its labels.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        instances: the figures in drawing order, with polygons, keypoints and corners.
        image_class: class id of the largest figure.
        masks: (N, H, W) bool, each figure's pixels before others cover it.
        hidden: (N,) share of each figure's pixels that others cover, 0..1.
    """

    image: np.ndarray
    instances: Instances
    image_class: int
    masks: np.ndarray
    hidden: np.ndarray


def scene(
    seed: int, split: str, index: int, size: int | tuple[int, int] = 320, max_figures: int = 7
) -> Scene:
    """Draw one scene; a function of its arguments alone.

    Args:
        seed: of the whole set, >= 0.
        split: "train", "val" or "test"; the three share no scene.
        index: place in the split, >= 0.
        size: the longer side in pixels (the aspect is drawn: 4:3, 3:4 or square), or (h, w).
        max_figures: the number of figures is drawn from 1 to this.
    """
    if max_figures < 1:
        raise ValueError(f"max_figures must be at least 1, got {max_figures}")
    rng = np.random.default_rng([seed, SPLITS[split], index])
    h, w = _image_size(rng, size)
    canvas, palette = _ground(rng, h, w)
    canvas = _clutter(rng, canvas, palette, strokes=6, blobs=5)
    placed = _place(rng, h, w, max_figures)
    for piece in placed:
        _paint(rng, canvas, piece, palette)
    canvas = _clutter(rng, canvas, palette, strokes=2, blobs=0)
    return _labelled(_expose(rng, canvas), placed)


@dataclass(slots=True)
class _Piece:
    """A figure in its place: labels in pixels, and its soft mask within a window."""

    class_id: int
    size: float
    rings: Polygon
    keypoints: np.ndarray
    corners: np.ndarray
    window: tuple[slice, slice]
    alpha: np.ndarray
    mask: np.ndarray
    visible: np.ndarray


def _image_size(rng: Rng, size: int | tuple[int, int]) -> tuple[int, int]:
    if not isinstance(size, tuple):
        tall, wide = ASPECTS[rng.integers(len(ASPECTS))]
        size = round(size * tall), round(size * wide)
    h, w = size
    if min(h, w) < 64:
        raise ValueError(f"a scene needs sides of at least 64 pixels, got {h} x {w}")
    return h, w


def _place(rng: Rng, h: int, w: int, max_figures: int) -> list[_Piece]:
    """Lay out the figures, later ones above earlier ones."""
    short = min(h, w)
    largest = rng.uniform(0.62, 1.0) * LARGEST * short
    count = int(rng.integers(max_figures))
    rest = np.exp(rng.uniform(np.log(SMALLEST * short), np.log(largest / DOMINANCE), count))
    sizes = np.append(rest, largest)
    placed: list[_Piece] = []
    for size in rng.permutation(sizes):
        class_id = int(rng.integers(len(FIGURES)))
        for _ in range(12):
            piece = _piece(rng, h, w, class_id, float(size), placed)
            if _may_cover(piece, placed, largest):
                break
            if size == largest:  # the image class depends on it: make room
                placed = [p for p in placed if _may_cover(piece, [p], largest)]
                break
        else:
            continue
        placed.append(piece)
        covered = np.zeros((h, w), dtype=bool)
        for above in reversed(placed):
            above.visible = above.mask & ~covered
            covered |= above.mask
    return placed


def _may_cover(piece: _Piece, placed: list[_Piece], largest: float) -> bool:
    """Say whether every figure below stays visible enough under `piece`."""

    def enough(below: _Piece) -> bool:
        limit = MAX_HIDDEN_LARGEST if below.size == largest else MAX_HIDDEN
        left = np.count_nonzero(below.visible & ~piece.mask)
        return bool(left >= (1 - limit) * np.count_nonzero(below.mask))

    return all(map(enough, placed))


def _piece(rng: Rng, h: int, w: int, class_id: int, size: float, placed: list[_Piece]) -> _Piece:
    """Put a figure of a class at a random angle and place, often close to another."""
    rings, keypoints = FIGURES[NAMES[class_id]](rng)
    outline = np.concatenate(rings)
    low, high = outline.min(axis=0), outline.max(axis=0)
    (x0, y0), (x1, y1) = low, high
    corners = np.array([(x1, y0), (x1, y1), (x0, y1), (x0, y0)])
    angle = rng.uniform(0, 2 * math.pi)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    scale = size / math.sqrt(float(np.prod(high - low)))
    half = np.abs(corners @ turn.T).max(axis=0) * scale + 1.0  # a pixel's margin
    room = np.array([w, h]) - half  # beyond `half`: LARGEST leaves room at every angle
    centre = rng.uniform(half, room)
    if placed and rng.random() < 0.4:
        near = placed[rng.integers(len(placed))].corners.mean(axis=0)
        centre = np.clip(near + rng.normal(0, 0.8 * size, 2), half, room)

    def put(points: np.ndarray) -> np.ndarray:
        return np.asarray(points @ turn.T * scale + centre)

    rings = [put(ring) for ring in rings]
    window, alpha = _rasterise(rings, h, w)
    mask = np.zeros((h, w), dtype=bool)
    mask[window] = alpha >= 0.5
    points = put(keypoints), put(corners)
    return _Piece(class_id, size, rings, *points, window, alpha, mask, mask.copy())


def _rasterise(rings: Polygon, h: int, w: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """Return the window around the rings and their coverage of its pixels, 0..1 float32."""
    outline = np.concatenate(rings)
    x0, y0 = np.floor(outline.min(axis=0)).astype(int)
    x1, y1 = np.ceil(outline.max(axis=0)).astype(int)
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, w), min(y1, h)
    k = min(max(_FINE // max(y1 - y0, x1 - x0), 4), 16)
    fine = np.zeros(((y1 - y0) * k, (x1 - x0) * k), dtype=np.uint8)
    # OpenCV's integer coordinates are pixel centres, ours corners: hence the half pixel.
    points = [np.rint(((r - (x0, y0)) * k - 0.5) * 256).astype(np.int32) for r in rings]
    cv2.fillPoly(fine, points, 255, shift=8)
    cv2.polylines(fine, points, True, 128, shift=8)  # edge pixels, filled whole, are half in
    alpha = cv2.resize(fine, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    return (slice(y0, y1), slice(x0, x1)), alpha.astype(np.float32) / 255


# Painting: textures are a scalar field in 0..1 that blends two colours.


def _field(rng: Rng, h: int, w: int) -> np.ndarray:
    """Return a random texture, (h, w) float32 in 0..1: plain, gradient, stripes, checks, blobs."""
    kind = rng.integers(6)
    if kind == 0:
        return np.zeros((h, w), dtype=np.float32)
    if kind in (1, 2):  # noise at a coarse or a fine grain
        cells = rng.integers(3, 9) if kind == 1 else max(h, w) // int(rng.integers(2, 7)) + 2
        coarse = rng.random((int(cells), int(cells)), dtype=np.float32)
        return cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    angle = rng.uniform(0, math.pi)
    x = np.arange(w, dtype=np.float32)[None, :]
    y = np.arange(h, dtype=np.float32)[:, None]
    along = x * math.cos(angle) + y * math.sin(angle)
    if kind == 3:
        return np.asarray((along - along.min()) / (np.ptp(along) + 1e-6))
    wave = 2 * math.pi / rng.uniform(6, 40)
    field = np.sin(along * wave + rng.uniform(0, 2 * math.pi))
    if kind == 5:
        field *= np.sin((y * math.cos(angle) - x * math.sin(angle)) * wave)
    return np.asarray(0.5 + 0.5 * rng.uniform(1, 6) * field).clip(0, 1)


def _texture(rng: Rng, h: int, w: int, colours: np.ndarray) -> np.ndarray:
    """Blend two BGR colours, (2, 3), by a random field into (h, w, 3) float32."""
    first, second = colours.astype(np.float32)
    return np.asarray(first + _field(rng, h, w)[..., None] * (second - first))


def _near(rng: Rng, colour: np.ndarray, distance: float) -> np.ndarray:
    """Return a BGR colour about `distance` away from `colour`."""
    step = rng.normal(size=3)
    step *= distance / np.linalg.norm(step)
    return np.asarray(colour + step).clip(0, 255)


def _away(rng: Rng, palette: np.ndarray, distance: float) -> np.ndarray:
    """Return a random BGR colour at least `distance` from all of `palette`, else the farthest."""
    choices = rng.uniform(0, 255, (24, 3))
    gaps = np.linalg.norm(choices[:, None] - palette[None], axis=2).min(axis=1)
    enough = gaps >= distance
    return np.asarray(choices[enough.argmax() if enough.any() else gaps.argmax()])


def _ground(rng: Rng, h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """Paint the ground; return it as (h, w, 3) float32 with its two colours, (2, 3)."""
    base = rng.uniform(20, 235, 3)
    palette = np.stack([base, _near(rng, base, rng.uniform(15, 80))])
    canvas = _texture(rng, h, w, palette)
    canvas += (_field(rng, h, w)[..., None] - 0.5) * rng.uniform(0, 30)
    return canvas, palette


def _clutter(
    rng: Rng, canvas: np.ndarray, palette: np.ndarray, strokes: int, blobs: int
) -> np.ndarray:
    """Return the canvas with up to so many unlabelled blobs and strokes."""
    h, w = canvas.shape[:2]
    canvas = np.clip(canvas, 0, 255).astype(np.uint8)  # OpenCV smooths edges of 8-bit images only
    extent = np.array([w, h])
    for _ in range(rng.integers(blobs + 1)):
        centre = rng.uniform(0, 1, 2) * extent
        axes = rng.uniform(0.02, 0.15, 2) * min(h, w)
        colour = _near(rng, palette[rng.integers(2)], rng.uniform(20, 90))
        box = (centre.tolist(), (2 * axes).tolist(), float(rng.uniform(0, 180)))
        cv2.ellipse(canvas, box, colour.tolist(), -1, cv2.LINE_AA)
    for _ in range(rng.integers(strokes + 1)):
        start, bend, stop = rng.uniform(-0.1, 1.1, (3, 2)) * extent
        t = np.linspace(0, 1, 12)[:, None]
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * stop
        colour = _near(rng, palette[rng.integers(2)], rng.uniform(30, 150))
        thickness = int(rng.integers(1, 4)) if blobs else 1
        points = [np.rint(curve * 16).astype(np.int32)]
        cv2.polylines(canvas, points, False, colour.tolist(), thickness, cv2.LINE_AA, 4)
    return canvas.astype(np.float32)


def _paint(rng: Rng, canvas: np.ndarray, piece: _Piece, palette: np.ndarray) -> None:
    """Paint a figure in a texture that stands out from the ground, often with a dark rim."""
    colour = _away(rng, palette, 110)
    colours = np.stack([colour, _near(rng, colour, rng.uniform(10, 90))])
    h, w = piece.alpha.shape
    fill = _texture(rng, h, w, colours)
    if rng.random() < 0.5:
        rim = piece.alpha - cv2.erode(piece.alpha, np.ones((3, 3), np.uint8))
        fill *= 1 - rng.uniform(0.3, 0.8) * rim[..., None]
    under = canvas[piece.window]
    under += piece.alpha[..., None] * (fill - under)


def _expose(rng: Rng, canvas: np.ndarray) -> np.ndarray:
    """Apply uneven light, brightness, contrast, blur and noise; return uint8."""
    h, w = canvas.shape[:2]
    if rng.random() < 0.5:
        canvas *= 1 + rng.uniform(-0.4, 0.4) * (_field(rng, h, w)[..., None] - 0.5)
    mean = float(canvas.mean())
    contrast, brightness = rng.uniform(0.65, 1.2), rng.uniform(-30, 30)
    canvas = (canvas - mean) * np.float32(contrast) + np.float32(mean + brightness)
    if rng.random() < 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.5, 1.2))
    if rng.random() < 0.6:
        grain = rng.standard_normal((h, w), dtype=np.float32)
        canvas += np.float32(rng.uniform(2, 14)) * grain[..., None]
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _labelled(image: np.ndarray, placed: list[_Piece]) -> Scene:
    """Collect the labels of the placed figures."""
    polygons = [p.rings for p in placed]
    instances = Instances.from_boxes(
        [p.class_id for p in placed],
        polygon_bounds(polygons, np.zeros((len(placed), 4))),
        area=np.array(list(map(even_odd_area, polygons))),
        polygons=polygons,
        keypoints=np.stack(list(map(_with_visibility, placed))),
        corners=np.stack([p.corners for p in placed]),
    )
    masks = np.stack([p.mask for p in placed])
    seen = np.array([np.count_nonzero(p.visible) for p in placed])
    hidden = 1 - seen / masks.sum(axis=(1, 2))
    largest = max(placed, key=lambda p: p.size)
    return Scene(image, instances, largest.class_id, masks, hidden)


def _with_visibility(piece: _Piece) -> np.ndarray:
    """Append 2 to the keypoints near whose place the figure shows, else 1; (4, 3)."""
    h, w = piece.visible.shape
    marks = []
    for x, y in piece.keypoints:
        # The point lies on the outline, so its own pixel may belong to the ground.
        rows = slice(max(int(y) - 2, 0), min(int(y) + 3, h))
        columns = slice(max(int(x) - 2, 0), min(int(x) + 3, w))
        marks.append(2.0 if piece.visible[rows, columns].any() else 1.0)
    return np.column_stack([piece.keypoints, marks])


def even_odd_area(rings: Polygon) -> float:
    """Return the area in pixels of rings of which none crosses another (holes are subtracted)."""
    total = 0.0
    for ring in rings:
        others = [other.astype(np.float32) for other in rings if other is not ring]
        around = [cv2.pointPolygonTest(other, ring[0].tolist(), False) > 0 for other in others]
        total += (-1) ** sum(around) * ring_area(ring)
    return total
