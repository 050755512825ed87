# SPDX-License-Identifier: Apache-2.0
"""Learn a few real images by heart: the shortest proof that labels, losses and scores fit together.

    python -m benchmarks.overfit path/to/coco8.yaml --task detect

Trains `yolov8n` of the task from scratch on the training images without augmentation, and checks
that every loss falls, that all numbers are finite, and that the score on these very images (the
lowest mAP50 of the task's parts, or top-1) exceeds 0.9. The exit status is 1 where one fails.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import cv2
import torch

from benchmarks.accuracy import TASKS
from yolo import YOLO
from yolo.data.images import IMAGE_SUFFIXES

WANTED = 0.9
EDGE = 5  # epochs at either end whose mean losses are compared

STILL: dict[str, Any] = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "scale": 0.0, "fliplr": 0.0}
STILL_OBJECTS = STILL | {"translate": 0.0, "mosaic": 0.0}
STILL_CLASSES = STILL | {"auto_augment": None, "erasing": 0.0}
"""No augmentation: the same pictures in every epoch."""

SETTINGS: dict[str, dict[str, Any]] = {
    "detect": {"imgsz": 320, "epochs": 200, "batch": 2} | STILL_OBJECTS,
    "segment": {"imgsz": 320, "epochs": 200, "batch": 2} | STILL_OBJECTS,
    "pose": {"imgsz": 320, "epochs": 250, "batch": 2} | STILL_OBJECTS,
    "obb": {"imgsz": 640, "epochs": 200, "batch": 2} | STILL_OBJECTS,
    "classify": {"imgsz": 128, "epochs": 200, "batch": 4} | STILL_CLASSES,
}
"""What has to be long and large enough: batch statistics start far from those of a trained network
and keep 0.97 of themselves a step, so that scores need some 300 steps; and objects much smaller
than the first boxes, 15 strides wide, are learnt as background before they are found."""

COMMON: dict[str, Any] = {
    "optimizer": "AdamW", "lr0": 0.003, "lrf": 0.01, "warmup_epochs": 5.0, "warmup_bias_lr": 0.0,
    "weight_decay": 0.0, "nbs": 1, "val": False, "plots": False, "exist_ok": True,
}  # fmt: skip


def train_losses(results: Path) -> dict[str, list[float]]:
    """Return the `train/` columns of a results.csv, one number an epoch."""
    with results.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows] for key in rows[0] if key.startswith("train/")}


def falls(values: list[float]) -> bool:
    """Say whether a loss is lower at the end than at the beginning."""
    return mean(values[-EDGE:]) < mean(values[:EDGE])


def numbers_of(results: Path) -> list[float]:
    """Return every number of a results.csv that is filled in."""
    with results.open(newline="") as file:
        return [float(value) for row in csv.DictReader(file) for value in row.values() if value]


def outputs_finite(model: Any, images: list[Path], imgsz: int) -> bool:
    """Say whether all the network gives for the images, resized to a square, is finite."""
    model.eval()
    for file in images:
        picture = cv2.resize(cv2.imread(str(file)), (imgsz, imgsz))[..., ::-1].copy()
        with torch.no_grad():
            output = model(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)
        if not all(bool(torch.isfinite(part).all()) for part in tensors(output)):
            return False
    return True


def tensors(output: Any) -> list[torch.Tensor]:
    """Return all tensors of a network's output, however it is nested."""
    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output
    return [tensor for part in parts for tensor in tensors(part)]


def score(results: dict[str, float]) -> float:
    """Return the lowest of the scores that count: mAP50 of each part, or top-1."""
    counted = ("metrics/mAP50(", "metrics/accuracy_top1")
    return min(value for key, value in results.items() if key.startswith(counted))


def images_of(data: Path) -> list[Path]:
    """Return the training images of a dataset that has the usual folders."""
    folder = data / "train" if data.is_dir() else data.parent / "images" / "train"
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)


def main() -> None:
    """Train, check, and say by the exit status whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="dataset YAML, or folder of class folders")
    parser.add_argument("--task", default="detect", choices=TASKS)
    parser.add_argument("--imgsz", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--out", type=Path, help="folder for the run's files")
    args = parser.parse_args()
    settings = SETTINGS[args.task] | {
        key: getattr(args, key) for key in ("imgsz", "epochs") if getattr(args, key)
    }
    with tempfile.TemporaryDirectory() as scratch:
        project = str((args.out or Path(scratch)).absolute())
        model = YOLO(TASKS[args.task].network)
        where = {"project": project, "name": "train", "device": "cpu"}
        trained = model.train(data=str(args.data), **COMMON, **settings, **where)
        best = YOLO(trained.save_dir / "weights" / "best.pt")
        scored = best.val(
            data=str(args.data), split="train", imgsz=settings["imgsz"], plots=False,
            batch=settings["batch"], project=project, name="val", exist_ok=True, device="cpu",
        )  # fmt: skip
        results = trained.save_dir / "results.csv"
        reached = score(scored.results_dict)
        checks = {
            **{f"{key} falls": falls(values) for key, values in train_losses(results).items()},
            "every number logged is finite": all(map(math.isfinite, numbers_of(results))),
            "every output is finite": outputs_finite(
                best.model, images_of(args.data), settings["imgsz"]
            ),
            f"score on the training images {reached:.3f} > {WANTED}": reached > WANTED,
        }
    for text, holds in checks.items():
        print("ok     " if holds else "FAILED ", text)
    sys.exit(not all(checks.values()))


if __name__ == "__main__":
    main()
