# SPDX-License-Identifier: Apache-2.0
"""Which detection belongs to which label, and the confusion matrix that follows from it.

Shape letters: N detections and M labels of one image, T overlap thresholds, C classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yolo.engine.table import Row, Table

if TYPE_CHECKING:
    from yolo.engine.coco_eval import Objects


def match(
    overlap: np.ndarray,
    found_classes: np.ndarray,
    true_classes: np.ndarray,
    thresholds: np.ndarray,
) -> np.ndarray:
    """Give each detection, the most confident first, the best label of its class still free.

    Args:
        overlap: (N, M) overlaps; rows in order of falling confidence.
        found_classes: (N,) class ids.
        true_classes: (M,) class ids.
        thresholds: (T,) overlaps from which a pair counts.

    Returns:
        (N, T) int64 index of the label, or -1.
    Source: the greedy rule of COCO's evaluation (arXiv:1405.0312).
    """
    taken = np.full((len(overlap), len(thresholds)), -1, dtype=np.int64)
    if not overlap.size:
        return taken
    possible = np.where(found_classes[:, None] == true_classes[None, :], overlap, -1.0)
    rows = np.flatnonzero(possible.max(axis=1) >= thresholds.min())
    for column, threshold in enumerate(thresholds):
        free = np.ones(len(true_classes), dtype=bool)
        for row in rows:
            candidates = np.where(free, possible[row], -1.0)
            best = int(candidates.argmax())
            if candidates[best] >= threshold:
                free[best] = False
                taken[row, column] = best
    return taken


def pair_by_overlap(overlap: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Pair detections and labels of any class one to one, the largest overlap first.

    Returns:
        (detection, label) pairs whose overlap is above `threshold`.
    """
    rows, columns = np.nonzero(overlap > threshold)
    order = np.argsort(-overlap[rows, columns], kind="stable")
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    pairs = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            pairs.append((row, column))
    return pairs


class ConfusionMatrix(Table):
    """Counts of predicted class by true class.

    Every label is counted once in the column of its class, every detection above `conf` once in
    the row of its class; what has no partner stands in the last row or column ("background").
    Detections that lie on a crowd region, and crowd regions themselves, are not counted.

    Args:
        names: class names by id 0 .. C-1.
        conf: detections at or below this confidence are left out.
        iou: pairs need an overlap above this.
        background: False where every image has one true and one predicted class.

    Attributes:
        matrix: (C + 1, C + 1) int64, rows predicted, columns true, background last; (C, C)
            without background.
    """

    def __init__(
        self,
        names: dict[int, str],
        conf: float = 0.25,
        iou: float = 0.45,
        background: bool = True,
    ) -> None:
        self.names, self.conf, self.iou, self.background = names, conf, iou, background
        side = len(names) + background
        self.matrix = np.zeros((side, side), dtype=np.int64)

    @property
    def labels(self) -> list[str]:
        """Names of rows and columns; the last is "background", or "nothing" if a class has it."""
        names = list(self.names.values())
        if not self.background:
            return names
        return [*names, "nothing" if "background" in names else "background"]

    def update(self, found: Objects, truth: Objects, overlap: np.ndarray) -> None:
        """Count one image.

        Args:
            found: (N) detections.
            truth: (M) labels.
            overlap: (N, M) overlaps of the two, over the detection's area for crowd regions.
        """
        background = len(self.names)
        crowd = truth.crowd
        scores = np.ones(len(found)) if found.scores is None else found.scores
        kept = scores > self.conf
        overlap = overlap[kept]
        found_classes, true_classes = found.classes[kept], truth.classes[~crowd]
        pairs = pair_by_overlap(overlap[:, ~crowd], self.iou)
        lone_found = np.ones(len(found_classes), dtype=bool)
        lone_truth = np.ones(len(true_classes), dtype=bool)
        for row, column in pairs:
            self.matrix[found_classes[row], true_classes[column]] += 1
            lone_found[row] = lone_truth[column] = False
        lone_found &= ~(overlap[:, crowd] > self.iou).any(axis=1)
        np.add.at(self.matrix[:, background], found_classes[lone_found], 1)
        np.add.at(self.matrix[background], true_classes[lone_truth], 1)

    def normalized(self) -> np.ndarray:
        """Return each column as shares of its sum; empty columns stay zero."""
        sums = np.maximum(self.matrix.sum(axis=0, keepdims=True), 1)
        return np.asarray(self.matrix / sums)

    def summary(self, normalize: bool = False, decimals: int = 5) -> list[Row]:
        """Return one dictionary a predicted class: "Predicted" and a count for each true class."""
        values = self.normalized().round(decimals) if normalize else self.matrix
        return [
            {"Predicted": name, **dict(zip(self.labels, row, strict=True))}
            for name, row in zip(self.labels, values.tolist(), strict=True)
        ]

    def plot(self, save_dir: str | Path = ".", normalize: bool = True) -> Path:
        """Draw the matrix into `save_dir`, as confusion_matrix[_normalized].png."""
        from yolo.engine.charts import plot_confusion_matrix

        file = Path(save_dir) / f"confusion_matrix{'_normalized' if normalize else ''}.png"
        values = self.normalized() if normalize else self.matrix
        return plot_confusion_matrix(values, self.labels, file)
