# SPDX-License-Identifier: Apache-2.0
"""Scanning: in order, in threads, and one bad image costs itself."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from yolo.data.labels import LabelledImage
from yolo.data.report import Problem, ScanReport
from yolo.data.sample import Instances
from yolo.data.scan import evenly_spaced, in_threads, scan_files
from yolo.errors import DataError


def test_usable_images_and_findings(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    for path in (paths[0], paths[2], paths[3]):
        cv2.imwrite(path, np.zeros((4, 6, 3), np.uint8))

    def label(image: LabelledImage, number: int) -> list[Problem]:
        if number == 2:
            raise DataError(f"{image.path}: nobody wants it")
        image.instances = Instances.from_boxes([number], [[0, 0, 1, 1]])
        return [Problem("a.txt", number, "odd")] if number else []

    report = ScanReport("train")
    images = list(scan_files(zip(paths, range(4), strict=True), label, report, 1))
    assert [image.path for image in images] == [paths[0], paths[3]]
    assert [image.shape for image in images] == [(4, 6)] * 2
    assert [image.instances.classes.tolist() for image in images] == [[0], [3]]
    assert [str(problem) for problem in report.problems] == [
        f"{paths[1]}: no such image", f"{paths[2]}: nobody wants it", "a.txt:3: odd"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "fraction"), [(10, 0.5), (10, 0.01), (7, 0.99), (0, 0.5), (3, 1)]
)
def test_evenly_spaced(count: int, fraction: float) -> None:
    rows = evenly_spaced(count, fraction)
    assert len(rows) == (max(1, round(count * fraction)) if count else 0)
    assert len(set(rows.tolist())) == len(rows)
    assert all(0 <= row < count for row in rows)
    if len(rows) > 1:
        assert np.diff(rows).max() - np.diff(rows).min() <= 1


def test_threads_keep_the_order_and_pass_errors_on() -> None:
    assert list(in_threads(lambda x: x * x, range(500), 4)) == [x * x for x in range(500)]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda x: 1 // (x - 300), range(500), 4))
