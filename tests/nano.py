# SPDX-License-Identifier: Apache-2.0
"""A network and options so small that a whole training takes a second or two."""

from __future__ import annotations

from pathlib import Path

NETWORK = """
nc: 5
scales:
  n: [0.33, 0.125, 128]
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 3, C2f, [128, True]]
  - [-1, 1, Conv, [128, 3, 2]]
head:
  - [[3, 4], 1, Detect, [nc]]
"""


def write_network(folder: Path, text: str = NETWORK) -> Path:
    path = folder / "nano.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def options(project: Path, name: str, **changes: object) -> dict:
    """Options of a quick CPU run into `project/name`."""
    base = {
        "epochs": 3, "imgsz": 64, "batch": 4, "nbs": 8, "workers": 0, "device": "cpu",
        "plots": False, "verbose": False, "project": str(project), "name": name,
    }  # fmt: skip
    return base | changes
