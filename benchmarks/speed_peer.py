# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks.run` measures, done by the peer: run in its environment, as a black box.

Nothing here belongs to the product. `speed_ours.py` does the same by this library.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speed_rounds import Rounds, drive

os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp()
os.environ["YOLO_OFFLINE"] = "true"

import numpy as np
import torch
import ultralytics
from ultralytics import YOLO

ultralytics.settings.update({"sync": False})

Options = dict[str, Any]


def finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def training(options: Options) -> dict[str, Any]:
    return {
        "epochs": 1000, "val": False, "plots": False, "verbose": False, "project": options["out"],
        "exist_ok": True, "save": False, **options["train"],
    }  # fmt: skip


def train(rounds: Rounds, options: Options) -> None:
    model = YOLO(options["model"])
    step = rounds.steps(options["train"]["batch"], options["steps"], options["warm"], finish)
    model.add_callback("on_train_batch_start", step)
    model.train(**training(options))


def data(rounds: Rounds, options: Options) -> None:
    def measure(trainer: Any) -> None:
        def batches() -> Iterator[Any]:
            while True:
                yield from trainer.train_loader

        pipe = batches()

        def skip(count: int) -> None:
            for _ in range(count):
                next(pipe)

        skip(options["warm"])
        ahead = 4 * options["train"]["workers"]  # made while the other side was measured

        def work() -> int:
            return sum(len(next(pipe)["img"]) for _ in range(options["steps"]))

        rounds.repeat(work, before=lambda: skip(ahead))

    model = YOLO(options["model"])
    model.add_callback("on_train_start", measure)
    model.train(**training(options))


def leaves_of(outputs: Any, found: list[torch.Tensor]) -> Any:
    """Return outputs cut off from the network; those with gradients are added to `found`."""
    if isinstance(outputs, torch.Tensor):
        leaf = outputs.detach()
        if outputs.requires_grad:
            found.append(leaf.requires_grad_())
        return leaf
    if isinstance(outputs, dict):
        return {key: leaves_of(value, found) for key, value in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return type(outputs)([leaves_of(value, found) for value in outputs])
    return outputs


def loss(rounds: Rounds, options: Options) -> None:
    def measure(trainer: Any) -> None:
        arrays = {k: torch.from_numpy(v) for k, v in np.load(options["targets"]).items()}
        size, device = options["train"]["imgsz"], trainer.device
        images = arrays["images"].to(device).expand(-1, 3, size, size).contiguous()
        leaves: list[torch.Tensor] = []
        outputs = leaves_of(trainer.model(images), leaves)
        boxes, classes = arrays["boxes"].flatten(0, 1), arrays["classes"].flatten()
        batch = {
            "img": images,
            "cls": classes[:, None].float().to(device),
            "bboxes": torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1)
            .float()
            .to(device),
            "batch_idx": torch.arange(len(arrays["boxes"])).repeat_interleave(
                arrays["boxes"].shape[1]
            ).float().to(device),
        }  # fmt: skip

        def work() -> int:
            for _ in range(options["steps"]):
                total, _ = trainer.model.loss(batch, outputs)
                torch.autograd.grad(total.sum(), leaves, allow_unused=True)
            finish()
            return options["steps"]

        rounds.repeat(work)

    model = YOLO(options["model"])
    model.add_callback("on_train_start", measure)
    model.train(**training(options))


def predict(rounds: Rounds, options: Options) -> None:
    model = YOLO(options["model"], task="detect")
    images = [*np.load(options["images"])][: options["batch"]]

    def work() -> int:
        for _ in range(options["calls"]):
            model.predict(images, batch=options["batch"], verbose=False, **options["predict"])
        return options["calls"] * len(images)

    rounds.repeat(work, warm=2)


def val(rounds: Rounds, options: Options) -> None:
    model = YOLO(options["model"])

    def work() -> int:
        model.val(
            plots=False, verbose=False, project=options["out"], exist_ok=True, **options["val"]
        )
        return int(options["count"])

    rounds.repeat(work)


def export(rounds: Rounds, options: Options) -> None:
    model = YOLO(options["model"])

    def work() -> int:
        model.export(format="onnx", **options["export"])
        return 1

    rounds.repeat(work)


def weights(rounds: Rounds, options: Options) -> None:
    """Train the detector that both sides predict and validate with."""
    model = YOLO(options["model"])
    model.train(plots=False, project=options["out"], name="weights", **options["train"])
    shutil.copy(Path(options["out"]) / "weights" / "weights" / "last.pt", options["to"])
    rounds.repeat(lambda: 1, warm=0)


CASES = {
    "train": train, "data": data, "loss": loss, "predict": predict, "val": val, "export": export,
    "weights": weights,
}  # fmt: skip

if __name__ == "__main__":
    drive(CASES)
