# SPDX-License-Identifier: Apache-2.0
"""Ids are short where they can be, and never ambiguous."""

from __future__ import annotations

import pytest

from yolo.engine.image_ids import unique_image_ids


@pytest.mark.parametrize(
    ("ids", "paths", "expected"),
    [
        ([139, 285], ["/d/000139.jpg", "/d/000285.jpg"], [139, 285]),
        (["a", "b"], ["/d/a.jpg", "/d/b.jpg"], ["a", "b"]),
        ([1, "b"], ["/d/001.jpg", "/d/b.jpg"], ["001", "b"]),
        ([1, 1], ["/l/1.jpg", "/r/1.jpg"], ["l/1", "r/1"]),
        ([7, 7], ["/d/7.jpg", "/d/007.jpg"], ["7", "007"]),
        (["x", "x", "y"], ["/a/l/x.jpg", "/b/l/x.jpg", "/b/y.jpg"], ["a/l/x", "b/l/x", "y"]),
        (["x", "x"], ["/d/x.jpg", "/d/x.png"], ["/d/x.jpg", "/d/x.png"]),
        ([], [], []),
    ],
)
def test_ids(ids, paths, expected):
    assert unique_image_ids(ids, paths) == expected
