# SPDX-License-Identifier: Apache-2.0
"""An exported file proves itself: its runtime must compute what torch does.

Compared are all raw outputs, and the boxes after suppression, on drawn scenes. Where the file
suppresses boxes itself, its rows are judged by torch's predictions (`yolo.export.matching`). Units:
"px", "score", "rad", and "value", which is relative to numbers larger than 1.

Shapes: B images, A anchor points, C classes, E further values, n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from yolo.engine.nms import non_max_suppression
from yolo.errors import ExportError
from yolo.export.matching import judge

if TYPE_CHECKING:
    from yolo.export.graph import ExportGraph
    from yolo.tasks.spec import Outputs

MIN_BOXES = 20
"""Boxes over all images that a comparison needs; else the threshold is lowered."""


@dataclass(frozen=True)
class Bounds:
    """How far a file may be from torch.

    Attributes:
        px, score, rad, value: largest difference by unit.
        share: of the numbers, and of the boxes, that must keep to them.
        slack: how far an overlap may be from the threshold and be on either side of it.
    """

    px: float = 0.5
    score: float = 1e-3
    rad: float = 1e-3
    value: float = 1e-3
    share: float = 1.0
    slack: float = 0.02


BOUNDS = {
    "fp32": Bounds(),
    "fp16": Bounds(px=2.0, score=1e-2, rad=2e-2, value=2e-2, share=0.99, slack=0.05),
    "int8": Bounds(px=8.0, score=0.05, rad=0.1, value=0.2, share=0.9, slack=0.2),
}
"""By precision. Those of fp32 are a promise; the others allow for more than was measured, by
onnxruntime 1.31 and OpenVINO 2026.4, of trained yolov8n detectors and segmenters at 256 px:

    fp16, all anchors            0.9 px (99 %: 0.28)     8e-4 score    9e-3 value
    int8, all anchors            53 px (99 %: 12)        1.7e-2 score  0.57 value (99 %: 0.12)
    int8, scores over 0.05       2.7 px (99 %: 1.3)      1.7e-2 score

Angles weren't measured. Unsure boxes differ most, so int8 is given 10 % of the numbers.
"""


@dataclass(frozen=True)
class Rules:
    """How outputs are to be read.

    Attributes:
        layout: what the network gives.
        nc: C.
        kpt_numbers: of each keypoint, or None.
        nms: the first output is finished rows.
        opaque: a user's own module made the outputs: they are plain numbers.
        conf: score floor, of `nms` or to begin with.
        iou: overlap at which a box goes, in the file or in the comparison.
        max_det: rows of `nms`.
        candidates: the surest boxes that `nms` looks at.
        agnostic: suppression doesn't look at classes.
        bounds: how far a file may be from torch.
    """

    layout: Outputs
    nc: int
    kpt_numbers: int | None = None
    nms: bool = False
    opaque: bool = False
    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    candidates: int = 30000
    agnostic: bool = False
    bounds: Bounds = field(default_factory=Bounds)

    @property
    def boxes(self) -> bool:
        """Whether the first output is boxes."""
        return self.layout.boxes and not self.opaque

    def units(self, count: int) -> list[str]:
        """Return the units of `count` numbers of a raw prediction."""
        if not self.layout.boxes:
            return ["score"] * count
        return ["px"] * 4 + ["score"] * self.nc + self.further(count - 4 - self.nc)

    def further(self, count: int) -> list[str]:
        """Return the units of the E further values."""
        cycle = self.layout.extra[: self.kpt_numbers] or ("value",)
        return [cycle[i % len(cycle)] for i in range(count)]

    def limits(self, rows: np.ndarray) -> np.ndarray:
        """Return how far the numbers of rows (n, 6 + E) may be apart."""
        units = ["px"] * 4 + ["score", "class"] + self.further(rows.shape[1] - 6)
        limits = np.array([getattr(self.bounds, unit, 0.5) for unit in units])  # classes are whole
        relative = [unit == "value" for unit in units]
        return limits * np.where(relative, np.abs(rows).clip(1), 1)

    def kept(self, predictions: np.ndarray, conf: float) -> np.ndarray:
        """Return what stays (n, 6 + E) of an image's predictions (4 + C + E, A)."""
        (rows,) = non_max_suppression(
            predictions[None],
            conf=conf,
            iou=self.iou,
            nc=self.nc,
            agnostic=self.agnostic,
            max_det=predictions.shape[1],
            rotated=self.layout.rotated,
        )
        return np.asarray(rows)


@dataclass
class Agreement:
    """What a comparison found.

    Attributes:
        images: how many were run.
        worst: largest difference by unit.
        boxes: how many were compared.
        matched: how many of them torch and the file have both.
        conf: score floor of those boxes.
        faults: what doesn't keep to the bounds.
    """

    images: int = 0
    worst: dict[str, float] = field(default_factory=dict)
    boxes: int = 0
    matched: int = 0
    conf: float = 0.0
    faults: list[str] = field(default_factory=list)

    def note(self, unit: str, difference: float) -> None:
        """Remember a difference if it is the largest of its unit."""
        self.worst[unit] = max(self.worst.get(unit, 0.0), difference)

    def join(self, other: Agreement) -> None:
        """Take over what a further comparison found, and its boxes if they are more."""
        for unit, difference in other.worst.items():
            self.note(unit, difference)
        if other.boxes > self.boxes:
            self.boxes, self.matched, self.conf = other.boxes, other.matched, other.conf

    def __str__(self) -> str:
        worst = ", ".join(f"{unit} {value:.2g}" for unit, value in self.worst.items())
        text = f"{self.images} images, largest differences from torch: {worst or 'none'}"
        if self.boxes:
            text += f"; {self.matched} of {self.boxes} boxes over {self.conf:.2g} agree"
        return text


@dataclass(frozen=True)
class Expected:
    """What torch computes for one input.

    Attributes:
        outputs: of the graph.
        predictions: (B, 4 + C + E, A) of the network, where it gives boxes.
        candidates: (B, A, 6 + E) the same as rows.
        restored: (B, A, 6 + E) the same as they would come out of the graph.
    """

    outputs: list[np.ndarray]
    predictions: np.ndarray
    candidates: np.ndarray
    restored: np.ndarray


Run = Callable[[np.ndarray], Sequence[np.ndarray]]


def prove(graph: ExportGraph, run: Run, inputs: Sequence[np.ndarray], rules: Rules) -> Agreement:
    """Compare a file with the graph it was made from.

    Args:
        graph: in float32.
        run: runs the file on one input.
        inputs: what to run it on, each with its own shape.
        rules: how the outputs are to be read.

    Returns:
        The largest differences.

    Raises:
        ExportError: if the file doesn't keep to the bounds, with the worst case.
    """
    found = Agreement()
    wanted, given = [], []
    for x in inputs:
        mine, theirs = expected(graph, x, rules), [np.asarray(output) for output in run(x)]
        shapes = [a.shape for a in mine.outputs], [b.shape for b in theirs]
        if shapes[0] != shapes[1]:
            raise ExportError(f"for an input {x.shape} it gives {shapes[1]}, torch {shapes[0]}")
        found.images += len(x) if x.ndim == 4 else 1
        for i, (a, b) in enumerate(zip(mine.outputs, theirs, strict=True)):
            if i or not (rules.boxes and rules.nms):
                _compare(a, b, i, rules, found)
        wanted.append(mine)
        given.append(theirs[0])
    if rules.boxes:
        _compare_boxes(wanted, given, rules, found)
    if found.faults:
        raise ExportError("; ".join(found.faults))
    return found


def expected(graph: ExportGraph, x: np.ndarray, rules: Rules) -> Expected:
    """Return what torch computes."""
    at = next(graph.parameters(), torch.empty(0)).device
    with torch.no_grad():
        found, state = graph.predictions(torch.from_numpy(x).to(at))
        outputs: Any = [output.cpu().numpy() for output in graph.finish(found, state)]
        none = np.empty(0)
        if not rules.boxes:
            return Expected(outputs, none, none, none)
        rows = restored = _as_rows(found[0], rules)
        if hasattr(graph.preprocess, "restore"):
            restored = graph.preprocess.restore((rows,), state)[0]
    return Expected(outputs, *(tensor.cpu().numpy() for tensor in (found[0], rows, restored)))


def _as_rows(predictions: Tensor, rules: Rules) -> Tensor:
    """Turn predictions (B, 4 + C + E, A) into rows (B, A, 6 + E), as a suppression gives them."""
    boxes, scores = predictions[:, :4], predictions[:, 4 : 4 + rules.nc]
    if not rules.layout.rotated:
        half = boxes[:, 2:] * 0.5
        boxes = torch.cat((boxes[:, :2] - half, boxes[:, :2] + half), 1)
    best, labels = scores.max(1, keepdim=True)
    return torch.cat((boxes, best, labels.to(best.dtype), predictions[:, 4 + rules.nc :]), 1).mT


def floor_of(predictions: Sequence[np.ndarray], rules: Rules) -> float:
    """Return a score floor, at most `rules.conf`, over which enough boxes stay.

    It lies in the middle of a gap between scores, so that rounding takes no box over it.

    Args:
        predictions: (4 + C + E, A) of each image.
        rules: how they are to be read.
    """
    scores = np.concatenate([p[4 : 4 + rules.nc].max(0) for p in predictions])
    floor = rules.conf
    while floor > 1e-9 and sum(len(rules.kept(p, floor)) for p in predictions) < MIN_BOXES:
        floor /= 2
    near = np.unique(scores[(scores > 0.8 * floor) & (scores <= floor)])
    if len(near) < 2:
        return floor
    widest = int(np.diff(near).argmax())
    return float(near[widest : widest + 2].mean())


def _compare(
    wanted: np.ndarray, given: np.ndarray, place: int, rules: Rules, found: Agreement
) -> None:
    """Compare all numbers of one output (B, numbers, ...)."""
    bounds = rules.bounds
    if wanted.dtype.kind != "f":
        if (wanted != given).mean() > 1 - bounds.share:
            found.faults.append(f"output{place} (whole numbers) differs from torch's")
        return
    plain = place > 0 or rules.opaque
    units = ["value"] if plain else rules.units(wanted.shape[1])
    difference = np.abs(given.astype(np.float64) - wanted)
    if not np.isfinite(difference).all():
        found.faults.append(f"output{place} isn't finite where torch's is, or the other way round")
        return
    for unit in dict.fromkeys(units):
        part, values = difference, wanted
        if not plain:
            columns = np.array(units) == unit
            part, values = difference[:, columns], wanted[:, columns]
        if unit == "value":
            part = part / np.abs(values).clip(1)
        worst, bound = float(part.max(initial=0)), getattr(bounds, unit)
        found.note(unit, worst)
        if part.size and (part <= bound).mean() < bounds.share:
            found.faults.append(
                f"output{place} differs from torch's by {worst:.3g} {unit}, allowed is {bound:g}"
                + (f" for all but {1 - bounds.share:.0%}" if bounds.share < 1 else "")
            )


def _compare_boxes(
    wanted: Sequence[Expected], given: Sequence[np.ndarray], rules: Rules, found: Agreement
) -> None:
    """Compare the boxes of each image after suppression."""
    bounds, found.conf = rules.bounds, rules.conf
    theirs = [image for output in given for image in output]
    # Scores were compared one by one, unless the file gives finished rows only.
    tie = bounds.score
    if rules.nms:
        theirs = [rows[rows[:, 4] > 0] for rows in theirs]
    else:
        found.conf = floor_of([p for mine in wanted for p in mine.predictions], rules)
        theirs = [rules.kept(p, found.conf) for p in theirs]
        tie = min(max(2 * found.worst.get("score", 0.0), 1e-6), tie)
    faults: list[tuple[float, str]] = []
    mine = [pair for e in wanted for pair in zip(e.candidates, e.restored, strict=True)]
    for image, ((candidates, restored), rows) in enumerate(zip(mine, theirs, strict=True)):
        order = candidates[:, 4].argsort()[::-1]
        over = order[candidates[order, 4] > found.conf - bounds.score][: rules.candidates]
        candidates, restored = candidates[over], restored[over]
        floor = found.conf
        if len(over) == rules.candidates:  # there may be others as sure as the last
            floor = max(floor, float(candidates[-1, 4]))
        if rules.nms and len(rows) == rules.max_det:
            floor = max(floor, float(rows[-1, 4]))
        judged = judge(
            rows,
            candidates,
            restored,
            rules.limits(rows),
            iou=rules.iou,
            slack=bounds.slack,
            tie=tie,
            floor=floor,
            rotated=rules.layout.rotated,
            agnostic=rules.agnostic,
        )
        partners = judged.places >= 0
        apart = np.abs(rows[partners] - restored[judged.places[partners]])
        found.note("px", float(apart[:, :4].max(initial=0)))
        found.note("score", float(apart[:, 4].max(initial=0)))
        found.boxes += len(rows) + len(judged.missing)
        found.matched += len(rows) - len(judged.wrong)
        sides = (("the file", rows[judged.wrong]), ("torch", restored[judged.missing]))
        for side, alone in sides:
            faults += [(float(row[4]), _told(image, side, row)) for row in alone]
    if len(faults) > (1 - bounds.share) * max(found.boxes, MIN_BOXES):
        faults.sort(key=lambda fault: -fault[0])
        found.faults += [text for _, text in faults[:3]]


def _told(image: int, side: str, row: np.ndarray) -> str:
    box = ", ".join(f"{value:.2f}" for value in row[:4])
    told = f"image {image}: {side} has a box [{box}] of class {row[5]:g} with score {row[4]:.4f}"
    return f"{told}, {'torch' if side == 'the file' else 'the file'} hasn't"
