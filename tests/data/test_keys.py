# SPDX-License-Identifier: Apache-2.0
"""Names, channels and keypoints of a dataset's description."""

from __future__ import annotations

from typing import Any

import pytest

from yolo.data.keys import read_channels, read_keypoints, read_names
from yolo.errors import DataError


@pytest.mark.parametrize(
    ("names", "nc", "expected"),
    [
        (["x", "y"], None, {0: "x", 1: "y"}),
        ({1: "y", 0: "x"}, 2, {0: "x", 1: "y"}),
        ({"0": "x", "1": 7}, None, {0: "x", 1: "7"}),
        (None, 2, {0: "class_0", 1: "class_1"}),
        (None, None, None),
    ],
)
def test_names_and_nc(names: Any, nc: Any, expected: dict[int, str] | None) -> None:
    found = read_names({"names": names, "nc": nc}, "d.yaml")
    assert found == expected
    assert found is None or list(found) == [0, 1]


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"names": ["a"], "nc": 2}, "nc: expected 1 as in `names`, .* found 2"),
        ({"names": {0: "a", 2: "b"}}, r"ids 0 to 1, found \[0, 2\]"),
        ({"names": {"x": "a"}}, "whole numbers as ids"),
        ({"names": [True, False]}, r"names: 0: expected text \(in quotes\), found True"),
        ({"names": "cat"}, "expected a list"),
        ({"nc": 0}, "nc: expected a number of classes"),
        ({"nc": "2"}, "nc: expected a number of classes"),
        ({"nc": 2**40}, "nc: expected a number of classes from 1 to 1000000, found 1099511627776"),
        ({"channels": 0}, "channels: expected"),
        ({"kpt_shape": [3]}, "kpt_shape: expected"),
        ({"kpt_shape": [3, 4]}, "kpt_shape: expected"),
        ({"kpt_shape": [3, 3], "flip_idx": [0, 1, 1]}, "flip_idx: expected each of 0 to 2 once"),
        (
            {"kpt_shape": [3, 3], "flip_idx": [1, 2, 0]},
            r"pairs that change places, found \[1, 2, 0\]",
        ),
        ({"kpt_shape": [3, 3], "kpt_oks_sigmas": [0.1, 0.2]}, "kpt_oks_sigmas: expected 3"),
        ({"kpt_shape": [3, 3], "kpt_oks_sigmas": [0.1, 0.2, -1]}, "kpt_oks_sigmas: expected 3"),
        ({"kpt_shape": [3, 3], "kpt_names": {0: ["nose"]}}, "kpt_names: 0: expected 3 names"),
    ],
)
def test_bad_keys_are_named(entries: dict[str, Any], reason: str) -> None:
    key = next(iter(entries))
    read = {"channels": read_channels, "kpt_shape": read_keypoints}.get(key, read_names)
    with pytest.raises(DataError, match=f"^d.yaml: .*{reason}"):
        read(entries, "d.yaml")


def test_keypoint_keys() -> None:
    entries = {
        "kpt_shape": [3, 3],
        "flip_idx": [0, 2, 1],
        "kpt_oks_sigmas": [0.1, 0.2, 0.2],
        "kpt_names": {0: ["nose", "left", "right"]},
    }
    assert read_keypoints(entries, "d.yaml") == {
        "kpt_shape": (3, 3),
        "flip_idx": (0, 2, 1),
        "kpt_oks_sigmas": (0.1, 0.2, 0.2),
        "kpt_names": {0: ("nose", "left", "right")},
    }
    assert read_keypoints({"flip_idx": [0]}, "d.yaml") == {}
    assert read_channels({"channels": 4}, "d.yaml") == 4
    assert read_channels({}, "d.yaml") == 3
