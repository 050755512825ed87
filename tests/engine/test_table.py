# SPDX-License-Identifier: Apache-2.0
"""Rows as frames, CSV and JSON."""

from __future__ import annotations

import ast
import csv
import io
import json
import sys

import pytest

from yolo.engine.table import Table
from yolo.errors import MissingPackageError


class Pets(Table):
    def __init__(self, rows):
        self.rows = rows

    def summary(self, normalize=False, decimals=5):
        return self.rows


ROWS = [{"name": "cat, tabby", "n": 2}, {"name": "dog", "n": 1}]


def test_forms():
    pets = Pets(ROWS)
    assert pets.to_csv() == 'name,n\n"cat, tabby",2\ndog,1\n'
    assert json.loads(pets.to_json()) == ROWS
    assert list(pets.to_df()["n"]) == [2, 1]


def test_no_rows():
    assert Pets([]).to_csv() == "\n"
    assert Pets([]).to_json() == "[]"
    assert Pets([]).to_df().shape == (0, 0)


def test_without_frames(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingPackageError, match="pip install pandas"):
        Pets(ROWS).to_df()


def test_nested_values_come_back_from_csv():
    rows = [{"name": "a, b", "box": {"x1": 1.5}}, {"name": 'c"d', "box": {"x1": 2.0}}]
    read = list(csv.DictReader(io.StringIO(Pets(rows).to_csv())))
    assert [row["name"] for row in read] == ["a, b", 'c"d']
    assert ast.literal_eval(read[0]["box"]) == {"x1": 1.5}
