# SPDX-License-Identifier: Apache-2.0
"""Precision, recall and F1 over the confidence threshold, at one overlap.

Shape letters: N detections and M labels of a whole set, k classes that have labels,
P 1000 confidences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CONFIDENCES = np.linspace(0.0, 1.0, 1000)
_TINY = 1e-16  # keeps empty quotients at zero


@dataclass(frozen=True)
class Curves:
    """Precision, recall and F1 over confidence, one row a class that has labels.

    Attributes:
        classes: (k,) class ids.
        precision, recall, f1: (k, P) values at CONFIDENCES.
        best: column at which the class mean of F1, smoothed over a tenth of the range, peaks.
    """

    classes: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    best: int


def confidence_curves(
    correct: np.ndarray, scores: np.ndarray, found_classes: np.ndarray, true_classes: np.ndarray
) -> Curves:
    """Sweep the confidence threshold over the detections of a whole set.

    Args:
        correct: (N,) bool, whether a detection has found a label.
        scores: (N,) confidence.
        found_classes: (N,) class ids of the detections.
        true_classes: (M,) class ids of the labels.

    Returns:
        The curves of the classes among `true_classes`, ascending.
    """
    classes, counts = np.unique(true_classes, return_counts=True)
    precision, recall = np.zeros((2, len(classes), len(CONFIDENCES)))
    order = np.argsort(-scores, kind="stable")
    correct, scores, found_classes = correct[order], scores[order], found_classes[order]
    for row, (class_id, count) in enumerate(zip(classes, counts, strict=True)):
        mine = found_classes == class_id
        if not mine.any():
            continue
        hits = np.cumsum(correct[mine])
        # Negated: interpolation wants rising abscissae. Above the highest score nothing is
        # found, which is no error (precision 1) and no success (recall 0).
        at = -scores[mine]
        precision[row] = np.interp(-CONFIDENCES, at, hits / np.arange(1, len(hits) + 1), left=1)
        recall[row] = np.interp(-CONFIDENCES, at, hits / count, left=0)
    f1 = 2 * precision * recall / (precision + recall + _TINY)
    best = int(_smooth(f1.mean(axis=0)).argmax()) if len(classes) else 0
    return Curves(classes.astype(np.int64), precision, recall, f1, best)


def _smooth(values: np.ndarray, share: float = 0.1) -> np.ndarray:
    """Average over a window of `share` of the length, the ends continued flat."""
    width = 2 * round(len(values) * share / 2) + 1
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.full(width, 1 / width), mode="valid")
