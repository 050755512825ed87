# SPDX-License-Identifier: Apache-2.0
"""Label rows: good ones exactly, bad ones alone and with a reason."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolo.data.labels import BoxLabels, LabelRules, parse_labels, to_pixels
from yolo.data.report import Problem
from yolo.data.sample import Instances

RULES = LabelRules(num_classes=3)


def parse(text: str | bytes, rules: LabelRules = RULES) -> tuple[Instances, list[Problem]]:
    data = text if isinstance(text, bytes) else text.encode()
    return parse_labels(data, "a.txt", BoxLabels(), rules)


def test_box_rows() -> None:
    instances, problems = parse("0 0.5 0.5 0.2 0.4\n2 0.1 0.2 0.2 0.2\n")
    assert problems == []
    assert instances.classes.tolist() == [0, 2]
    assert np.allclose(instances.boxes, [[0.4, 0.3, 0.6, 0.7], [0, 0.1, 0.2, 0.3]])
    assert np.allclose(instances.area, [0.08, 0.04])
    assert not instances.ignore.any()


def test_a_box_over_the_edge_is_kept_as_it_is() -> None:
    instances, problems = parse("0 0.95 0.5 0.2 0.2")
    assert problems == []
    assert np.allclose(instances.boxes, [[0.85, 0.4, 1.05, 0.6]])


@pytest.mark.parametrize(
    "text",
    ["", "\n \r\n\n", b"\xef\xbb\xbf"],
    ids=["empty", "blank lines", "byte order mark"],
)
def test_nothing_in_it_is_no_problem(text: str | bytes) -> None:
    instances, problems = parse(text)
    assert len(instances) == 0
    assert problems == []


def test_mark_blank_lines_tabs_and_line_ends() -> None:
    instances, problems = parse(b"\xef\xbb\xbf0 .5 .5 .2 .2\r\n\r\n\t1\t.5 .5\t.2 1e-1  \r\n")
    assert problems == []
    assert instances.classes.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("0 .5 .5 .2", "expected 5 columns .*, found 4 columns"),
        ("0 .5 .5 .2 .2 .9", "found 6 columns"),
        ("0 .5 .5 .2 .2 .9 .1 .1", "found 8 columns"),
        ("cat .5 .5 .2 .2", "expected numbers, found 'cat' in column 1"),
        ("0,.5,.5,.2,.2", "separate columns by spaces"),
        ("0 .5 .5 .2 0_1", "expected numbers, found '0_1' in column 5"),
        (b"0 .5 .5 .2 \xff.2", "expected UTF-8 text, found byte 0xff at column 12"),
        ("0.5 .5 .5 .2 .2", "whole number as the class id"),
        ("-1 .5 .5 .2 .2", "class id from 0 to 2, found '-1 "),
        ("3 .5 .5 .2 .2", "class id from 0 to 2, found '3 "),
        ("1e300 .5 .5 .2 .2", "class id from 0 to 2"),
        ("0 nan .5 .2 .2", "finite numbers, found '0 nan"),
        ("0 .5 .5 inf .2", "finite numbers"),
        ("0 1.011 .5 .2 .2", "from 0 to 1 .*found '0 1.011"),
        ("0 -.011 .5 .2 .2", "from 0 to 1"),
        ("0 320 240 100 100", "divide pixels"),
        ("0 .5 .5 -.2 .2", "width and height above 0"),
        ("0 .5 .5 .2 0", "found a zero"),
        ("0 .1 .1 .5 .1 .9 .1", "polygon with an extent"),
        ("0 .1 .1 .5 .2 .9 1.5", "from 0 to 1"),
        ("0 .1 .1 .2 .2", "the same row stands further up"),
    ],
)
def test_a_bad_row_costs_that_row(row: str | bytes, reason: str) -> None:
    odd = row if isinstance(row, bytes) else row.encode()
    instances, problems = parse(b"0 .1 .1 .2 .2\n" + odd + b"\n2 .4 .4 .2 .2\n")
    assert instances.classes.tolist() == [0, 2]
    assert len(problems) == 1
    assert problems[0].line == 2
    assert problems[0].file == "a.txt"
    assert re.search(reason, problems[0].reason)
    assert problems[0].kind == ("duplicate" if "further up" in reason else "row")


def test_numbers_just_outside_are_clipped() -> None:
    instances, problems = parse("0 1.005 -0.005 .2 1.009")
    assert problems == []
    assert np.allclose(instances.boxes, [[0.9, -0.5, 1.1, 0.5]])


def test_utf16_is_named_once() -> None:
    instances, problems = parse("0 .5 .5 .2 .2\n1 .5 .5 .2 .2".encode("utf-16"))
    assert len(instances) == 0
    assert [p.reason for p in problems] == [
        "expected UTF-8 text, found UTF-16; save the file as UTF-8"
    ]


def test_polygons_give_their_boxes_and_may_mix_with_boxes_in_order() -> None:
    instances, problems = parse(
        "2 .1 .2 .5 .3 .3 .9\n0 .5 .5 .2 .2\n1 .0 .0 1.004 .0 1. 1. .0 1.\n1 .5 .5 .4 .4\n"
    )
    assert problems == []
    assert instances.classes.tolist() == [2, 0, 1, 1]
    assert np.allclose(instances.boxes[0], [0.1, 0.2, 0.5, 0.9])
    assert np.allclose(instances.boxes[2], [0, 0, 1, 1])
    assert np.allclose(instances.boxes[3], [0.3, 0.3, 0.7, 0.7])


def test_pose_rows_give_their_boxes() -> None:
    rules = LabelRules(1, kpt_shape=(2, 3))
    row = "0 .5 .5 .2 .2 .4 .4 2 0 0 0"
    instances, problems = parse(row + "\n0 .5 .5 .2 .2 .4 .4 2 0 0", rules)
    assert np.allclose(instances.boxes, [[0.4, 0.4, 0.6, 0.6]])
    assert "or 11 with keypoints, found 10 columns" in problems[0].reason


def test_ids_may_go_unchecked() -> None:
    instances, problems = parse("7 .5 .5 .2 .2\n-2 .1 .1 .2 .2", LabelRules(None))
    assert problems == []
    assert instances.classes.tolist() == [7, -2]


def test_to_pixels_scales_every_kind() -> None:
    ring = np.array([[0.0, 0.0], [0.5, 0.0], [0.5, 1.0]])
    instances = Instances.from_boxes(
        [0],
        [[0.1, 0.2, 0.3, 0.4]],
        polygons=[[ring]],
        keypoints=np.array([[[0.5, 0.5, 2.0]]]),
        corners=np.array([[[0, 0], [1, 0], [1, 1], [0, 1]]], dtype=np.float64),
    )
    scaled = to_pixels(instances, (100, 200))
    assert np.allclose(scaled.boxes, [[20, 20, 60, 40]])
    assert np.allclose(scaled.area, [800])
    assert scaled.polygons is not None
    assert np.allclose(scaled.polygons[0][0], [[0, 0], [100, 0], [100, 100]])
    assert np.allclose(scaled.keypoints, [[[100, 50, 2]]])
    assert np.allclose(scaled.corners, [[[0, 0], [200, 0], [200, 100], [0, 100]]])


def test_many_rows_in_any_order_of_widths_stay_in_the_order_of_the_file() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        points = rng.uniform(0.1, 0.9, 2 * rng.integers(3, 8)) if i % 3 else [0.5, 0.5, 0.2, 0.3]
        rows.append(" ".join([str(i), *(f"{x:.6f}" for x in points)]))
    instances, problems = parse("\n".join(rows), LabelRules(60))
    ids = {int(p.reason.split("'")[1].split()[0]) if "'" in p.reason else -1 for p in problems}
    assert instances.classes.tolist() == [i for i in range(60) if i not in ids]


@given(st.binary(max_size=300))
def test_any_bytes_give_rows_and_findings_that_add_up(data: bytes) -> None:
    instances, problems = parse(data)
    assert np.isfinite(instances.boxes).all()
    assert ((instances.classes >= 0) & (instances.classes < 3)).all()
    if not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        lines = [ln for ln in data.removeprefix(b"\xef\xbb\xbf").splitlines() if ln.split()]
        assert len(instances) + len(problems) == len(lines)


word = st.one_of(
    st.sampled_from(["0", "1", "9", "-1", "nan", "inf", "x", "0.5", "1.2", "0", "-0.3"]),
    st.floats(0, 1).map(str),
)


@given(st.lists(st.lists(word, min_size=1, max_size=8).map(" ".join), max_size=6))
def test_each_row_is_either_kept_or_named(rows: list[str]) -> None:
    instances, problems = parse("\n".join(rows))
    assert len(instances) + len(problems) == len(rows)
    assert len({problem.line for problem in problems}) == len(problems)
    assert (instances.boxes[:, 2:] >= instances.boxes[:, :2]).all()


def test_an_odd_row_is_named_and_stays() -> None:
    class Wary(BoxLabels):
        def faults(self, rows, rules):  # type: ignore[no-untyped-def]
            yield rows[:, 3] > 0.5, "expected a narrow box, found {row}", "odd"
            yield rows[:, 4] > 0.5, "expected a flat box"

    text = "0 .5 .5 .6 .2\n1 .5 .5 .6 .6\n2 .5 .5 .2 .2\n"
    instances, problems = parse_labels(text.encode(), "a.txt", Wary(), RULES)
    assert instances.classes.tolist() == [0, 2]
    assert [(p.line, p.kind) for p in problems] == [(1, "odd"), (2, "odd"), (2, "row")]
    assert problems[0].reason == "expected a narrow box, found '0 0.5 0.5 0.6 0.2'"
