# SPDX-License-Identifier: Apache-2.0
"""Look at a whole dataset and list what is wrong with it; the work behind `yolo check`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo.data.datasets import DatasetSpec, read_dataset
from yolo.data.index import build_index
from yolo.data.labels import BoxLabels, LabelFormat
from yolo.data.report import Problem, ScanReport
from yolo.errors import DataError


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """The findings of a whole dataset.

    Attributes:
        splits: one report a split.
    """

    splits: list[ScanReport]

    @property
    def problems(self) -> list[Problem]:
        """The findings of all splits, in order."""
        return [problem for report in self.splits for problem in report.problems]

    def table(self) -> str:
        """Return the counts of all splits as lines of text."""
        return "\n".join(report.table() for report in self.splits)


def check_dataset(
    data: DatasetSpec | Mapping[str, Any] | str | Path,
    label_format: LabelFormat | Callable[[], LabelFormat] | None = None,
) -> DatasetReport:
    """Scan all splits afresh, without a cache, and report every problem.

    Args:
        data: whatever `read_dataset` takes.
        label_format: what label rows mean (an instance or a class); None means boxes, which reads
            box, polygon and (with a kpt_shape) pose rows.

    Returns:
        The findings of all splits. A split that can't be used at all has its reason as a problem.

    Raises:
        MissingFileError, DataError: if the dataset's description itself can't be used.
    """
    made = label_format or BoxLabels()
    label_format = made() if callable(made) else made
    spec = read_dataset(data, kinds=label_format.kinds)
    reports = []
    for split in spec.splits:
        try:
            _, report = build_index(spec, split, label_format)
        except DataError as error:
            report = ScanReport(split)
            report.add(Problem(spec.where, 0, str(error).removeprefix(f"{spec.where}: ")))
        reports.append(report)
    return DatasetReport(reports)
