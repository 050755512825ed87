# SPDX-License-Identifier: Apache-2.0
"""Carry out a recipe: pixels and labels by the same matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from yolo.data.cache import ImageStore
from yolo.data.geometry import (
    MIN_VISIBLE,
    MIN_VISIBLE_OUTLINE,
    Rect,
    box_areas,
    box_corners,
    clip_instances,
    keep_visible,
    punch_instances,
    warp_instances,
    with_outlines,
)
from yolo.data.images import cv2
from yolo.data.letterbox import fill_value
from yolo.data.masks import fill_polygons
from yolo.data.pixels import finish_colour, paint_bent, paint_straight
from yolo.data.recipe import Box, Recipe, Scene, Transform
from yolo.data.sample import Instances, Sample
from yolo.errors import DataError


def apply(
    recipe: Recipe,
    source: ImageStore,
    *,
    flip_idx: tuple[int, ...] | None = None,
    custom: tuple[Transform, ...] = (),
    rgb: np.ndarray | None = None,
) -> Sample:
    """Make the sample that a recipe describes.

    Args:
        recipe: what was drawn.
        source: images and labels.
        flip_idx: for each keypoint, which one takes its place in a mirror image.
        custom: a user's transforms, see `run_custom`.
        rgb: (h, w, C) array to receive the finished image (three channels as RGB); it saves a pass
            over the pixels. The sample's own image is then this array, unless `custom` is given.

    Returns:
        The sample; its image is BGR where `rgb` is None.

    Raises:
        DataError: if an image can't be read, or a custom transform returns something unusable.
    """
    image = render(recipe.scene, source)
    if rgb is not None:
        require_kind(source.path, recipe.index, image, rgb)
    instances = scene_instances(recipe.scene, source, flip_idx)

    def finished(other: Scene) -> tuple[np.ndarray, Instances]:
        picture = render(other, source)
        require_kind(source.path, other.first, picture, image)
        return picture, scene_instances(other, source, flip_idx)

    if recipe.paste is not None:
        donor, key, probability = recipe.paste
        donors = finished(donor) if donor else mirror(image, instances, flip_idx)
        instances = paste(image, instances, *donors, probability, np.random.default_rng(key))
    if recipe.blend is not None:
        second, objects = finished(recipe.blend[0])
        cv2.addWeighted(image, recipe.blend[1], second, 1.0 - recipe.blend[1], 0.0, dst=image)
        instances = Instances.concatenate([instances, objects])
    elif recipe.cut is not None:
        x0, y0, x1, y1 = recipe.cut[1]
        if x0 < x1 and y0 < y1:
            second, objects = finished(recipe.cut[0])
            image[y0:y1, x0:x1] = second[y0:y1, x0:x1]
            instances = cut_and_fill(instances, objects, recipe.cut[1])
    sample = _sample(recipe, source, image, instances)
    sample.image = finish_colour(image, recipe.hsv, recipe.swap_channels, None if custom else rgb)
    if custom:
        sample.rng = recipe.custom_rng()
        sample = run_custom(sample, custom)
        if rgb is not None:
            finish_colour(sample.image, rgb=rgb)
    return sample


def labelled(recipe: Recipe, source: ImageStore, flip_idx: tuple[int, ...] | None = None) -> Sample:
    """Make the labels that `apply` gives for a recipe of one scene; the image stays black."""
    black = np.broadcast_to(np.zeros(1, np.uint8), (*recipe.scene.size, source.channels))
    return _sample(recipe, source, black, scene_instances(recipe.scene, source, flip_idx))


def _sample(recipe: Recipe, source: ImageStore, image: np.ndarray, instances: Instances) -> Sample:
    if instances.corners is not None and not _has_outlines(recipe, source):
        instances.polygons = None  # those that `scene_instances` lent
    index, matrix = recipe.index, np.eye(3)
    if recipe.scene.tiles:
        first = recipe.scene.tiles[0]
        shapes = source.loaded_shape(first.index), source.original_shape(first.index)
        matrix = first.matrix @ loading_matrix(*shapes)
    shape = source.original_shape(index)
    return Sample(image, instances, None, source.path(index), index, shape, matrix)


def _has_outlines(recipe: Recipe, source: ImageStore) -> bool:
    """Tell whether the labels of a recipe's images have outlines of their own."""
    others = [part[0] for part in (recipe.blend, recipe.cut, recipe.paste) if part]
    tiles = [tile for scene in (recipe.scene, *others) if scene for tile in scene.tiles]
    found = (source.instances(tile.index) for tile in tiles)
    return any(labels.polygons is not None for labels in found if len(labels))


def render(scene: Scene, source: ImageStore) -> np.ndarray:
    """Paint a scene, (h, w, C)."""
    canvas: np.ndarray | None = None
    for tile in scene.tiles:
        image = source.load(tile.index)
        if canvas is None:
            canvas = _empty_canvas(scene, image)
        require_kind(source.path, tile.index, image, canvas)
        (paint_straight if tile.straight else paint_bent)(tile, image, canvas)
    # Where everything was moved out of sight, the scene's own image says of what kind it is.
    return _empty_canvas(scene, source.load(scene.first)) if canvas is None else canvas


def _empty_canvas(scene: Scene, like: np.ndarray) -> np.ndarray:
    return np.full((*scene.size, like.shape[2]), fill_value(like.dtype), like.dtype)


def require_kind(
    path: Callable[[int], str], index: int, image: np.ndarray, like: np.ndarray
) -> None:
    """Refuse to mix images of different bit depth or channel count.

    Raises:
        DataError: naming the file `path(index)` that `image` comes from.
    """
    if image.dtype != like.dtype or image.shape[2] != like.shape[2]:
        raise DataError(
            f"{path(index)}: expected {like.dtype} with {like.shape[2]} channels like the images "
            f"beside it, found {image.dtype} with {image.shape[2]}; convert them to one kind"
        )


def loading_matrix(loaded: tuple[int, ...], original: tuple[int, int]) -> np.ndarray:
    """Return the (3, 3) map from an image file's pixels to those of the loaded image."""
    return np.diag([loaded[1] / original[1], loaded[0] / original[0], 1.0])


def scene_instances(
    scene: Scene, source: ImageStore, flip_idx: tuple[int, ...] | None = None
) -> Instances:
    """Return the labels of a scene, without objects that are lost or nearly so.

    Oriented boxes come with the outlines of what can be seen of them.
    """
    parts, areas = [], []
    for tile in scene.tiles:
        (rows, columns), (h, w) = source.loaded_shape(tile.index), source.original_shape(tile.index)
        gain_x, gain_y = columns / w, rows / h
        x0, y0, x1, y1 = tile.window
        window = (x0 / gain_x, y0 / gain_y, x1 / gain_x, y1 / gain_y)
        shown = clip_instances(with_outlines(source.instances(tile.index)), window)
        found = np.all(shown.boxes[:, 2:] > shown.boxes[:, :2], axis=1)
        shown = shown if found.all() else shown.select(found)
        matrix = tile.matrix * (gain_x, gain_y, 1.0)
        (a, b), (c, d) = matrix[:2, :2]
        areas.append(box_areas(shown.boxes) * abs(a * d - b * c))
        parts.append(warp_instances(shown, matrix, mirrored=scene.mirrored, flip_idx=flip_idx))
    if not parts:
        return Instances.empty()
    inside = clip_instances(Instances.concatenate(parts), (0.0, 0.0, *scene.size[::-1]))
    return _select_visible(inside, np.concatenate(areas))


def _needed(instances: Instances) -> float:
    """Return the share of an object that has to be seen: an outline says what little is left."""
    return MIN_VISIBLE if instances.polygons is None else MIN_VISIBLE_OUTLINE


def _select_visible(instances: Instances, area_before: np.ndarray) -> Instances:
    kept = keep_visible(instances.boxes, area_before, _needed(instances), instances.ignore)
    return instances if kept.all() else instances.select(kept)


def mirror(
    image: np.ndarray, instances: Instances, flip_idx: tuple[int, ...] | None
) -> tuple[np.ndarray, Instances]:
    """Return the left-right mirror image of a finished scene and of its labels."""
    matrix = np.array([[-1.0, 0.0, image.shape[1]], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    labels = warp_instances(instances, matrix, mirrored=True, flip_idx=flip_idx)
    return np.ascontiguousarray(image[:, ::-1]), labels


def paste(
    image: np.ndarray,
    instances: Instances,
    donor_image: np.ndarray,
    donors: Instances,
    probability: float,
    rng: np.random.Generator,
) -> Instances:
    """Paste objects with outlines onto an image, in place, and return all labels.

    An object is pasted only where its pixels touch no labelled object, so that no label in the
    image needs to change.

    Args:
        image: (H, W, C); overwritten.
        instances: its labels.
        donor_image: (H, W, C) that objects are cut from; they keep their place.
        donors: its labels.
        probability: of trying an object.
        rng: draws which objects are tried.
    """
    wanted = rng.random(len(donors)) < probability
    if donors.polygons is None or not wanted.any():
        return instances
    size = (image.shape[0], image.shape[1])
    taken = np.zeros(size, dtype=bool)
    known = instances.polygons or [[]] * len(instances)
    boxes = box_corners(instances.boxes)
    outlines = [rings or [box] for rings, box in zip(known, boxes, strict=True)]
    for top, left, mask in fill_polygons(outlines, size):
        taken[top : top + mask.shape[0], left : left + mask.shape[1]] |= mask.view(bool)
    rows = np.flatnonzero(wanted & ~donors.ignore).tolist()
    pasted = []
    masks = fill_polygons([donors.polygons[row] for row in rows], size)
    for row, (top, left, filled) in zip(rows, masks, strict=True):
        mask = filled.view(bool)
        place = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
        if mask.any() and not (mask & taken[place]).any():
            image[place][mask] = donor_image[place][mask]
            taken[place] |= mask
            pasted.append(row)
    return (
        Instances.concatenate([instances, donors.select(np.array(pasted))]) if pasted else instances
    )


def cut_and_fill(instances: Instances, others: Instances, box: Box) -> Instances:
    """Return the labels after a rectangle of an image was replaced by another image's."""
    rect: Rect = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    outside, seen = punch_instances(instances, rect)
    kept = keep_visible(outside.boxes, np.zeros(len(seen)), 0.0, instances.ignore)
    kept[(seen <= _needed(instances)) & ~instances.ignore] = False
    inside = _select_visible(clip_instances(others, rect), box_areas(others.boxes))
    return Instances.concatenate([outside.select(kept), inside])


def run_custom(sample: Sample, transforms: tuple[Transform, ...]) -> Sample:
    """Call a user's transforms in order, and check what each returns.

    Args:
        sample: BGR image and labels; `sample.rng` is the sample's own generator.
        transforms: each takes a sample and returns one with an image of the same (h, w), channels
            and type, and with finite labels of the same kinds.

    Raises:
        DataError: naming the transform and what was wrong.
    """
    expected = (sample.image.shape, sample.image.dtype)
    for transform in transforms:
        kinds = _kinds(sample.instances)
        sample = transform(sample)
        if reason := _fault(sample, expected, kinds):
            name = getattr(transform, "__name__", type(transform).__name__)
            raise DataError(f"transform {name!r}: expected {reason}")
    return sample


def _kinds(instances: Instances) -> dict[str, tuple[int, ...]]:
    """Return the optional kinds of label that there are, with the shape of one object's."""
    points = np.zeros(0) if instances.keypoints is None else np.asarray(instances.keypoints)
    found = {"polygons": (), "corners": (4, 2), "keypoints": points.shape[1:]}
    kept = {k: shape for k, shape in found.items() if getattr(instances, k) is not None}
    return kept if len(instances) else {}


def _fault(sample: Any, image: tuple[Any, Any], kinds: dict[str, tuple[int, ...]]) -> str:
    """Say what was expected of a transform and what it gave; an empty text if nothing is wrong.

    Args:
        sample: what it gave back.
        image: shape and type of the image before it.
        kinds: `_kinds` of the labels before it.
    """
    if not isinstance(sample, Sample):
        return f"a Sample back, found {type(sample).__name__}; return the sample"
    found = (np.shape(sample.image), getattr(sample.image, "dtype", None))
    if found != image:
        return f"an image of shape {image[0]} and type {image[1]}, found {found[0]} and {found[1]}"
    labels, count = sample.instances, len(sample.instances)
    if sample.image_class is not None and not _is_class(np.asarray(sample.image_class)):
        return f"image_class as a whole number from 0 on, found {sample.image_class!r}"
    now = _kinds(labels)
    if count and kinds.keys() - now.keys():
        return f"{min(kinds.keys() - now.keys())} as before, found none"
    shapes: dict[str, tuple[int, ...]] = {"boxes": (4,), "ignore": (), "area": (), "classes": ()}
    shapes |= {kind: kinds.get(kind, shape) for kind, shape in now.items() if kind != "polygons"}
    for kind, shape in shapes.items():
        values = getattr(labels, kind)
        if not isinstance(values, np.ndarray) or values.shape != (count, *shape):
            given = getattr(values, "shape", type(values).__name__)
            return f"{kind} of shape {(count, *shape)}, found {given}"
        if not np.isfinite(values).all():
            return f"{count} rows of finite {kind}"
    if not _is_class(labels.classes):
        return f"classes as whole numbers from 0 on, found {labels.classes!r:.80}"
    if labels.ignore.dtype != bool:
        return f"ignore of type bool, found {labels.ignore.dtype}"
    if (labels.boxes[:, 2:] < labels.boxes[:, :2]).any():
        return "boxes_xyxy with x0 <= x1 and y0 <= y1"
    if len(labels.polygons or ()) != count and labels.polygons is not None:
        return f"{count} polygons, found {len(labels.polygons)}"
    for ring in (ring for polygon in labels.polygons or () for ring in polygon):
        shape = np.shape(ring)
        if len(shape) != 2 or shape[1] != 2 or shape[0] < 3 or not np.isfinite(ring).all():
            return f"finite polygons of rings (P, 2), P from 3 on, found {shape}"
    return ""


def _is_class(ids: np.ndarray) -> bool:
    return not ids.size or (ids.dtype.kind in "iu" and ids.min() >= 0)
