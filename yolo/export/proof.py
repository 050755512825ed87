# SPDX-License-Identifier: Apache-2.0
"""An exported file proves itself: its runtime must compute what torch does.

Compared are all raw outputs, and the boxes after suppression, on drawn scenes. Where the file
suppresses boxes itself, its rows are compared with torch's. Two boxes that are as sure as each
other may take each other's place: that is rounding, and no disagreement. Units: "px", "score",
"rad", and "value", which is relative to the largest number of the output (at least 1).

Shapes: B images, A anchor points, C classes, E further values, n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from yolo.engine.nms import non_max_suppression
from yolo.errors import ExportError
from yolo.export.matching import pair_rows

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
    """

    px: float = 0.5
    score: float = 1e-3
    rad: float = 1e-3
    value: float = 1e-3
    share: float = 1.0

    def of(self, unit: str) -> float:
        """Return the bound of a unit."""
        bound: float = getattr(self, unit)
        return bound


BOUNDS = {
    "fp32": Bounds(),
    "fp16": Bounds(px=2.0, score=2e-2, rad=2e-2, value=2e-2, share=0.99),
    "int8": Bounds(px=8.0, score=0.1, rad=0.1, value=0.2, share=0.9),
}


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
    agnostic: bool = False
    bounds: Bounds = field(default_factory=Bounds)

    def units(self, count: int) -> list[str]:
        """Return the units of `count` numbers of a prediction."""
        if not self.layout.boxes:
            return ["score"] * count
        head = ["px"] * 4 + (["score", "class"] if self.nms else ["score"] * self.nc)
        return head + self.further(count - len(head))

    def further(self, count: int) -> list[str]:
        """Return the units of the E further values."""
        cycle = self.layout.extra[: self.kpt_numbers]
        return [cycle[i % len(cycle)] if cycle else "value" for i in range(count)]


@dataclass
class Agreement:
    """What a comparison found.

    Attributes:
        images: how many were run.
        worst: largest difference by unit.
        boxes: how many torch found.
        matched: how many of them the file has, too, ties included.
        conf: score floor of those boxes.
        faults: what doesn't keep to the bounds, worst first.
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
    wanted: list[np.ndarray] = []
    given: list[np.ndarray] = []
    candidates: list[np.ndarray] = []
    boxes = rules.layout.boxes and not rules.opaque
    for x in inputs:
        mine, theirs = expected(graph, x), [np.asarray(output) for output in run(x)]
        shapes = [a.shape for a in mine], [b.shape for b in theirs]
        if shapes[0] != shapes[1]:
            raise ExportError(f"for an input {x.shape} it gives {shapes[1]}, torch {shapes[0]}")
        found.images += len(x) if x.ndim == 4 else 1
        for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            if i or not (boxes and rules.nms):
                _compare(a, b, i, rules, found)
        if boxes:
            candidates.extend(_candidates(graph, x, rules))
        wanted.extend(mine[0])
        given.extend(theirs[0])
    if boxes:
        _compare_boxes(wanted, given, candidates, rules, found)
    if found.faults:
        raise ExportError("; ".join(found.faults))
    return found


def expected(graph: ExportGraph, x: np.ndarray) -> list[np.ndarray]:
    """Return what torch computes."""
    at = next(graph.parameters(), torch.empty(0)).device
    with torch.no_grad():
        return [output.cpu().numpy() for output in graph(torch.from_numpy(x).to(at))]


def _candidates(graph: ExportGraph, x: np.ndarray, rules: Rules) -> list[np.ndarray]:
    """Return what there is before the suppression, as rows (A, 6 + E) of each image."""
    at = next(graph.parameters()).device
    with torch.no_grad():
        outputs, state = graph.predictions(torch.from_numpy(x).to(at))
        predictions = outputs[0]
        scores, labels = predictions[:, 4 : 4 + rules.nc].max(1, keepdim=True)
        parts = (predictions[:, :4], scores, labels.float(), predictions[:, 4 + rules.nc :])
        rows = torch.cat(parts, 1).mT
        if hasattr(graph.preprocess, "restore"):
            rows = graph.preprocess.restore((rows,), state)[0]
    return list(rows.cpu().numpy())


def floor_of(predictions: Sequence[np.ndarray], rules: Rules) -> float:
    """Return a score floor, at most `rules.conf`, over which enough boxes stay.

    It lies in the middle of a gap between scores, so that rounding takes no box over it.

    Args:
        predictions: (4 + C + E, A) of each image.
        rules: how they are to be read.
    """
    scores = np.concatenate([p[4 : 4 + rules.nc].max(0) for p in predictions])
    floor = rules.conf
    while floor > 1e-9 and sum(map(len, _rows(predictions, rules, floor))) < MIN_BOXES:
        floor /= 2
    near = np.unique(scores[(scores > 0.8 * floor) & (scores <= floor)])
    if len(near) < 2:
        return floor
    widest = int(np.diff(near).argmax())
    return float(near[widest : widest + 2].mean())


def _rows(predictions: Sequence[np.ndarray], rules: Rules, conf: float) -> list[np.ndarray]:
    """Return the rows (n, 6 + E) of each image that stay after suppression."""
    rows = []
    for p in predictions:
        (kept,) = non_max_suppression(
            p[None],
            conf=conf,
            iou=rules.iou,
            nc=rules.nc,
            agnostic=rules.agnostic,
            max_det=p.shape[1],
            rotated=rules.layout.rotated,
        )
        rows.append(kept)
    return rows


def _compare(
    wanted: np.ndarray, given: np.ndarray, place: int, rules: Rules, found: Agreement
) -> None:
    """Compare all numbers of one output (B, numbers, ...)."""
    if wanted.dtype.kind != "f":
        if (wanted != given).mean() > 1 - rules.bounds.share:
            found.faults.append(f"output{place} (whole numbers) differs from torch's")
        return
    plain = place > 0 or rules.opaque
    units = ["value"] if plain else rules.units(wanted.shape[1])
    difference = np.abs(given.astype(np.float64) - wanted)
    if not np.isfinite(difference).all():
        found.faults.append(f"output{place} isn't finite where torch's is, or the other way round")
        return
    for unit in dict.fromkeys(units):
        columns = [i for i, u in enumerate(units) if u == unit]
        part = difference if plain else difference[:, columns]
        if unit == "value":
            part = part / max(1.0, float(np.abs(wanted).max(initial=0)))
        worst, bound = float(part.max(initial=0)), rules.bounds.of(unit)
        found.note(unit, worst)
        within = float((part <= bound).mean()) if part.size else 1.0
        if within < rules.bounds.share:
            found.faults.append(
                f"output{place} differs from torch's by {worst:.3g} {unit}, allowed is {bound:g}"
                + (f" for all but {1 - rules.bounds.share:.0%}" if rules.bounds.share < 1 else "")
            )


def _compare_boxes(
    wanted: Sequence[np.ndarray],
    given: Sequence[np.ndarray],
    candidates: Sequence[np.ndarray],
    rules: Rules,
    found: Agreement,
) -> None:
    """Compare the boxes of each image after suppression."""
    if rules.nms:
        found.conf = rules.conf
        mine, theirs = ([rows[rows[:, 4] > 0] for rows in side] for side in (wanted, given))
    else:
        found.conf = floor_of(wanted, rules)
        mine, theirs = (_rows(side, rules, found.conf) for side in (wanted, given))
    # Scores were compared one by one, unless the file gives finished rows only.
    measured = rules.bounds.score if rules.nms else 2 * found.worst.get("score", 0.0)
    tie = min(max(measured, 1e-6), rules.bounds.score)
    faults: list[str] = []
    surplus = 0
    for image, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        units = ["px"] * 4 + ["score", "class"] + rules.further(a.shape[1] - 6)
        limits = np.array([0.0 if unit == "class" else rules.bounds.of(unit) for unit in units])
        relative = np.array([unit == "value" for unit in units])
        limits[relative] *= max(1.0, float(np.abs(a[:, relative]).max(initial=0)))
        paired = pair_rows(
            a,
            b,
            _over(candidates[image], found.conf - tie),
            limits,
            iou=rules.iou,
            tie=tie,
            floor=found.conf,
            limit=rules.max_det if rules.nms else None,
            rotated=rules.layout.rotated,
            agnostic=rules.agnostic,
        )
        apart = np.abs(a[paired.pairs[:, 0]] - b[paired.pairs[:, 1]])
        found.note("px", float(apart[:, :4].max(initial=0)))
        found.note("score", float(apart[:, 4].max(initial=0)))
        found.boxes += len(a)
        found.matched += len(a) - len(paired.mine)
        surplus += len(paired.theirs)
        faults += [f"image {image}: torch has {_told(a[i])}, the file hasn't" for i in paired.mine]
        faults += [
            f"image {image}: the file has {_told(b[i])}, torch hasn't" for i in paired.theirs
        ]
    allowed = (1 - rules.bounds.share) * max(found.boxes, MIN_BOXES)
    if max(found.boxes - found.matched, surplus) > allowed:
        found.faults += faults[:3]


def _over(rows: np.ndarray, floor: float) -> np.ndarray:
    return rows[rows[:, 4] > floor]


def _told(row: np.ndarray) -> str:
    box = ", ".join(f"{value:.2f}" for value in row[:4])
    return f"a box [{box}] of class {int(row[5])} with score {row[4]:.4f}"
