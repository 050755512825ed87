# SPDX-License-Identifier: Apache-2.0
"""Tiny sets of class folders: images whose colour is their class."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

COLOURS = {"blue": (230, 40, 40), "green": (40, 200, 40), "red": (40, 40, 230)}
"""Class name -> BGR."""


def paint(path: Path, name: str, number: int, shape: tuple[int, int] = (40, 56)) -> None:
    """Write a noisy image of the class's colour."""
    rng = np.random.default_rng([number, len(name)])
    image = np.clip(rng.normal(COLOURS[name], 25, (*shape, 3)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


def write_folders(root: Path, train: int = 4, val: int = 2, names=tuple(COLOURS)) -> Path:
    """Write `train` and `val` images of each class below `root`."""
    for split, count in (("train", train), ("val", val)):
        for name in names:
            for i in range(count):
                paint(root / split / name / f"{i}.png", name, i + 100 * (split == "val"))
    return root
