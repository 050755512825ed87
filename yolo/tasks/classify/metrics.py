# SPDX-License-Identifier: Apache-2.0
"""Metrics of classification: how often the true class is the first, or among the first five."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from yolo.engine.confusion import ConfusionMatrix
from yolo.engine.metrics import ImageRecord, PartMetrics, TaskMetrics
from yolo.engine.table import Row, aligned

FIRST = 5
MOST_ROWS = 50
"""Classes that the log's table lists one by one."""


class ClassifyMetrics(TaskMetrics):
    """Accuracy, confusion matrix, times and tables of a validated classifier.

    A record's `found` holds the `FIRST` most probable classes, best first; its `truth` the class.

    Attributes (after `process`; zero before):
        top1: share of the images whose most probable class is the true one.
        top5: share of those whose true class is among the five most probable.
        confusion_matrix: (C, C) counts, rows predicted, columns true.
        nt_per_class: (C,) images of each class.
    """

    def __init__(self, names: dict[int, str], save_dir: str | Path = ".") -> None:
        super().__init__(names, save_dir)
        self.process()

    def make_parts(self, sigmas: np.ndarray | None) -> tuple[PartMetrics, ...]:
        """Return no parts: nothing is found in an image."""
        return ()

    def process(self) -> ClassifyMetrics:
        """Score all records; may be called again when more have come."""
        classes = len(self.names)
        self._ranks = [_rank(record) for record in self.records]
        truth = np.array([r.truth.classes[0] for r in self.records], dtype=np.int64)
        ranks = np.array(self._ranks, dtype=np.int64)
        first = np.array([r.found.classes[0] for r in self.records], dtype=np.int64)
        self.confusion_matrix = ConfusionMatrix(self.names, background=False)
        np.add.at(self.confusion_matrix.matrix, (first, truth), 1)
        self.nt_per_class = self.nt_per_image = np.bincount(truth, minlength=classes)
        counts = np.maximum(self.nt_per_class, 1)
        hits = [np.bincount(truth[ranks < k], minlength=classes) for k in (1, FIRST)]
        self._by_class = np.stack(hits, axis=1) / counts[:, None]
        whole = max(len(self.records), 1)
        self.top1, self.top5 = (float(h.sum() / whole) for h in hits)
        return self

    @property
    def image_metrics(self) -> dict[str, dict[str, float]]:
        """`top1` and `top5`, 0 or 1, by full image path."""
        ranks = zip(self.records, self._ranks, strict=True)
        return {r.path: {"top1": float(n < 1), "top5": float(n < FIRST)} for r, n in ranks}

    @property
    def keys(self) -> list[str]:
        """Names of the mean results."""
        return ["metrics/accuracy_top1", "metrics/accuracy_top5"]

    def mean_results(self) -> list[float]:
        """Return [top1, top5]."""
        return [self.top1, self.top5]

    @property
    def ap_class_index(self) -> np.ndarray:
        """(k,) ids of the classes that have images."""
        return np.flatnonzero(self.nt_per_class)

    def class_result(self, i: int) -> tuple[float, float]:
        """Return top1 and top5 of the i-th class that has images."""
        top1, top5 = self._by_class[self.ap_class_index[i]].tolist()
        return top1, top5

    @property
    def fitness(self) -> float:
        """Mean of top1 and top5."""
        return (self.top1 + self.top5) / 2

    def summary(self, normalize: bool = True, decimals: int = 5) -> list[Row]:
        """Return one row with both accuracies; `normalize` is there for likeness."""
        return [{"top1_acc": round(self.top1, decimals), "top5_acc": round(self.top5, decimals)}]

    def table(self, per_class: bool = True) -> str:
        """Return both accuracies as text, and those of each class where there are not too many."""
        rows: list[list[Any]] = [
            ["Class", "Images", "top1", "top5"],
            ["all", len(self.records), *self.mean_results()],
        ]
        present = self.ap_class_index.tolist()
        if per_class and 1 < len(present) <= MOST_ROWS:
            rows += [
                [self.names[c], int(self.nt_per_class[c]), *self._by_class[c].tolist()]
                for c in present
            ]
        return aligned(rows)


def _rank(record: ImageRecord) -> int:
    """Return the place of the true class among those found, `FIRST` if it isn't there."""
    places = np.flatnonzero(record.found.classes[:FIRST] == record.truth.classes[0])
    return int(places[0]) if len(places) else FIRST
