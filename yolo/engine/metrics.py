# SPDX-License-Identifier: Apache-2.0
"""What a validation says: average precision, precision and recall curves, per-class tables.

Average precision is COCO's own number (`coco_eval`). Precision, recall and F1 belong to the
confidence at which the class mean of F1, smoothed, is largest, at overlap 0.5.

Shape letters: k classes that have labels, T 10 overlap thresholds, P 1000 confidences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolo.engine.coco_eval import (
    IOU_THRESHOLDS,
    RECALL_LEVELS,
    SIZES,
    CocoScores,
    Objects,
    coco_scores,
)
from yolo.engine.confusion import ConfusionMatrix, match
from yolo.engine.curves import CONFIDENCES, confidence_curves
from yolo.engine.overlaps import IouType, overlaps
from yolo.engine.table import Row, Table, aligned


@dataclass(slots=True)
class ImageRecord:
    """One validated image; plain arrays, so that ranks can send them to each other.

    Attributes:
        index: place in the dataset.
        image_id: id in predictions.json; records are scored in the order of these ids, as tools
            that read the file score them, so that equal confidences fall in the same order.
        path: full path of the image.
        shape: (h, w) of the original image.
        found: detections in original pixels.
        truth: labels in original pixels.
    """

    index: int
    image_id: int | str
    path: str
    shape: tuple[int, int]
    found: Objects
    truth: Objects


class PartMetrics:
    """Scores of one kind of output: boxes, masks or poses.

    Args:
        letter: suffix of the keys, "B" for boxes, "M" for masks, "P" for poses.
        title: what tables and file names call it, "Box".
        iou_type: how COCO compares it.
        sigmas: (K,) keypoint spreads, for poses.

    Attributes (after `compute`; all empty or zero before):
        p, r, f1: (k,) at `confidence`, overlap 0.5.
        confidence: where the class mean of F1, smoothed, is largest; a fair `conf` to predict with.
        all_ap: (k, T) COCO's average precision; ap, ap50: (k,).
        ap_class_index: (k,) ids of the classes that have labels.
        px: (P,) confidences of p_curve, r_curve, f1_curve (k, P); for prec_values (k, P), the
            precision-recall curve at overlap 0.5, px is the recall.
        coco: COCO's arrays; its `stats` are the familiar twelve numbers.
        image_metrics: counts at confidence 0.25 and overlap 0.5 by full image path.
    """

    def __init__(
        self,
        letter: str = "B",
        title: str = "Box",
        iou_type: IouType = "bbox",
        sigmas: np.ndarray | None = None,
    ) -> None:
        self.letter, self.title, self.iou_type, self.sigmas = letter, title, iou_type, sigmas
        self.nc = 0
        self.px = CONFIDENCES
        self.coco: CocoScores | None = None
        self.all_ap = np.zeros((0, len(IOU_THRESHOLDS)))
        self.p = self.r = self.f1 = np.zeros(0)
        self.confidence = 0.0
        self.ap_class_index = np.zeros(0, dtype=np.int64)
        self.p_curve = self.r_curve = self.f1_curve = np.zeros((0, len(CONFIDENCES)))
        self.prec_values = self.p_curve
        self.image_metrics: dict[str, dict[str, float]] = {}

    def overlap(self, record: ImageRecord) -> np.ndarray:
        """Compare the record's detections and labels, (N, M); a task may compare otherwise."""
        return overlaps(record.found, record.truth, self.iou_type, self.sigmas)

    def score(self, records: Sequence[ImageRecord], num_classes: int) -> CocoScores:
        """Return COCO's scores; a task may score otherwise."""
        return coco_scores(
            [r.truth for r in records],
            [r.found for r in records],
            num_classes,
            self.iou_type,
            self.sigmas,
        )

    def compute(self, records: Sequence[ImageRecord], num_classes: int) -> None:
        """Score all images and fill the attributes."""
        self.nc = num_classes
        hits = [self._hits(record) for record in records]
        curves = confidence_curves(
            _join([h[0] for h in hits], bool),
            _join([h[1] for h in hits], float),
            _join([h[2] for h in hits], np.int64),
            _join([r.truth.classes[~self._excused(r)] for r in records], np.int64),
        )
        self.coco = self.score(records, num_classes)
        self.ap_class_index = curves.classes
        self.all_ap = np.nan_to_num(self.coco.ap[:, curves.classes].T)
        self.p_curve, self.r_curve, self.f1_curve = curves.precision, curves.recall, curves.f1
        self.p, self.r, self.f1 = (
            c[:, curves.best] for c in (curves.precision, curves.recall, curves.f1)
        )
        self.confidence = float(self.px[curves.best])
        at50 = self.coco.precision[0, :, curves.classes, 0].reshape(-1, len(RECALL_LEVELS))
        interpolated = [np.interp(self.px, RECALL_LEVELS, row) for row in at50]
        self.prec_values = np.array(interpolated).reshape(-1, len(self.px))
        self.image_metrics = {
            r.path: _image_counts(h[0], h[1], int((~self._excused(r)).sum()))
            for r, h in zip(records, hits, strict=True)
        }

    def _hits(self, record: ImageRecord) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (correct, score, class) of the detections that count, at overlap 0.5.

        A detection without a label but on an excused object of its class is neither right nor
        wrong.
        """
        found, truth = record.found, record.truth
        overlap, crowd = self.overlap(record), self._excused(record)
        pairs = match(overlap[:, ~crowd], found.classes, truth.classes[~crowd], IOU_THRESHOLDS[:1])
        correct = pairs[:, 0] >= 0
        excused = (overlap[:, crowd] >= IOU_THRESHOLDS[0]) & (
            found.classes[:, None] == truth.classes[crowd]
        )
        kept = correct | ~excused.any(axis=1)
        assert found.scores is not None
        return correct[kept], found.scores[kept], found.classes[kept]

    def _excused(self, record: ImageRecord) -> np.ndarray:
        """Return (M,) bool: labels that need not be found."""
        return record.truth.excused(self.iou_type)

    @property
    def ap(self) -> np.ndarray:
        """(k,) average precision over overlaps 0.50 to 0.95."""
        return np.asarray(self.all_ap.mean(axis=1))

    @property
    def ap50(self) -> np.ndarray:
        """(k,) average precision at overlap 0.50."""
        return self.all_ap[:, 0]

    @property
    def map(self) -> float:
        """Mean of `ap`; 0 when nothing is labelled."""
        return _mean(self.ap)

    @property
    def map50(self) -> float:
        """Mean average precision at overlap 0.50."""
        return _mean(self.ap50)

    @property
    def map75(self) -> float:
        """Mean average precision at overlap 0.75."""
        return _mean(self.all_ap[:, 5])

    @property
    def mp(self) -> float:
        """Mean precision."""
        return _mean(self.p)

    @property
    def mr(self) -> float:
        """Mean recall."""
        return _mean(self.r)

    @property
    def by_size(self) -> dict[str, float]:
        """Average precision of small, medium and large objects; NaN where there are none."""
        values = dict.fromkeys(SIZES, np.nan)
        if self.coco is not None:
            means = {name: self.coco.mean_precision(name) for name in self.coco.sizes[1:]}
            values.update({name: mean for name, mean in means.items() if mean > -1})
        return values

    @property
    def maps(self) -> np.ndarray:
        """(C,) average precision by class id; classes without labels have the mean."""
        values = np.full(self.nc, self.map)
        values[self.ap_class_index] = self.ap
        return values

    @property
    def fitness(self) -> float:
        """COCO's average precision."""
        return self.map

    @property
    def keys(self) -> list[str]:
        """Names of `mean_results` in results.csv."""
        names = ("precision", "recall", "mAP50", "mAP50-95")
        return [f"metrics/{name}({self.letter})" for name in names]

    def mean_results(self) -> list[float]:
        """Return [mp, mr, map50, map]."""
        return [self.mp, self.mr, self.map50, self.map]

    def class_result(self, i: int) -> tuple[float, float, float, float]:
        """Return p, r, ap50 and ap of the i-th class that has labels."""
        return float(self.p[i]), float(self.r[i]), float(self.ap50[i]), float(self.ap[i])

    @property
    def curves(self) -> list[str]:
        """Names of `curves_results`."""
        names = ("Precision-Recall", "F1-Confidence", "Precision-Confidence", "Recall-Confidence")
        return [f"{name}({self.letter})" for name in names]

    @property
    def curves_results(self) -> list[list[Any]]:
        """[x, y, name of x, name of y] of each curve; y has a row a class with labels."""
        return [
            [self.px, self.prec_values, "Recall", "Precision"],
            [self.px, self.f1_curve, "Confidence", "F1"],
            [self.px, self.p_curve, "Confidence", "Precision"],
            [self.px, self.r_curve, "Confidence", "Recall"],
        ]


def _join(arrays: Iterable[np.ndarray], dtype: Any) -> np.ndarray:
    """Concatenate, also when there is nothing."""
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype, copy=False)


def _mean(values: np.ndarray) -> float:
    """Average, 0 for nothing."""
    return float(values.mean()) if values.size else 0.0


def _image_counts(correct: np.ndarray, scores: np.ndarray, labels: int) -> dict[str, float]:
    """Count right, wrong and missed objects of one image at confidence 0.25."""
    kept = correct[scores > 0.25]
    tp = int(kept.sum())
    fp, fn = len(kept) - tp, labels - tp
    return {
        "precision": tp / max(tp + fp, 1),
        "recall": tp / max(labels, 1),
        "f1": 2 * tp / max(2 * tp + fp + fn, 1),
        "tp": tp,
        "fp": fp,
        "fn": fn,
    }


class TaskMetrics(Table):
    """All scores of a validated task: its parts, the confusion matrix, times and tables.

    Records come in any order and from any rank; `process` sorts them, so that the numbers depend
    neither on batches nor on ranks.

    Args:
        names: class names by id 0 .. C-1.
        save_dir: folder of the run.
        sigmas: keypoint spreads, for tasks that compare keypoints.

    Attributes:
        records: the images so far.
        confusion_matrix: filled by `process`, always.
        speed: ms an image for preprocess, inference, loss and postprocess.
        nt_per_class: (C,) labels of each class; nt_per_image: (C,) images with such labels.
    """

    def __init__(
        self,
        names: dict[int, str],
        save_dir: str | Path = ".",
        sigmas: np.ndarray | None = None,
    ) -> None:
        self.names = dict(names)
        self.save_dir = Path(save_dir)
        self.records: list[ImageRecord] = []
        self.confusion_matrix = ConfusionMatrix(self.names)
        self.speed = dict.fromkeys(("preprocess", "inference", "loss", "postprocess"), 0.0)
        self.nt_per_class = np.zeros(len(self.names), dtype=np.int64)
        self.nt_per_image = np.zeros(len(self.names), dtype=np.int64)
        self.parts = self.make_parts(sigmas)

    def make_parts(self, sigmas: np.ndarray | None) -> tuple[PartMetrics, ...]:
        """Return the task's parts; the first one's overlaps fill the confusion matrix."""
        raise NotImplementedError(f"{type(self).__name__} must name its parts")

    def update(self, record: ImageRecord) -> None:
        """Take one validated image."""
        self.records.append(record)

    def process(self) -> TaskMetrics:
        """Score all records; may be called again when more have come."""
        self.records.sort(key=lambda r: (isinstance(r.image_id, str), r.image_id))
        self.confusion_matrix = ConfusionMatrix(self.names)
        self.nt_per_class[:] = self.nt_per_image[:] = 0
        for record in self.records:
            self.confusion_matrix.update(record.found, record.truth, self.parts[0].overlap(record))
            counts = np.bincount(
                record.truth.classes[~record.truth.crowd], minlength=len(self.names)
            )
            self.nt_per_class += counts
            self.nt_per_image += counts > 0
        for part in self.parts:
            part.compute(self.records, len(self.names))
        return self

    @property
    def keys(self) -> list[str]:
        """Names of the mean results, part by part."""
        return [key for part in self.parts for key in part.keys]

    def mean_results(self) -> list[float]:
        """Return the values of `keys`."""
        return [value for part in self.parts for value in part.mean_results()]

    def class_result(self, i: int) -> tuple[float, ...]:
        """Return p, r, ap50, ap of each part for the i-th class that has labels."""
        return tuple(value for part in self.parts for value in part.class_result(i))

    @property
    def fitness(self) -> float:
        """Sum of the parts' average precision."""
        return sum(part.fitness for part in self.parts)

    @property
    def maps(self) -> np.ndarray:
        """(C,) average precision by class id, summed over parts."""
        return sum((part.maps for part in self.parts), start=np.zeros(len(self.names)))

    @property
    def ap_class_index(self) -> np.ndarray:
        """(k,) ids of the classes that have labels."""
        return self.parts[0].ap_class_index

    @property
    def results_dict(self) -> dict[str, float]:
        """Mean results by key, and "fitness"."""
        return {**dict(zip(self.keys, self.mean_results(), strict=True)), "fitness": self.fitness}

    @property
    def curves(self) -> list[str]:
        """Names of `curves_results`."""
        return [name for part in self.parts for name in part.curves]

    @property
    def curves_results(self) -> list[list[Any]]:
        """[x, y, name of x, name of y] of each curve."""
        return [curve for part in self.parts for curve in part.curves_results]

    @property
    def image_metrics(self) -> dict[str, dict[str, float]]:
        """Counts of the first part by full image path."""
        return self.parts[0].image_metrics

    def summary(self, normalize: bool = True, decimals: int = 5) -> list[Row]:
        """Return one dictionary a class that has labels; `normalize` is there for likeness."""
        rows = []
        for i, class_id in enumerate(self.ap_class_index.tolist()):
            row: Row = {
                "Class": self.names[class_id],
                "Images": int(self.nt_per_image[class_id]),
                "Instances": int(self.nt_per_class[class_id]),
            }
            for part in self.parts:
                for name, values in (("P", part.p), ("R", part.r), ("F1", part.f1)):
                    row[f"{part.title}-{name}"] = round(float(values[i]), decimals)
            first = self.parts[0].all_ap[i]
            row["mAP50"] = round(float(first[0]), decimals)
            row["mAP75"] = round(float(first[5]), decimals)
            row["mAP50-95"] = round(float(first.mean()), decimals)
            rows.append(row)
        return rows

    def table(self, per_class: bool = True) -> str:
        """Return the mean results and, where there are several classes, those of each, as text."""
        heads = [
            head for part in self.parts for head in (f"{part.title}(P", "R", "mAP50", "mAP50-95)")
        ]
        total = int(self.nt_per_class.sum())
        rows: list[list[Any]] = [
            ["Class", "Images", "Instances", *heads],
            ["all", len(self.records), total, *self.mean_results()],
        ]
        if per_class and len(self.ap_class_index) > 1:
            rows += [
                [
                    self.names[c],
                    int(self.nt_per_image[c]),
                    int(self.nt_per_class[c]),
                    *self.class_result(i),
                ]
                for i, c in enumerate(self.ap_class_index.tolist())
            ]
        return aligned(rows)

    def plot(self, save_dir: str | Path | None = None) -> list[Path]:
        """Draw the curves of each part and both confusion matrices into `save_dir`."""
        from yolo.engine.charts import plot_part_curves

        folder = Path(self.save_dir if save_dir is None else save_dir)
        files = [f for part in self.parts for f in plot_part_curves(part, self.names, folder)]
        return files + [self.confusion_matrix.plot(folder, norm) for norm in (False, True)]
