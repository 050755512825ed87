# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks.run` measures, done by this library; `speed_peer.py` has the peer do it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the library is the one of this checkout
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from benchmarks.speed_rounds import Rounds, drive
from yolo import YOLO
from yolo.nn.losses import Targets

Options = dict[str, Any]


def finish() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def training(options: Options) -> dict[str, Any]:
    """Return the arguments of a training that never gets to its end."""
    return {
        "epochs": 1000, "val": False, "plots": False, "verbose": False, "project": options["out"],
        "exist_ok": True, "save": False, **options["train"],
    }  # fmt: skip


def train(rounds: Rounds, options: Options) -> None:
    """Steps of a training."""
    model = YOLO(options["model"])
    step = rounds.steps(options["train"]["batch"], options["steps"], options["warm"], finish)
    model.add_callback("on_train_batch_start", step)
    model.train(**training(options))


def data(rounds: Rounds, options: Options) -> None:
    """Augmented batches of the training loader alone."""

    def measure(trainer: Any) -> None:
        def batches() -> Iterator[Any]:
            epoch = 0
            while True:
                yield from trainer.train_loader.epoch(epoch)
                epoch += 1

        pipe = batches()

        def skip(count: int) -> None:
            for _ in range(count):
                next(pipe)

        skip(options["warm"])
        ahead = 4 * options["train"]["workers"]  # made while the other side was measured

        def work() -> int:
            return sum(len(next(pipe)) for _ in range(options["steps"]))

        rounds.repeat(work, before=lambda: skip(ahead))

    model = YOLO(options["model"])
    model.add_callback("on_train_start", measure)
    model.train(**training(options))


def loss(rounds: Rounds, options: Options) -> None:
    """Assigner and losses of given outputs, and the gradients of these."""

    def measure(trainer: Any) -> None:
        arrays = {k: torch.from_numpy(v) for k, v in np.load(options["targets"]).items()}
        size, device = options["train"]["imgsz"], trainer.device
        images = arrays["images"].to(device).expand(-1, 3, size, size)
        raw = {k: v.detach() for k, v in trainer.model(images).items()}
        boxes = arrays["boxes"].to(device) * size
        classes = arrays["classes"].to(device)
        objects = torch.ones_like(classes, dtype=torch.bool)
        targets = Targets(classes, boxes, objects, size=(size, size))
        leaves = [v.requires_grad_() for k, v in raw.items() if k in {"boxes", "scores"}]

        def work() -> int:
            for _ in range(options["steps"]):
                report = trainer.criterion(raw, targets)
                torch.autograd.grad(report.total, leaves)
            finish()
            return options["steps"]

        rounds.repeat(work)

    model = YOLO(options["model"])
    model.add_callback("on_train_start", measure)
    model.train(**training(options))


def predict(rounds: Rounds, options: Options) -> None:
    """Arrays in, boxes out."""
    model = YOLO(options["model"])
    images = [*np.load(options["images"])][: options["batch"]]

    def work() -> int:
        for _ in range(options["calls"]):
            model.predict(images, batch=options["batch"], verbose=False, **options["predict"])
        return options["calls"] * len(images)

    rounds.repeat(work, warm=2)


def val(rounds: Rounds, options: Options) -> None:
    """Validate a split, suppression and metrics included."""
    model = YOLO(options["model"])

    def work() -> int:
        model.val(
            plots=False, verbose=False, project=options["out"], exist_ok=True, **options["val"]
        )
        return int(options["count"])

    rounds.repeat(work)


def export(rounds: Rounds, options: Options) -> None:
    """Write an ONNX file, the proof included."""
    model = YOLO(options["model"])

    def work() -> int:
        model.export(format="onnx", **options["export"])
        return 1

    rounds.repeat(work)


CASES = {
    "train": train, "data": data, "loss": loss, "predict": predict, "val": val, "export": export,
}  # fmt: skip

if __name__ == "__main__":
    drive(CASES)
