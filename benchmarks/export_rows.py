# SPDX-License-Identifier: Apache-2.0
"""Pair what two runtimes find in the same images, and say how far it is apart.

It shares no code with the library's own proof of exported files. A row is x1 y1 x2 y2 score class
and keypoints or the root of a mask's pixels; or cx cy w h score class angle; or a classifier's
probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from yolo.export.proof import Bounds

MIN_BOXES = 20

Rows = list[np.ndarray]
"""Of each image."""


@dataclass
class Finding:
    """What a comparison found; `boxes` counts images for classifiers."""

    task: str
    name: str
    bounds: Bounds = field(default_factory=Bounds)
    boxes: int = 0
    matched: int = 0
    surplus: int = 0
    px: float = 0.0
    score: float = 0.0
    conf: float = 0.0
    fault: str = ""
    proof: str = ""

    @property
    def agrees(self) -> bool:
        """Whether all numbers keep to the bounds, and enough boxes were compared."""
        missing = max(self.boxes - self.matched, self.surplus)
        return not self.fault and self.boxes > 0 and missing <= (1 - self.bounds.share) * self.boxes


def limits_of(spec: Any, count: int, bounds: Bounds) -> np.ndarray:
    """Return how far each number of a row may be from its partner's."""
    units = {"px": bounds.px, "score": bounds.score, "rad": bounds.rad, "value": bounds.px}
    cycle = spec.outputs.extra[: count - 6] if spec.outputs.extra else ()
    further = [units[cycle[i % len(cycle)]] for i in range(count - 6)]
    return np.array([bounds.px] * 4 + [bounds.score, 0.0, *further])


def paired(
    mine: np.ndarray, theirs: np.ndarray, limits: np.ndarray, floor: float
) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Pair rows, each with the nearest free one within the limits.

    Returns:
        The pairs, and how many rows of each side stay alone. A row whose score is as close to the
        floor as scores may be apart doesn't count: its partner may be below.
    """
    pairs: list[tuple[int, int]] = []
    free = list(range(len(theirs)))
    for i, row in enumerate(mine):
        apart = np.abs(theirs[free] - row)
        good = np.flatnonzero((apart <= limits).all(1))
        if len(good):
            pairs.append((i, free.pop(int(good[apart[good, :4].max(1).argmin()]))))
    left = set(range(len(mine))) - {i for i, _ in pairs}
    alone = [
        sum(rows[i, 4] > floor + limits[4] for i in places)
        for rows, places in ((mine, left), (theirs, free))
    ]
    return pairs, (int(alone[0]), int(alone[1]))


def compare(found: Finding, spec: Any, wanted: Rows, given: Rows) -> Finding:
    """Compare the rows of all images."""
    for mine, theirs in zip(wanted, given, strict=True):
        if not spec.outputs.boxes:
            found.boxes += 1
            apart = float(np.abs(mine - theirs).max())
            found.score = max(found.score, apart)
            found.matched += apart <= found.bounds.score
            continue
        count = mine.shape[1] if len(mine) else 6
        theirs = theirs.reshape(len(theirs), -1)[:, :count] if len(theirs) else mine[:0]
        pairs, alone = paired(mine, theirs, limits_of(spec, count, found.bounds), found.conf)
        found.boxes += len(mine)
        found.matched += len(mine) - alone[0]
        found.surplus += alone[1]
        if pairs:
            apart = np.abs(mine[[i for i, _ in pairs]] - theirs[[j for _, j in pairs]])
            found.px = max(found.px, float(apart[:, :4].max()))
            found.score = max(found.score, float(apart[:, 4].max()))
    return found


def rows_of(result: Any) -> np.ndarray:
    """Return one image's rows, as `benchmarks/peer_exports.py` says."""
    if result.probs is not None:
        return np.asarray(result.probs.data, dtype=np.float32)[None]
    if result.obb is not None:
        return np.asarray(result.obb.data, dtype=np.float32)[:, [0, 1, 2, 3, 5, 6, 4]]
    parts = [np.asarray(result.boxes.data)[:, :6]]
    if result.keypoints is not None and len(parts[0]):
        parts.append(np.asarray(result.keypoints.data).reshape(len(parts[0]), -1))
    if result.masks is not None and len(parts[0]):
        masks = np.asarray(result.masks.data) > 0
        parts.append(np.sqrt(masks.reshape(len(masks), -1).sum(1, keepdims=True)))
    return np.concatenate(parts, 1).astype(np.float32)


def floor_of(scores: np.ndarray) -> float:
    """Return a score floor, at most 0.25, that leaves enough boxes and lies in a gap."""
    ranked = np.sort(scores)[::-1]
    conf = min(0.25, float(ranked[min(MIN_BOXES, len(ranked) - 1)])) if len(ranked) else 0.25
    near = ranked[(ranked <= conf) & (ranked >= 0.7 * conf)]
    if len(near) < 2:
        return conf * 0.99
    widest = int(np.diff(near).argmin())
    return float(near[widest : widest + 2].mean())


def table(findings: Sequence[Finding]) -> str:
    """Return the findings as a Markdown table."""
    head = "| task | file | boxes | over | agree | worst px | worst score | |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for f in findings:
        verdict = "agrees" if f.agrees else f"**differs** {f.fault}".strip()
        lines.append(
            f"| {f.task} | {f.name} | {f.boxes} | {f.conf:.3f} | {f.matched} | {f.px:.1e} "
            f"| {f.score:.1e} | {verdict} |"
        )
    return "\n".join(lines)
