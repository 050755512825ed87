# SPDX-License-Identifier: Apache-2.0
"""Findings and their counts."""

from __future__ import annotations

import json
import logging

import pytest

from yolo.data import report as module
from yolo.data.report import Problem, ScanReport
from yolo.errors import DataError


def test_problem_reads_as_file_line_reason() -> None:
    assert str(Problem("a.txt", 3, "bad")) == "a.txt:3: bad"
    assert str(Problem("a.jpg", 0, "bad", "image")) == "a.jpg: bad"


def test_counts_and_table() -> None:
    report = ScanReport("train", images=3, objects=1234)
    for kind in ("row", "row", "image"):
        report.add(Problem("a", 1, "bad", kind))
    assert report.total == 3
    assert report.found == {"row": 2, "image": 1}
    table = report.table()
    assert "1,234" in table
    assert "bad images" in table
    assert "without image" not in table


def test_strict_raises_with_file_and_line() -> None:
    with pytest.raises(DataError, match=r"^a\.txt:7: bad .*strict=True"):
        ScanReport("train", strict=True).add(Problem("a.txt", 7, "bad"))


def test_memory_is_bounded_and_the_count_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_PROBLEMS", 2)
    report = ScanReport("train")
    for line in range(5):
        report.add(Problem("a", line, "bad"))
    assert len(report.problems) == 2
    assert report.total == 5


def test_log_shows_the_first_and_counts_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    report = ScanReport("val")
    for line in range(1, 6):
        report.add(Problem("a", line, "bad"))
    with caplog.at_level(logging.INFO):
        report.log(first=2)
    assert "a:2: bad" in caplog.text
    assert "a:3: bad" not in caplog.text
    assert "3 more problems" in caplog.text


def test_plain_data_round_trip() -> None:
    report = ScanReport("val", images=2)
    report.add(Problem("a", 1, "bad", "duplicate"))
    again = ScanReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again.cached
    assert again.problems == report.problems
    assert again.found == report.found
