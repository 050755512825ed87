# SPDX-License-Identifier: Apache-2.0
"""Draw how a training sample is made, as a small record of numbers; `transforms` carries it out.

Randomness is counter-based: a recipe is a function of (seed, epoch, place in the epoch's order)
alone, so workers, ranks and restarts don't change it.

A scene of several images is never put together on a large canvas and then warped: the layout on
that canvas, the affine map and the flips are multiplied into one matrix for each source image,
which is sampled once, straight into its part of the result.

Sources: mosaic, Bochkovskiy et al., YOLOv4, arXiv:2004.10934, section 3.3; mixup for detection,
Zhang et al., Bag of Freebies, arXiv:1902.04103; CutMix, Yun et al., arXiv:1905.04899; copy-paste,
Ghiasi et al., arXiv:2012.07177.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from yolo.data.letterbox import place as place_on_canvas
from yolo.data.order import EpochOrder
from yolo.data.sample import Sample

Size = tuple[int, int]
Box = tuple[int, int, int, int]
Flips = tuple[bool, bool]  # left-right, up-down

NEIGHBOURS = 128
"""Partners of a mosaic come from this many places before and after, so that a worker's recently
decoded images serve again. The epoch's order is random, so partners are random all the same."""

MIN_SCALE = 0.05
MIN_DEPTH = 0.1
MIX_CONCENTRATION = 16.0
"""Both parameters of mixup's Beta distribution. The paper weights each image's loss by its share;
here both count in full, so the shares stay near one half (0.5 +/- 0.09)."""

# Last words of the generator's key; data/order and engine/inputs have others.
_SAMPLE, _CUSTOM = 1, 3

Transform = Callable[[Sample], Sample]


@dataclass(frozen=True, slots=True)
class Augment:
    """The familiar gains of augmentation.

    Attributes:
        degrees: rotation, +/- degrees.
        translate: shift, +/- share of the sides.
        scale: zoom of 1 +/- this, or (smallest, largest).
        shear: +/- degrees, on both axes.
        perspective: +/- per pixel; limited so that nothing comes close to the viewer's plane.
        flipud: probability of an up-down flip.
        fliplr: probability of a left-right flip.
        bgr: probability of swapped colour channels.
        mosaic: probability of four images in one.
        mixup: probability of blending in another scene.
        cutmix: probability of a rectangle taken from another scene.
        copy_paste: probability that an object with an outline is pasted.
        copy_paste_mode: "flip" pastes from the mirror image of the scene, "mixup" from another.
        hsv_h: hue, +/- share of the circle.
        hsv_s: saturation, +/- share.
        hsv_v: brightness, +/- share.
        custom: called in order on the finished sample; see `transforms.run_custom`.
        flip_idx: for each keypoint, which one takes its place in a mirror image; without it
            images with keypoints are never mirrored.
    """

    degrees: float = 0.0
    translate: float = 0.1
    scale: float | tuple[float, float] = 0.5
    shear: float = 0.0
    perspective: float = 0.0
    flipud: float = 0.0
    fliplr: float = 0.5
    bgr: float = 0.0
    mosaic: float = 1.0
    mixup: float = 0.0
    cutmix: float = 0.0
    copy_paste: float = 0.0
    copy_paste_mode: str = "flip"
    hsv_h: float = 0.015
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    custom: tuple[Transform, ...] = ()
    flip_idx: tuple[int, ...] | None = None

    @classmethod
    def off(cls) -> Augment:
        """Return no augmentation at all."""
        return cls(translate=0, scale=0.0, fliplr=0, mosaic=0, hsv_h=0, hsv_s=0, hsv_v=0)

    def without_mixing(self) -> Augment:
        """Return the same without mosaic, mixup, cutmix and copy-paste."""
        return replace(self, mosaic=0.0, mixup=0.0, cutmix=0.0, copy_paste=0.0)

    def without_mirrors(self) -> Augment:
        """Return the same without anything that turns left into right."""
        paste = 0.0 if self.copy_paste_mode == "flip" else self.copy_paste
        return replace(self, flipud=0.0, fliplr=0.0, copy_paste=paste)


def close_epoch(epochs: int, close_mosaic: int) -> int:
    """Return the first epoch (from 0) without mosaic.

    The last `close_mosaic` epochs, but never more than half of them, so that a short training
    still sees mosaics; 0 means never.
    """
    return epochs - min(close_mosaic, epochs // 2)


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """One source image in a scene. Source pixels are those of the loaded (resized) image.

    Attributes:
        index: position in the dataset.
        matrix: (3, 3) source pixels -> scene pixels.
        window: rectangle of the source that the scene's layout shows; objects outside are lost.
        crop: whole source pixels that are sampled, (x0, y0, x1, y1).
        region: whole scene pixels that may show this tile, (x0, y0, x1, y1).
        straight: `matrix` only scales, shifts and flips, and takes `crop` exactly to `region`.
    """

    index: int
    matrix: np.ndarray
    window: Box
    crop: Box
    region: Box
    straight: bool


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Tiles on a canvas of `size` (h, w); `mirrored` if left and right changed places.

    `first` is the dataset position of the scene's own image, which may be out of sight.
    """

    tiles: tuple[Tile, ...]
    size: Size
    mirrored: bool
    first: int


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """Everything that was drawn for one sample.

    Attributes:
        key: (seed, epoch, place) that it was drawn for.
        index: the dataset position of the sample itself.
        scene: the images and where they go.
        blend: another scene to blend in, and the share of the first; or None.
        cut: another scene, and the rectangle that shows it; or None.
        paste: (scene or None for the mirror image, key of the choices, probability); or None.
        hsv: (added share of the hue circle, saturation factor, value factor), or None.
        swap_channels: store the colours in reverse order.
    """

    key: tuple[int, int, int]
    index: int
    scene: Scene
    blend: tuple[Scene, float] | None = None
    cut: tuple[Scene, Box] | None = None
    paste: tuple[Scene | None, int, float] | None = None
    hsv: tuple[float, float, float] | None = None
    swap_channels: bool = False

    def custom_rng(self) -> np.random.Generator:
        """Return the generator that a user's transforms draw from."""
        return np.random.default_rng([*self.key, _CUSTOM])


@dataclass(frozen=True, slots=True)
class RecipeBook:
    """Draws recipes.

    Attributes:
        order: the epochs' orders.
        augment: gains.
        size: (h, w) of the samples.
        loaded_shape: dataset position -> (h, w) of the loaded image.
    """

    order: EpochOrder
    augment: Augment
    size: Size
    loaded_shape: Callable[[int], Size]

    def draw(self, epoch: int, place: int, size: Size | None = None, mixing: bool = True) -> Recipe:
        """Draw the recipe of one place of one epoch.

        Args:
            epoch: from 0.
            place: in the epoch's order.
            size: (h, w), in place of the usual one.
            mixing: False leaves mosaic, mixup, cutmix and copy-paste out.
        """
        gains = self.augment if mixing else self.augment.without_mixing()
        size = size or self.size
        order = self.order.places(epoch)
        rng = np.random.default_rng([self.order.seed, epoch, place, _SAMPLE])
        uniform = _numbers(rng)
        index = int(order[place])

        low = max(0, min(place - NEIGHBOURS, len(order) - 2 * NEIGHBOURS - 1))
        span = min(len(order), low + 2 * NEIGHBOURS + 1) - low

        def partner() -> int:
            return int(order[low + int(next(uniform) * span)])

        flips = (next(uniform) < gains.fliplr, next(uniform) < gains.flipud)

        def scene(first: int) -> Scene:
            others = [partner() for _ in range(3)] if next(uniform) < gains.mosaic else []
            return self._scene([first, *others], size, gains, flips, uniform)

        main = scene(index)
        blend = cut = paste = None
        if gains.mixup and next(uniform) < gains.mixup:
            blend = (scene(partner()), float(rng.beta(MIX_CONCENTRATION, MIX_CONCENTRATION)))
        elif gains.cutmix and next(uniform) < gains.cutmix:
            cut = (scene(partner()), _cut_box(size, uniform))
        if gains.copy_paste:
            donor = scene(partner()) if gains.copy_paste_mode == "mixup" else None
            paste = (donor, int(rng.integers(1 << 62)), gains.copy_paste)
        key, hsv = (self.order.seed, epoch, place), _draw_colour(gains, uniform)
        swap = bool(gains.bgr and next(uniform) < gains.bgr)
        return Recipe(key, index, main, blend, cut, paste, hsv, swap)

    def _scene(
        self, indices: list[int], size: Size, gains: Augment, flips: Flips, uniform: Iterator[float]
    ) -> Scene:
        shapes = [self.loaded_shape(i) for i in indices]
        if len(indices) == 1:
            placement, canvas = place_on_canvas(shapes[0], size)[0], size
            layout = [(placement.matrix, (0, 0, shapes[0][1], shapes[0][0]))]
        else:
            layout, canvas = _mosaic_layout(shapes, size, uniform), (2 * size[0], 2 * size[1])
        view, straight = _draw_view(canvas, size, gains, flips, uniform)
        make = _straight_tile if straight else _bent_tile
        tiles = (
            make(index, view @ matrix, window, size)
            for index, (matrix, window) in zip(indices, layout, strict=True)
        )
        return Scene(tuple(filter(None, tiles)), size, flips[0] != flips[1], indices[0])


def _numbers(rng: np.random.Generator) -> Iterator[float]:
    """Yield uniform numbers in [0, 1), drawn in blocks: one call costs as much as one block."""
    while True:
        yield from rng.random(32).tolist()


def _mosaic_layout(
    shapes: list[Size], size: Size, uniform: Iterator[float]
) -> list[tuple[np.ndarray, Box]]:
    """Put four images around a centre on a canvas of twice `size`.

    The centre lies in the middle half of the canvas; each image touches it with one corner.
    """
    height, width = size
    middle_y = int((0.5 + next(uniform)) * height)
    middle_x = int((0.5 + next(uniform)) * width)
    layout = []
    for number, (rows, columns) in enumerate(shapes):
        left = middle_x if number % 2 else middle_x - columns
        top = middle_y if number // 2 else middle_y - rows
        right, bottom = min(columns, 2 * width - left), min(rows, 2 * height - top)
        layout.append((_scaling(1, 1, left, top), (max(0, -left), max(0, -top), right, bottom)))
    return layout


def _scaling(gain_x: float, gain_y: float, shift_x: float, shift_y: float) -> np.ndarray:
    return np.array([[gain_x, 0.0, shift_x], [0.0, gain_y, shift_y], [0.0, 0.0, 1.0]])


def _draw_view(
    canvas: Size, size: Size, gains: Augment, flips: Flips, uniform: Iterator[float]
) -> tuple[np.ndarray, bool]:
    """Draw the map from the canvas to the sample: translate, shear, rotate and scale, perspective.

    Returns:
        (3, 3) matrix, flips included, and whether it only scales, shifts and flips.
    """

    def spread(gain: float) -> float:
        return gain * (2.0 * next(uniform) - 1.0)

    height, width = size
    if isinstance(gains.scale, tuple):
        zoom = gains.scale[0] + (gains.scale[1] - gains.scale[0]) * next(uniform)
    else:
        zoom = 1.0 + spread(gains.scale)
    zoom = max(zoom, MIN_SCALE)
    shift_x = (0.5 + spread(gains.translate)) * width
    shift_y = (0.5 + spread(gains.translate)) * height
    straight = not (gains.degrees or gains.shear or gains.perspective)
    if straight:
        left, top = shift_x - zoom * canvas[1] / 2, shift_y - zoom * canvas[0] / 2
        matrix = _scaling(zoom, zoom, left, top)
    else:
        angle = math.radians(spread(gains.degrees))
        tilt = [spread(gains.perspective), spread(gains.perspective)]
        reach = abs(tilt[0]) * canvas[1] / 2 + abs(tilt[1]) * canvas[0] / 2
        if reach > 1.0 - MIN_DEPTH:
            tilt = [t * (1.0 - MIN_DEPTH) / reach for t in tilt]
        shear = [math.tan(math.radians(spread(gains.shear))) for _ in range(2)]
        cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
        centre = _scaling(1, 1, -canvas[1] / 2, -canvas[0] / 2)
        perspective = np.array([[1, 0, 0], [0, 1, 0], [tilt[0], tilt[1], 1.0]])
        rotate = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1.0]])
        slant = np.array([[1, shear[0], 0], [shear[1], 1, 0], [0, 0, 1.0]])
        matrix = _scaling(1, 1, shift_x, shift_y) @ slant @ rotate @ perspective @ centre
    if flips[0]:
        matrix[0] = width * matrix[2] - matrix[0]
    if flips[1]:
        matrix[1] = height * matrix[2] - matrix[1]
    return matrix, straight


def _straight_tile(index: int, matrix: np.ndarray, window: Box, size: Size) -> Tile | None:
    """Snap a tile to whole pixels on both sides, so that a plain resize paints it exactly."""
    gain_x, gain_y = float(matrix[0, 0]), float(matrix[1, 1])
    columns = _snap(gain_x, float(matrix[0, 2]), window[0], window[2], size[1])
    rows = _snap(gain_y, float(matrix[1, 2]), window[1], window[3], size[0])
    if columns is None or rows is None:
        return None
    x0, x1, left, right, gain_x, shift_x = columns
    y0, y1, top, bottom, gain_y, shift_y = rows
    snapped = _scaling(gain_x, gain_y, shift_x, shift_y)
    return Tile(index, snapped, window, (x0, y0, x1, y1), (left, top, right, bottom), True)


def _snap(
    gain: float, shift: float, start: int, stop: int, limit: int
) -> tuple[int, int, int, int, float, float] | None:
    """Snap one axis of a tile to whole pixels.

    Returns:
        First and last source pixel, first and last scene pixel, and the gain and shift that take
        one exactly to the other; None if the tile can't be seen.
    """
    ends = sorted((gain * start + shift, gain * stop + shift))
    low, high = max(0, round(ends[0])), min(limit, round(ends[1]))
    if high <= low or stop <= start:
        return None
    source = sorted(((low - shift) / gain, (high - shift) / gain))
    first = min(max(start, round(source[0])), stop - 1)
    last = max(min(stop, round(source[1])), first + 1)
    exact = (high - low) / (last - first)
    if gain < 0:
        return first, last, low, high, -exact, high + exact * first
    return first, last, low, high, exact, low - exact * first


def _bent_tile(index: int, matrix: np.ndarray, window: Box, size: Size) -> Tile | None:
    """Bound what a rotated, sheared or tilted tile may paint."""
    x0, y0, x1, y1 = window
    if x1 <= x0 or y1 <= y0:
        return None
    corners = np.array([[x0, y0, 1], [x1, y0, 1], [x1, y1, 1], [x0, y1, 1.0]]) @ matrix.T
    points = corners[:, :2] / corners[:, 2:]
    left, top = np.maximum(np.floor(points.min(0)), 0).astype(int).tolist()
    right, bottom = np.minimum(np.ceil(points.max(0)), size[::-1]).astype(int).tolist()
    if right <= left or bottom <= top:
        return None
    return Tile(index, matrix, window, window, (left, top, right, bottom), False)


def _cut_box(size: Size, uniform: Iterator[float]) -> Box:
    """Draw CutMix's rectangle: its share of the area and its centre are uniform (section 3.1)."""
    height, width = size
    side = math.sqrt(next(uniform))
    x, y = next(uniform) * width, next(uniform) * height
    half_w, half_h = side * width / 2, side * height / 2
    left, top = max(0, round(x - half_w)), max(0, round(y - half_h))
    return left, top, min(width, round(x + half_w)), min(height, round(y + half_h))


def _draw_colour(gains: Augment, uniform: Iterator[float]) -> tuple[float, float, float] | None:
    if not (gains.hsv_h or gains.hsv_s or gains.hsv_v):
        return None
    hue, saturation, value = (2.0 * next(uniform) - 1.0 for _ in range(3))
    return hue * gains.hsv_h, 1.0 + saturation * gains.hsv_s, 1.0 + value * gains.hsv_v
