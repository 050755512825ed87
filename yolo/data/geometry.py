# SPDX-License-Identifier: Apache-2.0
"""How labels follow an image through a 3x3 matrix, a crop, and a hole.

Shape letters: N instances, K keypoints, P points of a ring. Pixels, the corner of the first pixel
at (0, 0); a rectangle is (x0, y0, x1, y1). Every function returns new instances.

Where the reference builds differ: boxes of cut polygons are the bounds of the truly clipped polygon
(8.4; 8.2 takes the vertices that happen to lie inside, which loses area and can give an empty box),
and any mirroring, up-down too, swaps left and right keypoints (8.4; 8.2 forgets the up-down case).

`area` is never changed: it belongs to the object in the original file, and only the evaluation of
untouched images uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from yolo.data.images import cv2
from yolo.data.sample import Instances, Polygon
from yolo.nn.rotated import corners_to_xywhr, enclosing_rectangle, xywhr_to_corners

Rect = tuple[float, float, float, float]

MIN_SIDE_PX = 2.0
MAX_ASPECT = 100.0
NO_LENGTH = 1e-9
MIN_VISIBLE = 0.1
MIN_VISIBLE_OUTLINE = 0.01


def warp_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Move points (..., 2) by a (3, 3) matrix; the projective divisor must be positive."""
    moved = points @ matrix[:2, :2].T + matrix[:2, 2]
    if matrix[2, 0] or matrix[2, 1] or matrix[2, 2] != 1.0:
        moved /= (points @ matrix[2, :2] + matrix[2, 2])[..., None]
    return moved


def warp_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the bounds (N, 4) of the moved corners of boxes_xyxy (N, 4)."""
    if not (matrix[0, 1] or matrix[1, 0] or matrix[2, 0] or matrix[2, 1]):
        gain = (matrix[0, 0], matrix[1, 1]) * 2
        moved = boxes * gain + (matrix[0, 2], matrix[1, 2]) * 2
        if matrix[0, 0] < 0:
            moved[:, [0, 2]] = moved[:, [2, 0]]
        if matrix[1, 1] < 0:
            moved[:, [1, 3]] = moved[:, [3, 1]]
        return moved
    corners = warp_points(box_corners(boxes), matrix)
    return np.concatenate([corners.min(1), corners.max(1)], axis=1)


def box_corners(boxes: np.ndarray) -> np.ndarray:
    """Return the four corners (N, 4, 2) of boxes_xyxy (N, 4), clockwise from the top left."""
    return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)


def clip_boxes(boxes: np.ndarray, rect: Rect) -> np.ndarray:
    """Limit boxes_xyxy (N, 4) to a rectangle; what lies outside becomes empty."""
    x0, y0, x1, y1 = rect
    return np.minimum(np.maximum(boxes, (x0, y0, x0, y0)), (x1, y1, x1, y1))


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Return the areas (N,) of boxes_xyxy (N, 4)."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def keep_visible(
    boxes: np.ndarray, area_before: np.ndarray, min_visible: float, ignore: np.ndarray | None = None
) -> np.ndarray:
    """Tell which objects are still worth finding after a warp and a crop.

    Args:
        boxes: (N, 4) boxes_xyxy after the crop.
        area_before: (N,) box areas before the crop, at the scale of `boxes`.
        min_visible: share of the area that has to be left, 0 to 1.
        ignore: (N,) bool; such regions stay as long as anything of them is left.

    Returns:
        (N,) bool: both sides over 2 px, enough left, and no thinner than 1 : 100.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    small, large = np.minimum(width, height), np.maximum(width, height)
    kept = (small > MIN_SIDE_PX) & (large < MAX_ASPECT * small)
    kept &= width * height > min_visible * area_before
    return kept if ignore is None else kept | (ignore & (small > 0))


def clip_ring(ring: np.ndarray, rect: Rect) -> np.ndarray:
    """Cut a closed ring (P, 2) to a rectangle; a rest without area comes back without points.

    Source: Sutherland and Hodgman, Reentrant polygon clipping, CACM 17(1), 1974.
    """
    if (ring.min(0) >= rect[:2]).all() and (ring.max(0) <= rect[2:]).all():
        return ring
    for axis, limit, sign in ((0, rect[0], 1), (1, rect[1], 1), (0, rect[2], -1), (1, rect[3], -1)):
        distance = sign * (ring[:, axis] - limit)
        inside = distance >= 0
        if inside.all():
            continue
        if not inside.any():
            return ring[:0]
        following, next_distance = np.roll(ring, -1, 0), np.roll(distance, -1)
        crosses = inside != np.roll(inside, -1)
        step = np.where(crosses, distance - next_distance, 1.0)
        cut = ring + (distance / step)[:, None] * (following - ring)
        cut[:, axis] = limit  # to the last digit
        both = np.stack([ring, cut], axis=1)
        ring = both[np.stack([inside, crosses], axis=1)]
    flat = len(ring) < 3 or (np.ptp(ring, axis=0) <= NO_LENGTH).any()
    return ring[:0] if flat else ring


def ring_area(ring: np.ndarray) -> float:
    """Return the area of a closed ring (P, 2) that doesn't cross itself."""
    x, y = ring.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def clip_polygon(polygon: Polygon, rect: Rect) -> Polygon:
    """Cut every ring of one instance to a rectangle; rings with nothing left vanish."""
    cut = (clip_ring(ring, rect) for ring in polygon)
    return [ring for ring in cut if len(ring)]


def punch_polygon(polygon: Polygon, rect: Rect) -> Polygon:
    """Take a rectangle out of one instance.

    The outside of a rectangle is four rectangles without overlap, so the pieces of a ring may
    simply be listed: the even-odd rule fills them as one.
    """
    x0, y0, x1, y1 = rect
    far = 1e9
    outside = ((-far, -far, x0, far), (x1, -far, far, far), (x0, -far, x1, y0), (x0, y1, x1, far))
    return [piece for part in outside for piece in clip_polygon(polygon, part)]


def polygon_bounds(polygons: Sequence[Polygon], fallback: np.ndarray) -> np.ndarray:
    """Return boxes_xyxy (N, 4) around polygons; an instance without rings keeps its `fallback`."""
    boxes = fallback.copy()
    for row, polygon in enumerate(polygons):
        if polygon:
            points = polygon[0] if len(polygon) == 1 else np.concatenate(polygon)
            boxes[row, :2], boxes[row, 2:] = points.min(0), points.max(0)
    return boxes


def smallest_rectangle(points: np.ndarray) -> np.ndarray:
    """Return the corners (4, 2) of the smallest rotated rectangle around points (P, 2)."""
    # OpenCV works in float32, near the origin well enough to tell which points are outermost.
    centred = (points - points.mean(0)).astype(np.float32)
    hull = points[cv2.convexHull(centred, returnPoints=False)[:, 0]]
    edges = np.roll(hull, -1, 0) - hull
    angles = np.arctan2(edges[:, 1], edges[:, 0])
    return xywhr_to_corners(enclosing_rectangle(points, angles))


def warp_instances(
    instances: Instances,
    matrix: np.ndarray,
    *,
    mirrored: bool = False,
    flip_idx: Sequence[int] | None = None,
) -> Instances:
    """Move all labels by a matrix.

    Boxes become the bounds of the moved outline, or of the moved oriented box, or of their own
    moved corners, by what the labels carry.

    Args:
        instances: labels before the warp.
        matrix: (3, 3) from pixels before to pixels after.
        mirrored: the matrix turns left into right.
        flip_idx: for each keypoint, which one takes its place in a mirror image.
    """
    moved = instances.with_boxes(warp_boxes(instances.boxes, matrix))
    if instances.keypoints is not None and len(instances):
        points = warp_points(instances.keypoints[..., :2], matrix)
        moved.keypoints = np.concatenate([points, instances.keypoints[..., 2:]], axis=2)
        if mirrored and flip_idx is not None:
            moved.keypoints = moved.keypoints[:, list(flip_idx)]
    if instances.corners is not None and len(instances):
        moved.corners = warp_points(instances.corners, matrix)
        # Both hold the object: its moved box where the box was cut, the corners where it turned.
        moved.boxes[:, :2] = np.maximum(moved.boxes[:, :2], moved.corners.min(1))
        moved.boxes[:, 2:] = np.minimum(moved.boxes[:, 2:], moved.corners.max(1))
    if instances.polygons is not None:
        moved.polygons = _map_rings(instances.polygons, matrix)
        moved.boxes = polygon_bounds(moved.polygons, moved.boxes)
    return moved


def _map_rings(polygons: list[Polygon], matrix: np.ndarray) -> list[Polygon]:
    """Move all rings in one call: many short rings cost more in calls than in arithmetic."""
    rings = [ring for polygon in polygons for ring in polygon]
    if not rings:
        return [list(polygon) for polygon in polygons]
    points = warp_points(np.concatenate(rings), matrix)
    edges = np.cumsum([0, *map(len, rings)]).tolist()
    parts = (points[start:stop] for start, stop in pairwise(edges))
    return [[next(parts) for _ in polygon] for polygon in polygons]


def clip_instances(instances: Instances, rect: Rect) -> Instances:
    """Cut all labels to a rectangle; nothing is dropped, lost objects get an empty box.

    Keypoints outside become absent (visibility 0). An oriented box that crosses the border keeps
    its angle and becomes as small as what is left of its outline, or of itself, allows. (The
    reference builds fit the smallest rectangle, whose angle depends on the border instead of the
    object.)
    """
    boxes = clip_boxes(instances.boxes, rect)
    cut = instances.with_boxes(boxes)
    x0, y0, x1, y1 = rect
    if instances.keypoints is not None and len(instances):
        cut.keypoints = instances.keypoints.copy()
        x, y = cut.keypoints[..., 0], cut.keypoints[..., 1]
        cut.keypoints[(x < x0) | (y < y0) | (x > x1) | (y > y1), 2] = 0.0
    if instances.polygons is not None or instances.corners is not None:
        crossing = np.flatnonzero((boxes != instances.boxes).any(1))
        _cut_outlines(cut, crossing, lambda polygon: clip_polygon(polygon, rect))
    return cut


def with_outlines(instances: Instances) -> Instances:
    """Return oriented boxes with themselves as outlines, where they have no others.

    Cut twice, an outline says what is left, where a box that was fitted in between is too large.
    """
    if instances.corners is None or instances.polygons is not None:
        return instances
    return replace(instances, polygons=[[ring] for ring in instances.corners])


def _cut_outlines(
    cut: Instances, rows: np.ndarray, what_is_left: Callable[[Polygon], Polygon]
) -> None:
    """Cut the outlines of some instances, or their oriented boxes; all else follows what is left.

    Args:
        cut: the instances, their boxes cut already; changed in place, but for arrays and lists of
            outlines and corners, which are copied first.
        rows: which instances.
        what_is_left: cuts one outline.
    """
    outlines = list(with_outlines(cut).polygons or ())
    cut.corners = None if cut.corners is None else cut.corners.copy()
    for row in rows if outlines else ():
        if not outlines[row]:
            continue
        outlines[row] = what_is_left(outlines[row])
        if not outlines[row]:
            cut.boxes[row, 2:] = cut.boxes[row, :2]
            continue
        points = np.concatenate(outlines[row])
        cut.boxes[row] = [*points.min(0), *points.max(0)]
        if cut.corners is not None:
            angle = corners_to_xywhr(cut.corners[row])[4:]
            cut.corners[row] = xywhr_to_corners(enclosing_rectangle(points, angle))
    cut.polygons = cut.polygons and outlines


def punch_instances(instances: Instances, rect: Rect) -> tuple[Instances, np.ndarray]:
    """Hide what lies in a rectangle, as when another picture is laid over it.

    A box, upright or oriented, shrinks where the rectangle takes a whole side of it, and stays
    where it only covers a part; outlines lose the covered part; keypoints under it turn from
    visible to hidden.

    Returns:
        The instances, none dropped, and the share (N,) of each box's area that can be seen.
    """
    boxes = instances.boxes
    x0, y0, x1, y1 = rect
    covered = box_areas(clip_boxes(boxes, rect))
    seen = 1.0 - covered / np.maximum(box_areas(boxes), 1e-9)
    cut = instances.with_boxes(boxes.copy())
    tall = (boxes[:, 1] >= y0) & (boxes[:, 3] <= y1)
    wide = (boxes[:, 0] >= x0) & (boxes[:, 2] <= x1)
    left, top, right, bottom = boxes.T
    cut.boxes[:, 0] = np.where(tall & (left >= x0) & (left < x1), x1, left)
    cut.boxes[:, 2] = np.where(tall & (right > x0) & (right <= x1), x0, right)
    cut.boxes[:, 1] = np.where(wide & (top >= y0) & (top < y1), y1, top)
    cut.boxes[:, 3] = np.where(wide & (bottom > y0) & (bottom <= y1), y0, bottom)
    cut.boxes[:, 2:] = np.maximum(cut.boxes[:, 2:], cut.boxes[:, :2])
    if instances.keypoints is not None and len(instances):
        cut.keypoints = instances.keypoints.copy()
        x, y = cut.keypoints[..., 0], cut.keypoints[..., 1]
        under = (x > x0) & (y > y0) & (x < x1) & (y < y1) & (cut.keypoints[..., 2] > 1)
        cut.keypoints[under, 2] = 1.0
    under = np.flatnonzero(covered > 0)
    if instances.corners is not None:
        for row in under:
            ring = instances.corners[row]
            seen[row] = 1.0 - ring_area(clip_ring(ring, rect)) / max(ring_area(ring), 1e-9)
    _cut_outlines(cut, under, lambda polygon: punch_polygon(polygon, rect))
    return cut, seen
