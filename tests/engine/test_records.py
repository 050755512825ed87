# SPDX-License-Identifier: Apache-2.0
"""Tables and files; the rows themselves are tested through `Results` in test_results.py."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from yolo.engine.records import safe_name, show_image, write_image
from yolo.errors import DataError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "cat"),
        ("traffic light", "traffic light"),
        ("a/b\\c", "a_b_c"),
        ("..", "_"),
        ("", "_"),
        ("x\n", "x_"),
        ("Größe", "Größe"),
    ],
)
def test_safe_names(name, expected):
    assert safe_name(name) == expected


def test_write_image_makes_its_folder(tmp_path):
    path = tmp_path / "ä" / "b.png"
    assert write_image(path, np.zeros((4, 4, 3), np.uint8)) == str(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match=r"\.jpg or \.png"):
        write_image(tmp_path / "new" / "b", np.zeros((4, 4, 3), np.uint8))
    assert not (tmp_path / "new").exists()


def test_pictures_show_inline_in_a_notebook(monkeypatch):
    shown = []
    shell = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1))
    monkeypatch.setitem(sys.modules, "IPython", shell)
    display = SimpleNamespace(display=lambda picture: shown.append(picture.getpixel((0, 0))))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    show_image(np.full((4, 5, 3), (1, 2, 3), np.uint8))
    assert shown == [(3, 2, 1)]
