# SPDX-License-Identifier: Apache-2.0
"""A small dataset of coloured rectangles, and a detector without weights that finds them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from yolo.cfg.schema import ValConfig
from yolo.data.cache import ImageStore
from yolo.data.datasets import read_dataset
from yolo.data.index import build_index
from yolo.data.labels import BoxLabels
from yolo.data.loader import ValLoader
from yolo.tasks.detect import TASK
from yolo.tasks.detect.val import DetectionValidator

NAMES = {0: "red", 1: "green", 2: "blue"}
SHAPES = [(96, 128), (128, 96), (100, 100), (64, 128), (50, 70), (120, 90)]


def draw_dataset(root: Path, stems=("left/1", "right/1", "left/2", "a", "b", "c")) -> Path:
    """Write images and labels; each image has up to three rectangles, the last one has none."""
    rng = np.random.default_rng(0)
    for stem, (height, width) in zip(stems, SHAPES, strict=True):
        image = np.full((height, width, 3), 20, np.uint8)
        rows = []
        for slot in range(0 if stem == stems[-1] else 3):
            class_id = int(rng.integers(3))
            x1, y1 = slot * width // 3 + rng.integers(1, 6), rng.integers(2, height // 3)
            x2, y2 = (slot + 1) * width // 3 - rng.integers(1, 6), rng.integers(height // 2, height)
            image[y1:y2, x1:x2, 2 - class_id] = 160 + int(rng.integers(90))  # files are BGR
            box = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width]
            rows.append(" ".join(map(str, [class_id, *box, (y2 - y1) / height])))
        for folder, suffix in (("images", ".png"), ("labels", ".txt")):
            (root / folder / stem).parent.mkdir(parents=True, exist_ok=True)
            file = (root / folder / stem).with_suffix(suffix)
            if suffix == ".png":
                cv2.imwrite(str(file), image)
            else:
                file.write_text("\n".join(rows), encoding="utf-8")
    file = root / "data.yaml"
    file.write_text("path: .\ntrain: images\nval: images\nnames: [red, green, blue]\n")
    return file


class Finder(nn.Module):
    """Finds solid colours; also says a second, shifted box of another class for each."""

    def __init__(self, names: dict[int, str] = NAMES) -> None:
        super().__init__()
        self.names = names
        self.norm = nn.BatchNorm2d(3)
        self.seen_modes: list[tuple[bool, bool]] = []

    def raw(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen_modes.append((self.training, torch.is_grad_enabled()))
        found = [self._boxes(image.permute(1, 2, 0).numpy()) for image in x]
        out = torch.zeros(len(x), 4 + len(self.names), 12)
        for i, rows in enumerate(found):
            out[i, :, : len(rows)] = torch.tensor(rows).reshape(-1, 4 + len(self.names)).T
        return {"y": out}

    def decode(self, raw: dict[str, torch.Tensor]) -> torch.Tensor:
        return raw["y"]

    def _boxes(self, image: np.ndarray) -> list[list[float]]:
        rows = []
        for channel in range(3):
            mask = (image[..., channel] > 0.55) & (np.sort(image, axis=-1)[..., 1] < 0.3)
            _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
            for x, y, w, h, area in stats[1:].tolist():
                if area < 20:
                    continue
                score = float(image[y + h // 2, x + w // 2, channel]) - 0.1
                for shift, add, factor in ((0, 0, 1.0), (0.3 * w, 1, 0.5)):
                    scores = [0.0] * len(self.names)
                    scores[(channel + add) % 3] = score * factor
                    # Not all are found equally well, none at the very edge of a threshold.
                    narrow = (0.97, 0.78, 0.63)[channel] * w
                    rows.append([x + w / 2 + shift, y + h / 2, narrow, h, *scores])
        return rows[:12]


def loader_of(data, batch: int = 2, rect: bool = True, **labels) -> ValLoader:
    """Build the loader of the validation images; `labels` are options of `build_index`."""
    index, _ = build_index(read_dataset(data), "val", BoxLabels, **labels)
    store = ImageStore(index, (128, 128), channels=3)
    return ValLoader(index, store, batch=batch, size=(128, 128), stride=32, rect=rect, workers=0)


def validator(save_dir, callbacks=None, **options) -> DetectionValidator:
    """Build a detection validator; no plots unless asked for."""
    config = ValConfig(**{"plots": False, **options})
    return DetectionValidator(config, TASK, callbacks, None, save_dir)
