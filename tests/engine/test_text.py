# SPDX-License-Identifier: Apache-2.0
"""Text is measured, shortened and stays on the picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest

from yolo.engine.text import Lettering
from yolo.errors import MissingFileError

FONT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSerif.ttf")


@pytest.mark.parametrize("font", [None, FONT])
@pytest.mark.parametrize("text", ["label 0.87", "Größe Ω"])
@pytest.mark.parametrize("px", [8, 13, 40])
def test_ink_stays_in_the_measured_box(font, text, px):
    letters = Lettering(px, font)
    width, height = letters.size(text)
    image = np.zeros((3 * px + 20, width + 60, 3), np.uint8)
    letters.write(image, text, 20, 10, (255, 255, 255))
    rows, columns = np.nonzero(image[..., 0] > 100)
    slack = max(2, px // 6)
    assert rows.min() >= 10 - slack
    assert rows.max() <= 10 + height + slack
    assert columns.min() >= 20 - slack
    assert columns.max() <= 20 + width + slack
    assert np.ptp(rows) >= 0.8 * px


@pytest.mark.parametrize("text", ["some long label", "längeres Wort"])
def test_fit_shortens(text):
    letters = Lettering(12)
    assert letters.fit(text, 1000) == text
    short = letters.fit(text, 60)
    assert short.endswith("..")
    assert letters.size(short)[0] <= 60
    assert letters.fit(text, 1) == ""


def test_width_grows_with_size():
    assert Lettering(30).size("abc")[0] > 1.5 * Lettering(12).size("abc")[0]


@pytest.mark.parametrize("place", [(-10, -10), (25, 25), (-100, 5)])
def test_writing_over_the_border_is_clipped(place):
    image = np.zeros((30, 30, 3), np.uint8)
    for text in ("plain", "größer"):
        Lettering(12).write(image, text, *place, (255, 255, 255))


def test_a_missing_font_is_named():
    with pytest.raises(MissingFileError, match=r"no-such\.ttf"):
        Lettering(12, "no-such.ttf").size("a")
