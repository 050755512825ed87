# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a dataset: single findings, and the count of all of them for one split."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from typing import Any

from yolo.errors import DataError

logger = logging.getLogger(__name__)

KEPT_PROBLEMS = 100_000
"""Findings held in memory for one split; later ones are only counted."""

KINDS = {
    "row": "bad label rows (dropped)",
    "odd": "odd label rows (kept)",
    "duplicate": "duplicates (kept once)",
    "image": "bad images (dropped)",
    "orphan": "labels without image",
}
"""What a finding costs, and its line in the table."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding.

    Attributes:
        file: the file a person has to open.
        line: 1-based line in it, 0 where lines mean nothing (images, JSON).
        reason: what was expected and what was found.
        kind: a key of `KINDS`.
    """

    file: str
    line: int
    reason: str
    kind: str = "row"

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.reason}"


@dataclass(slots=True)
class ScanReport:
    """Counts and findings of one split.

    Attributes:
        name: what was scanned ("train").
        images: images that can be used.
        background: those of them without an object.
        objects: objects kept, ignore regions included.
        ignored: ignore regions (crowds) among them.
        found: how many findings of each kind there were.
        problems: the findings themselves, in the order of the images; at most `KEPT_PROBLEMS`.
        cached: the counts come from a label cache.
        strict: raise at the first finding.
    """

    name: str
    images: int = 0
    background: int = 0
    objects: int = 0
    ignored: int = 0
    found: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    cached: bool = False
    strict: bool = False

    @property
    def total(self) -> int:
        """All findings together."""
        return sum(self.found.values())

    def add(self, problem: Problem) -> None:
        """Count a finding.

        Raises:
            DataError: in strict mode, with the finding's file and line.
        """
        if self.strict:
            raise DataError(f"{problem} (strict=True stops at the first problem)")
        self.found[problem.kind] = self.found.get(problem.kind, 0) + 1
        if len(self.problems) < KEPT_PROBLEMS:
            self.problems.append(problem)

    def table(self) -> str:
        """Return the counts as lines of text; kinds without a finding are left out."""
        rows = {"images": self.images, "  of them background": self.background}
        rows["objects"] = self.objects
        if self.ignored:
            rows["  of them ignored (crowds)"] = self.ignored
        rows |= {text: self.found[kind] for kind, text in KINDS.items() if kind in self.found}
        width = max(map(len, rows))
        head = f"{self.name}{' (from the label cache)' if self.cached else ''}"
        return "\n".join([head, *(f"  {text:<{width}}  {n:>9,}" for text, n in rows.items())])

    def log(self, first: int = 10) -> None:
        """Log the table, and the first findings as warnings."""
        logger.info("%s", self.table())
        for problem in self.problems[:first]:
            logger.warning("%s", problem)
        if self.total > first:
            text = "%s: %d more problems; `yolo check` lists them"
            logger.warning(text, self.name, self.total - first)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for a label cache."""
        stored = asdict(self)
        del stored["cached"], stored["strict"]
        return stored

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> ScanReport:
        """Rebuild a report from `to_dict`'s data and mark it as cached."""
        problems = [Problem(**problem) for problem in stored["problems"]]
        return cls(**{**stored, "problems": problems}, cached=True)
