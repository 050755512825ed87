# SPDX-License-Identifier: Apache-2.0
"""Rows of plain values that can be had as a data frame, CSV or JSON text."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from yolo.errors import MissingPackageError

Row = dict[str, Any]


def loss_column(split: str, name: str) -> str:
    """Return the column of a loss term: "train/box_loss", and "train/loss" for an only one."""
    return f"{split}/{name}" if name == "loss" else f"{split}/{name}_loss"


def aligned(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as lines of text: a name, then columns of numbers, three digits of a float."""

    def cell(value: Any) -> str:
        return f"{value:>11.3g}" if isinstance(value, float) else f"{value:>11}"

    return "\n".join(f"{name[:21]:>22}{''.join(map(cell, values))}" for name, *values in rows)


class Table:
    """Adds `to_df`, `to_csv` and `to_json` to a class whose `summary` gives rows."""

    def summary(self, normalize: bool = False, decimals: int = 5) -> list[Row]:
        """Return one dictionary a row, all with the same keys."""
        raise NotImplementedError(f"{type(self).__name__} must say what its rows are")

    def to_df(self, normalize: bool = False, decimals: int = 5) -> Any:
        """Return `summary` as a pandas frame, or a polars frame where pandas is absent.

        Raises:
            MissingPackageError: if neither is installed.
        """
        for package in ("pandas", "polars"):
            with contextlib.suppress(ImportError):
                frames = importlib.import_module(package)
                return frames.DataFrame(self.summary(normalize, decimals))
        raise MissingPackageError(
            "to_df() needs pandas or polars, and neither is installed: `pip install pandas` "
            "(summary(), to_csv() and to_json() need no package)"
        )

    def to_csv(self, normalize: bool = False, decimals: int = 5) -> str:
        """Return `summary` as CSV text with a header; a lone newline when there are no rows.

        Nested values are written as Python literals.
        """
        rows = self.summary(normalize, decimals)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_json(self, normalize: bool = False, decimals: int = 5) -> str:
        """Return `summary` as JSON text."""
        return json.dumps(self.summary(normalize, decimals), indent=2)
