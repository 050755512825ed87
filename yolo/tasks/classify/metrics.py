# SPDX-License-Identifier: Apache-2.0
"""Metrics of classification: how often the true class is the first, or among the first five."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from yolo.engine.confusion import ConfusionMatrix
from yolo.engine.metrics import ImageRecord
from yolo.engine.table import Row, Table

FIRST = 5
MOST_ROWS = 50
"""Classes that the log's table lists one by one."""


class ClassifyMetrics(Table):
    """Accuracy, confusion matrix, times and tables of a validated classifier.

    A record's `found` holds the `FIRST` most probable classes, best first; its `truth` the class.

    Args:
        names: class names by id 0 .. C-1.
        save_dir: folder of the run.

    Attributes (after `process`; zero before):
        top1: share of the images whose most probable class is the true one.
        top5: share of those whose true class is among the five most probable.
        confusion_matrix: (C, C) counts, rows predicted, columns true.
        nt_per_class: (C,) images of each class.
        image_metrics: `top1` and `top5`, 0 or 1, by full image path.
        records: the images so far.
        speed: ms an image for preprocess, inference, loss and postprocess.
    """

    def __init__(self, names: dict[int, str], save_dir: str | Path = ".") -> None:
        self.names = dict(names)
        self.save_dir = Path(save_dir)
        self.records: list[ImageRecord] = []
        self.speed = dict.fromkeys(("preprocess", "inference", "loss", "postprocess"), 0.0)
        self.process()

    def update(self, record: ImageRecord) -> None:
        """Take one validated image."""
        self.records.append(record)

    def process(self) -> ClassifyMetrics:
        """Score all records; may be called again when more have come."""
        classes = len(self.names)
        truth = np.array([r.truth.classes[0] for r in self.records], dtype=np.int64)
        ranks = np.array([_rank(r) for r in self.records], dtype=np.int64)
        first = np.array([r.found.classes[0] for r in self.records], dtype=np.int64)
        self.confusion_matrix = ConfusionMatrix(self.names, background=False)
        np.add.at(self.confusion_matrix.matrix, (first, truth), 1)
        self.nt_per_class = np.bincount(truth, minlength=classes)
        counts = np.maximum(self.nt_per_class, 1)
        hits = [np.bincount(truth[ranks < k], minlength=classes) for k in (1, FIRST)]
        self._by_class = np.stack(hits, axis=1) / counts[:, None]
        whole = max(len(self.records), 1)
        self.top1, self.top5 = (float(h.sum() / whole) for h in hits)
        self.image_metrics = {
            record.path: {"top1": float(rank < 1), "top5": float(rank < FIRST)}
            for record, rank in zip(self.records, ranks.tolist(), strict=True)
        }
        return self

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

    @property
    def results_dict(self) -> dict[str, float]:
        """Mean results by key, and "fitness"."""
        return {**dict(zip(self.keys, self.mean_results(), strict=True)), "fitness": self.fitness}

    @property
    def curves(self) -> list[str]:
        """No curves belong to accuracy."""
        return []

    @property
    def curves_results(self) -> list[list[np.ndarray]]:
        """No curves belong to accuracy."""
        return []

    def summary(self, normalize: bool = True, decimals: int = 5) -> list[Row]:
        """Return one row with both accuracies; `normalize` is there for likeness."""
        return [{"top1_acc": round(self.top1, decimals), "top5_acc": round(self.top5, decimals)}]

    def table(self) -> str:
        """Return both accuracies as text, and those of each class where there are not too many."""
        rows = [("all", len(self.records), self.mean_results())]
        present = self.ap_class_index.tolist()
        if 1 < len(present) <= MOST_ROWS:
            rows += [
                (self.names[c], int(self.nt_per_class[c]), self._by_class[c].tolist())
                for c in present
            ]
        lines = [f"{'Class':>22}{'Images':>11}{'top1':>11}{'top5':>11}"]
        lines += [
            f"{name[:21]:>22}{images:>11}{top1:>11.3g}{top5:>11.3g}"
            for name, images, (top1, top5) in rows
        ]
        return "\n".join(lines)

    def plot(self, save_dir: str | Path | None = None) -> list[Path]:
        """Draw both confusion matrices into `save_dir`."""
        folder = Path(self.save_dir if save_dir is None else save_dir)
        return [self.confusion_matrix.plot(folder, norm) for norm in (False, True)]


def _rank(record: ImageRecord) -> int:
    """Return the place of the true class among those found, `FIRST` if it isn't there."""
    places = np.flatnonzero(record.found.classes[:FIRST] == record.truth.classes[0])
    return int(places[0]) if len(places) else FIRST
