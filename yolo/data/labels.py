# SPDX-License-Identifier: Apache-2.0
"""Rows of a label text file. n rows, N instances, K keypoints, D numbers a keypoint.

A `LabelFormat` says which rows a task reads and what they mean; `parse_labels` does what all
formats share. Rows become one matrix per row width, and every check is a mask over a matrix, so a
clean file costs a handful of array operations, and a bad row costs that row alone.

Numbers in a file are shares of the image's width and height; so are those of the `Instances` here,
until `to_pixels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from yolo.data.geometry import warp_boxes, warp_instances
from yolo.data.report import Problem as Problem
from yolo.data.sample import Instances

LOWEST, HIGHEST = -0.01, 1.01
"""A share may miss 0..1 by rounding; within these bounds it is clipped, beyond the row is bad."""

Fault = tuple[np.ndarray, str] | tuple[np.ndarray, str, str]
"""(n,) bool mask of bad rows, and the reason; `{row}` in it stands for the row's numbers. A third
entry is the finding's kind, "row" unless given; rows that are "odd" stay."""


@dataclass(frozen=True, slots=True)
class LabelRules:
    """What a dataset fixes for its rows.

    Attributes:
        num_classes: class ids are 0..num_classes-1; None: they aren't checked.
        kpt_shape: (K, D), or None where rows carry no keypoints.
    """

    num_classes: int | None
    kpt_shape: tuple[int, int] | None = None

    def known(self, ids: np.ndarray) -> np.ndarray:
        """Tell which class ids the dataset has."""
        most = np.inf if self.num_classes is None else self.num_classes
        return np.asarray((ids >= 0) & (ids < most))


@dataclass(slots=True)
class LabelledImage:
    """One usable image of a dataset and its objects.

    Attributes:
        path: absolute file name.
        shape: (h, w) after EXIF rotation.
        instances: the objects, in pixels.
        image_id: COCO's id of the image, or None.
        item: a sequence of Python objects and the image's place in it, or None for a file.
    """

    path: str
    shape: tuple[int, int]
    instances: Instances
    image_id: int | None = None
    item: tuple[Sequence[Any], int] | None = None


class LabelFormat(Protocol):
    """How a task reads label rows; a `TaskSpec` names one.

    Attributes:
        name: goes into the label cache's key; change it when the meaning of rows changes.
        kinds: optional `Instances` fields that this format fills ("polygons", "keypoints"...).
    """

    @property
    def name(self) -> str:
        """Name and version of the format."""

    @property
    def kinds(self) -> frozenset[str]:
        """Optional fields of `Instances` that `decode` always fills."""

    def expected(self, rules: LabelRules) -> str:
        """Say in words which columns a row has, for messages."""

    def accepts(self, columns: int, rules: LabelRules) -> bool:
        """Whether a row may have so many columns, the class included."""

    def faults(self, rows: np.ndarray, rules: LabelRules) -> Iterator[Fault]:
        """Check (n, columns) finite float64 rows of one width, class ids already checked."""

    def decode(self, rows: np.ndarray, rules: LabelRules) -> Instances:
        """Turn (n, columns) clean rows of one width into instances, in shares of the image."""


@dataclass(frozen=True, slots=True)
class BoxLabels:
    """Boxes: `c cx cy w h`; of polygon rows `c x1 y1 ... xn yn` and pose rows their boxes.

    A row of more than five columns is a pose row where the dataset has a kpt_shape, and otherwise
    the outline of at least three points. A box may spill over the image's edge and is kept so.
    """

    name: str = "boxes-1"
    kinds: frozenset[str] = frozenset()

    def expected(self, rules: LabelRules) -> str:
        """Say in words which columns a row has."""
        if rules.kpt_shape:
            return f"5 columns (class cx cy w h) or {_pose_columns(rules)} with keypoints"
        return "5 columns (class cx cy w h), or an odd number from 7 on (class x1 y1 ... xn yn)"

    def accepts(self, columns: int, rules: LabelRules) -> bool:
        """Whether a row may have so many columns."""
        if columns == 5:
            return True
        if rules.kpt_shape:
            return columns == _pose_columns(rules)
        return columns >= 7 and columns % 2 == 1

    def faults(self, rows: np.ndarray, rules: LabelRules) -> Iterator[Fault]:
        """Check coordinates and sizes."""
        if rows.shape[1] == 5 or rules.kpt_shape:
            yield from box_faults(rows[:, 1:5])
            return
        yield outside(rows[:, 1:])
        size = polygon_boxes(rows)
        flat = np.any(size[:, 2:] <= size[:, :2], axis=1)
        yield flat, "expected a polygon with an extent in both directions, found one without"

    def decode(self, rows: np.ndarray, rules: LabelRules) -> Instances:
        """Return the boxes, xyxy in shares of the image."""
        if rows.shape[1] == 5 or rules.kpt_shape:
            return Instances.from_boxes(rows[:, 0], corner_boxes(rows[:, 1:5]))
        return Instances.from_boxes(rows[:, 0], polygon_boxes(rows))


def parse_labels(
    data: bytes, file: str, label_format: LabelFormat, rules: LabelRules
) -> tuple[Instances, list[Problem]]:
    """Read one label file.

    Args:
        data: the file's bytes: UTF-8, a byte order mark and blank lines allowed.
        file: its name, for the findings.
        label_format: what the rows mean.
        rules: classes and keypoints of the dataset.

    Returns:
        The good rows' instances in the order of the file, coordinates in shares of the image; and
        a finding for each other row, in the order of the file.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        reason = "expected UTF-8 text, found UTF-16; save the file as UTF-8"
        return Instances.empty(), [Problem(file, 1, reason)]
    lines, rows, problems = _numbers(data.removeprefix(b"\xef\xbb\xbf"), file)
    parts: list[Instances] = []
    order: list[np.ndarray] = []
    for width in sorted(set(map(len, rows))):
        at = np.array([i for i, row in enumerate(rows) if len(row) == width])
        if not label_format.accepts(width, rules):
            reason = f"expected {label_format.expected(rules)}, found {width} columns"
            problems += [Problem(file, lines[i], reason) for i in at]
            continue
        table = np.array([rows[i] for i in at], dtype=np.float64)
        good, found = _check(table, label_format, rules)
        problems += [Problem(file, lines[at[i]], reason, kind) for i, reason, kind in found]
        if good.any():
            parts.append(label_format.decode(table[good], rules))
            order.append(at[good])
    problems.sort(key=lambda problem: problem.line)
    instances = parts[0] if parts else Instances.empty()
    if len(parts) > 1:
        instances = Instances.concatenate(parts).select(np.argsort(np.concatenate(order)))
    return instances, problems


def to_pixels(instances: Instances, shape: tuple[int, int]) -> Instances:
    """Scale instances from shares of the image to pixels.

    Args:
        instances: coordinates in 0..1.
        shape: (h, w) of the image.
    """
    height, width = shape
    matrix = np.diag([float(width), float(height), 1.0])
    # Labels may have boxes that aren't the bounds of their outlines, and keep them.
    boxes, area = warp_boxes(instances.boxes, matrix), instances.area * float(width * height)
    return replace(warp_instances(instances, matrix), boxes=boxes, area=area)


def corner_boxes(cxcywh: np.ndarray) -> np.ndarray:
    """Turn (n, 4) centre boxes, clipped to 0..1, into (n, 4) xyxy."""
    clipped = cxcywh.clip(0.0, 1.0)
    half = clipped[:, 2:] / 2
    return np.concatenate([clipped[:, :2] - half, clipped[:, :2] + half], axis=1)


def polygon_boxes(rows: np.ndarray) -> np.ndarray:
    """Return (n, 4) xyxy extents of (n, 1 + 2 points) polygon rows, clipped to 0..1."""
    points = rows[:, 1:].clip(0.0, 1.0).reshape(len(rows), -1, 2)
    return np.concatenate([points.min(1), points.max(1)], axis=1)


def box_faults(cxcywh: np.ndarray) -> Iterator[Fault]:
    """Check (n, 4) centre boxes in shares of the image."""
    yield np.any(cxcywh[:, 2:] < 0, axis=1), "expected a width and height above 0, found {row}"
    yield outside(cxcywh)
    empty = np.any(cxcywh[:, 2:] == 0, axis=1)
    yield empty, "expected a width and height above 0, found a zero: {row}"


def outside(shares: np.ndarray) -> Fault:
    """Find the (n, k) rows with a number too far outside 0..1."""
    mask = np.any((shares < LOWEST) | (shares > HIGHEST), axis=1)
    text = f"expected coordinates from 0 to 1 ({LOWEST} to {HIGHEST} is tolerated), found {{row}}"
    return mask, f"{text}; divide pixels by the image's width and height"


def _pose_columns(rules: LabelRules) -> int:
    assert rules.kpt_shape is not None
    return 5 + rules.kpt_shape[0] * rules.kpt_shape[1]


def _numbers(data: bytes, file: str) -> tuple[list[int], list[list[float]], list[Problem]]:
    """Split a file into rows of numbers and their 1-based lines; report rows that aren't."""
    lines: list[int] = []
    rows: list[list[float]] = []
    problems: list[Problem] = []
    for line, text in enumerate(data.splitlines(), 1):
        if words := text.split():
            try:
                rows.append([_number(word) for word in words])
                lines.append(line)
            except ValueError:
                problems.append(Problem(file, line, _not_numbers(text)))
    return lines, rows, problems


def _number(word: bytes) -> float:
    if b"_" in word:  # Python reads 1_0 as 10
        raise ValueError
    return float(word)


def _not_numbers(text: bytes) -> str:
    column = 0
    try:
        for column, word in enumerate(text.decode("utf-8").split(), 1):  # noqa: B007
            _number(word.encode())
    except UnicodeDecodeError as error:
        byte = text[error.start]
        return f"expected UTF-8 text, found byte 0x{byte:02x} at column {error.start + 1}"
    except ValueError:
        hint = "; separate columns by spaces" if {*word} & {*",;"} else ""
        return f"expected numbers, found {word[:40]!r} in column {column}{hint}"
    return "expected numbers separated by spaces"


def _check(
    table: np.ndarray, label_format: LabelFormat, rules: LabelRules
) -> tuple[np.ndarray, list[tuple[int, str, str]]]:
    """Find the good rows of an (n, columns) matrix.

    Returns:
        (n,) bool mask of good rows, and (row, reason, kind) for the others, each named once.
    """
    good = np.ones(len(table), dtype=bool)
    found: list[tuple[int, str, str]] = []
    for mask, reason, *kinds in _faults(table, label_format, rules):
        kind = kinds[0] if kinds else "row"
        for i in np.flatnonzero(mask & good).tolist():
            # replace, not format: reasons may hold braces of their own
            found.append((i, reason.replace("{row}", _show(table[i])), kind))
        if kind != "odd":
            good &= ~mask
    seen: dict[bytes, int] = {}
    for i in np.flatnonzero(good).tolist():
        if seen.setdefault(table[i].tobytes(), i) != i:
            good[i] = False
            found.append((i, "the same row stands further up", "duplicate"))
    return good, found


def _faults(table: np.ndarray, label_format: LabelFormat, rules: LabelRules) -> Iterator[Fault]:
    finite = np.isfinite(table).all(1)
    yield ~finite, "expected finite numbers, found {row}"
    safe = table if finite.all() else np.where(finite[:, None], table, 0.5)
    if rules.num_classes is not None:
        ids = safe[:, 0]
        yield ids != np.floor(ids), "expected a whole number as the class id, found {row}"
        yield (
            ~rules.known(ids),
            f"expected a class id from 0 to {rules.num_classes - 1}, found {{row}}; "
            "correct the row, or `names` in the dataset's YAML",
        )
    yield from label_format.faults(safe, rules)


def _show(row: np.ndarray, most: int = 9) -> str:
    text = " ".join(f"{value:g}" for value in row[:most])
    return f"'{text}{' ...' if len(row) > most else ''}'"
