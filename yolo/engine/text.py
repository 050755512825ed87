# SPDX-License-Identifier: Apache-2.0
"""Text on pictures: measured, fitted and drawn, in any script a font at hand can show.

ASCII goes through OpenCV. Other scripts, and a font the user names, go through Pillow: with
DejaVu Sans, which matplotlib brings along (Latin, Greek, Cyrillic; name a font for others).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from yolo.data.images import cv2
from yolo.errors import MissingFileError

Color = tuple[int, int, int]
_FACE = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True, slots=True)
class Lettering:
    """How to write.

    Attributes:
        px: height of the capitals, pixels.
        font: TrueType file, or None for the built-in letters.
    """

    px: int
    font: str | None = None

    @property
    def _weight(self) -> int:
        return max(1, round(self.px / 11))

    @property
    def _scale(self) -> float:
        return max(self.px, 1) / _capital_height()

    def _type(self, text: str) -> Any:
        """Return the Pillow font that `text` needs, or None when OpenCV writes it."""
        if self.font is None and text.isascii():
            return None
        return _load_font(self.font, round(self.px * 1.35))  # capitals are about 0.74 em

    def size(self, text: str) -> tuple[int, int]:
        """Return (width, height) of the line, the room below the base line included."""
        face = self._type(text)
        if face is None:
            width = cv2.getTextSize(text, _FACE, self._scale, self._weight)[0][0]
        else:
            width = round(face.getlength(text))
        return int(width), self.px + self.descent

    @property
    def descent(self) -> int:
        """Room below the base line, pixels."""
        return max(2, round(self.px * 0.35))

    def fit(self, text: str, width: int) -> str:
        """Shorten `text` with dots until it is at most `width` pixels wide."""
        if self.size(text)[0] <= width:
            return text
        kept = text
        while kept and self.size(kept + "..")[0] > width:
            kept = kept[:-1]
        return kept + ".." if kept else ""

    def write(self, image: np.ndarray, text: str, left: int, top: int, color: Color) -> None:
        """Write `text` onto `image`, its top left corner at (left, top)."""
        face = self._type(text)
        if face is None:
            # Where Pillow is absent, other scripts show as question marks, as OpenCV has it.
            place = (int(left), int(top + self.px))
            cv2.putText(image, text, place, _FACE, self._scale, color, self._weight, cv2.LINE_AA)
            return
        from PIL import Image, ImageDraw

        width, height = self.size(text)
        ink = Image.new("L", (width + 2, height))
        ImageDraw.Draw(ink).text((1, self.px), text, fill=255, font=face, anchor="ls")
        x1, y1 = max(left, 0), max(top, 0)
        alpha = np.asarray(ink, np.float32)[y1 - top :, x1 - left :, None] / 255
        area = image[y1 : y1 + alpha.shape[0], x1 : x1 + alpha.shape[1]]
        alpha = alpha[: area.shape[0], : area.shape[1]]
        area[:] = np.rint(area * (1 - alpha) + np.asarray(color, np.float32) * alpha).astype(
            np.uint8
        )


@lru_cache(maxsize=1)
def _capital_height() -> float:
    """Return the height of a capital at scale 1, pixels.

    Measured, since OpenCV 5 draws these letters a quarter smaller than OpenCV 4 and than its own
    getFontScaleFromHeight says.
    """
    scale = 8
    image = np.zeros((400, 400), np.uint8)
    cv2.putText(image, "H", (20, 350), _FACE, scale, 255, 1)
    return float(np.ptp(np.flatnonzero(image.any(axis=1))) + 1) / scale


@lru_cache(maxsize=16)
def _load_font(font: str | None, size: int) -> Any:
    """Load a TrueType font, or the one matplotlib ships; None when neither is to be had.

    Raises:
        MissingFileError: if the font that the user named can't be read.
    """
    try:
        from PIL import ImageFont
    except ImportError:
        return None
    if font is None:
        spec = importlib.util.find_spec("matplotlib")
        folder = Path((spec.origin if spec else None) or ".").parent
        path = folder / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        return ImageFont.truetype(str(path), size) if path.is_file() else None
    try:
        return ImageFont.truetype(font, size)
    except OSError as error:
        raise MissingFileError(
            f"font {font!r} can't be read ({error}); give the path of a .ttf or .otf file"
        ) from error
