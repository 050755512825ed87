# SPDX-License-Identifier: Apache-2.0
"""Predictions and labels drawn onto a picture, with OpenCV.

Line widths, letters and points are fitted to the size of the picture. Labels stay inside it and
avoid each other; in a crowd only the surest objects get one, so that the picture stays visible.
Everything is drawn on a copy that `viewable` made.

Letters: N objects, K keypoints, H W picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from yolo.data.images import cv2
from yolo.engine.text import Color, Lettering

_HEX = (
    *("2f7bff", "ff7a1a", "12b76a", "e5386d", "8a5cf6", "00b8d4", "f5c400", "d946ef", "7cb518"),
    *("ff5252", "3d5afe", "00a896", "c77d3b", "ff8fab", "5c9ead", "b5179e", "a3d900", "6d6fff"),
    *("e09f3e", "43aa8b"),
)
# Keypoints 0..16 in COCO's order: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles.
LIMBS = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
_MASK_OPACITY = 0.45
_VISIBLE = 0.5
_LABELLED = 0.35  # share of the picture that labels may hide
_CROWD = 20  # objects from which letters shrink with them
_SMALL_LETTERS = 8  # px
_SHARED = 0.2  # share of a label that others may hide
PAPER: Color = (38, 34, 32)
_TRACK: Color = (88, 82, 78)


@dataclass(frozen=True)
class Marks:
    """What to draw on one picture, in its pixels.

    Attributes:
        boxes: (N, 4) boxes_xyxy.
        classes: (N,) class ids.
        conf: (N,) 0..1, or None for labels.
        ids: (N,) track ids, or None.
        corners: (N, 4, 2) corners of rotated boxes, drawn in place of `boxes`, or None.
        keypoints: (N, K, 2) or (N, K, 3) with visibility, or None.
        mask: gives mask i as (H, W) bool, or None.
    """

    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    classes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    conf: np.ndarray | None = None
    ids: np.ndarray | None = None
    corners: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    mask: Callable[[int], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def scaled(self, gain: float, size: tuple[int, int]) -> Marks:
        """Return the marks for the picture resized by `gain` to `size` (h, w)."""
        original, points = self.mask, self.keypoints

        def resized(i: int) -> np.ndarray:
            assert original is not None
            mask = original(i).astype(np.uint8) * 255
            return cv2.resize(mask, size[::-1], interpolation=cv2.INTER_LINEAR) > 127

        if points is not None:
            points = np.concatenate([points[..., :2] * gain, points[..., 2:]], -1)
        return replace(
            self,
            boxes=np.asarray(self.boxes) * gain,
            corners=None if self.corners is None else self.corners * gain,
            keypoints=points,
            mask=None if original is None else resized,
        )


def color_of(index: int) -> Color:
    """Return the BGR colour of a class or instance."""
    code = _HEX[int(index) % len(_HEX)]
    return int(code[4:6], 16), int(code[2:4], 16), int(code[0:2], 16)


def ink_on(color: Color) -> Color:
    """Return black or white, whichever reads better on a BGR colour."""
    luma = 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2]
    return (20, 20, 20) if luma > 150 else (255, 255, 255)


def viewable(image: np.ndarray) -> np.ndarray:
    """Return an (H, W, 3) uint8 BGR copy of an image of any depth and number of channels.

    16-bit values are scaled down; one channel becomes grey; of more than three, the first three
    are shown.
    """
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2 or image.shape[2] < 3:
        grey = image if image.ndim == 2 else image[..., 0]
        return np.repeat(grey[..., None], 3, axis=2)
    return np.array(image[..., :3], dtype=np.uint8, order="C")


def fitted_line(shape: Sequence[int], line_width: float | None = None) -> int:
    """Return a line width in pixels for a picture of this (h, w)."""
    return max(1, round(line_width or min(shape[:2]) / 220))


def fitted_letters(
    shape: Sequence[int], font_size: float | None = None, font: str | None = None
) -> Lettering:
    """Return letters for a picture of this (h, w): legible in small ones, modest in large ones."""
    side = min(shape[:2])
    px = font_size or max(7.0, 0.24 * math.sqrt(side) + side / 90)
    return Lettering(max(round(px), 4), font)


def fitted_radius(shape: Sequence[int], xy: np.ndarray) -> float:
    """Return a radius in pixels for keypoints (K, 2) that neither fill a small figure nor vanish.

    Args:
        shape: (h, w) of the picture.
        xy: the keypoints that are drawn.
    """
    most = 5 * math.sqrt(max(0.1, min(shape[:2]) / 640))
    return most if len(xy) < 2 else min(most, float(np.ptp(xy, axis=0).max()) / (2 * len(xy)))


def draw_marks(
    image: np.ndarray,
    marks: Marks,
    names: Mapping[int, str],
    *,
    show_conf: bool = True,
    show_labels: bool = True,
    show_boxes: bool = True,
    show_masks: bool = True,
    line_width: float | None = None,
    font_size: float | None = None,
    font: str | None = None,
    kpt_radius: float | None = None,
    kpt_line: bool = True,
    color_mode: str = "class",
    txt_color: Color | None = None,
) -> np.ndarray:
    """Draw onto `image` (H, W, 3) uint8, in place, and return it. Options as in `Results.plot`."""
    line = fitted_line(image.shape, line_width)
    if line_width is None and len(marks):
        line = max(1, min(line, round(_typical_side(marks) / 10)))
    by_class = color_mode != "instance"
    instances = marks.ids if marks.ids is not None else np.arange(len(marks))
    colors = [color_of(int(i)) for i in (marks.classes if by_class else instances)]
    # The surest object last, so that it lies on top.
    order = range(len(marks)) if marks.conf is None else np.argsort(marks.conf, kind="stable")
    if show_masks and marks.mask is not None:
        for i in order:
            _fill_mask(image, marks.mask(int(i)), colors[i], line)
    if show_boxes:
        for i in order:
            _outline(image, marks, int(i), colors[i], line)
    if show_boxes and show_labels:
        letters = fitted_letters(image.shape, font_size, font)
        if font_size is None and len(marks) > _CROWD:
            small = max(_SMALL_LETTERS, round(_typical_side(marks) / 3))
            letters = replace(letters, px=min(letters.px, small))
        taken: list[tuple[int, int, int, int]] = []
        room = _LABELLED * image.shape[0] * image.shape[1]
        for i in list(order)[::-1]:
            if sum((c - a) * (d - b) for a, b, c, d in taken) > room:
                break
            text = _label(marks, int(i), names, show_conf)
            box = marks.boxes[i] if marks.corners is None else _label_box(marks.corners[i])
            _draw_label(image, text, box, colors[i], letters, line, taken, txt_color)
    if marks.keypoints is not None:  # over the labels: a point is small, a hidden one is lost
        for points in marks.keypoints:
            _draw_keypoints(image, points, kpt_radius, line, kpt_line)
    return image


def _label(marks: Marks, i: int, names: Mapping[int, str], show_conf: bool) -> str:
    class_id = int(marks.classes[i])
    text = str(names.get(class_id, class_id))
    if marks.ids is not None:
        text = f"id:{int(marks.ids[i])} {text}"
    return f"{text} {marks.conf[i]:.2f}" if show_conf and marks.conf is not None else text


def _typical_side(marks: Marks) -> float:
    """Return the median of the objects' shorter sides, pixels."""
    if marks.corners is not None:
        sides = np.linalg.norm(marks.corners[:, 1:3] - marks.corners[:, :2], axis=2)
    else:
        sides = marks.boxes[:, 2:] - marks.boxes[:, :2]
    return float(np.median(sides.min(axis=1)))


def _label_box(corners: np.ndarray) -> np.ndarray:
    """Return the corner of a rotated box where a label goes, and the opposite one: x1 y1 x2 y2.

    It is the highest; of two that are about as high, the left one.
    """
    x, y = corners.T
    place = int((y + x / 2).argmin())
    return np.concatenate([corners[place], corners[(place + 2) % 4]])


def _outline(image: np.ndarray, marks: Marks, i: int, color: Color, line: int) -> None:
    if marks.corners is not None:
        corners = np.rint((marks.corners[i] - 0.5) * 16).astype(np.int32)  # 1/16 px, pixel middles
        cv2.polylines(image, [corners], True, color, line, cv2.LINE_AA, shift=4)
        return
    height, width = image.shape[:2]
    # The line lies inside the picture even where the box ends at its border.
    inset = line // 2
    limit = np.array([width, height] * 2) - 1 - inset
    x1, y1, x2, y2 = np.rint(marks.boxes[i]).clip(inset, np.maximum(limit, inset)).astype(int)
    cv2.rectangle(image, (int(x1), int(y1)), (int(x2), int(y2)), color, line, cv2.LINE_AA)


def _fill_mask(image: np.ndarray, mask: np.ndarray, color: Color, line: int) -> None:
    """Tint the masked pixels and trace their border; only the mask's own rectangle is touched."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    inside, area = mask[window], image[window]
    tint = area[inside] * (1 - _MASK_OPACITY) + np.asarray(color, np.float32) * _MASK_OPACITY
    area[inside] = np.rint(tint).astype(np.uint8)
    edges = cv2.findContours(
        np.ascontiguousarray(inside).view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )[-2]
    offset = (int(columns[0]), int(rows[0]))
    cv2.drawContours(image, edges, -1, color, max(1, line // 2), cv2.LINE_AA, offset=offset)


def _draw_keypoints(
    image: np.ndarray, points: np.ndarray, kpt_radius: float | None, line: int, limbs: bool
) -> None:
    """Draw (K, 2 or 3) keypoints, those that are visible, and the skeleton of 17."""
    height, width = image.shape[:2]
    xy = points[:, :2]
    seen = np.all((xy > 0) & (xy < [width, height]), axis=1)
    if points.shape[1] == 3:
        seen = seen & (points[:, 2] >= _VISIBLE)
    radius = max(1, round(kpt_radius or fitted_radius(image.shape, xy[seen])))
    line = min(line, radius)
    places = [(int(x), int(y)) for x, y in np.nan_to_num(xy)]
    if limbs and len(points) == 17:
        for n, (a, b) in enumerate(LIMBS):
            if seen[a] and seen[b]:
                color = color_of((0, 5, 2, 6)[(n > 3) + (n > 7) + (n > 11)])
                cv2.line(image, places[a], places[b], color, line, cv2.LINE_AA)
    for k, place in enumerate(places):
        if seen[k]:
            cv2.circle(image, place, radius, color_of(k), -1, cv2.LINE_AA)
            if radius > 2:
                cv2.circle(image, place, radius, (255, 255, 255), 1, cv2.LINE_AA)


def _draw_label(
    image: np.ndarray,
    text: str,
    box: np.ndarray,
    color: Color,
    letters: Lettering,
    line: int,
    taken: list[tuple[int, int, int, int]],
    txt_color: Color | None,
) -> None:
    """Write a label on its own background near a box, unless those in `taken` leave no room."""
    height, width = image.shape[:2]
    margin = max(1, letters.px // 4)
    text = letters.fit(text, width - 2 * margin)
    if not text:
        return
    text_w, text_h = letters.size(text)
    w, h = text_w + 2 * margin, text_h + margin
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    half = (line + 1) // 2
    spots = [
        (x1 - half, y1 - h),  # above the box
        (x1 - half, y1),  # inside, at the top
        (x1 - half, y2),  # below
        (x2 + half - w, y1 - h),  # above, at the right
        (x2 + half - w, y2 - h),  # inside, at the bottom right
    ]
    inside = [(min(max(x, 0), width - w), min(max(y, 0), max(height - h, 0))) for x, y in spots]
    if y1 - h < 0:  # no room above: the place inside comes first
        inside = inside[1:] + inside[:1]

    def overlap(spot: tuple[int, int]) -> float:
        """Sum what is shared with the other labels, as shares of the smaller label."""
        x, y = spot
        shared = 0.0
        for a, b, c, d in taken:
            area = max(0, min(x + w, c) - max(x, a)) * max(0, min(y + h, d) - max(y, b))
            shared += area / min(w * h, (c - a) * (d - b))
        return shared

    x, y = min(inside, key=overlap)  # the first of the best
    if overlap((x, y)) > _SHARED:
        return
    taken.append((x, y, x + w, y + h))
    cv2.rectangle(image, (x, y), (x + w - 1, y + h - 1), color, -1)
    letters.write(image, text, x + margin, y + margin, txt_color or ink_on(color))


def draw_probs(
    image: np.ndarray,
    lines: Sequence[tuple[str, float]],
    font_size: float | None = None,
    font: str | None = None,
) -> np.ndarray:
    """Write class probabilities, each with a bar below, into the top left corner, in place."""
    letters = fitted_letters(image.shape, font_size, font)
    margin = max(2, letters.px // 2)
    texts = [letters.fit(f"{p:.2f} {name}", image.shape[1] - 2 * margin) for name, p in lines]
    line = letters.size("Ag")[1]
    thick = max(2, letters.px // 4)
    row = line + thick + margin
    width = min(max([letters.size(t)[0] for t in texts], default=0) + 2 * margin, image.shape[1])
    panel = image[: row * len(texts) + margin, :width]
    panel[:] = np.rint(panel * 0.25 + np.asarray(PAPER, np.float32) * 0.75).astype(np.uint8)
    for i, (text, (_, p)) in enumerate(zip(texts, lines, strict=True)):
        top = margin + i * row
        letters.write(image, text, margin, top, (255, 255, 255))
        track = image[top + line : top + line + thick, margin : width - margin]
        track[:] = _TRACK
        track[:, : round(track.shape[1] * float(np.clip(p, 0, 1)))] = color_of(0)
    return image
