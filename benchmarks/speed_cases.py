# SPDX-License-Identifier: Apache-2.0
"""What both sides of `benchmarks.run` do alike, each with its own library's `YOLO`.

`speed_ours.py` and `speed_peer.py` add where the libraries differ. This file is imported in both
environments, by the name that each has for it, so it imports nothing beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

Options = dict[str, Any]
Arrays = Mapping[str, torch.Tensor]


def finish() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def gpu_mib() -> float | None:
    """Return the most memory of the GPU that this process has held, MiB; None without a GPU."""
    return torch.cuda.max_memory_reserved() / 2**20 if torch.cuda.is_initialized() else None


def training(options: Options) -> dict[str, Any]:
    """Return the arguments of a training that never gets to its end."""
    return {
        "epochs": 1000, "val": False, "plots": False, "verbose": False, "project": options["out"],
        "exist_ok": True, "save": False, **options["train"],
    }  # fmt: skip


class Cases:
    """The cases by name, as methods that take the rounds and their options.

    Args:
        yolo: the library's `YOLO`.
    """

    names = ("train", "data", "loss", "predict", "val", "export")

    def __init__(self, yolo: Any) -> None:
        self.yolo = yolo

    def by_name(self) -> dict[str, Callable[[Any, Options], None]]:
        """Return name -> case."""
        return {name: getattr(self, name) for name in self.names}

    # Where the libraries differ.

    def epoch(self, trainer: Any, number: int) -> Iterator[Any]:
        """Return the batches of an epoch."""
        raise NotImplementedError

    def images(self, batch: Any) -> int:
        """Count the images of a batch."""
        raise NotImplementedError

    def loss_of(self, trainer: Any, images: torch.Tensor, arrays: Arrays) -> Callable[[], None]:
        """Return what runs assigner, losses and their gradients once, for outputs it has made.

        Args:
            trainer: at the start of its training.
            images: (B, 3, size, size) on the device.
            arrays: (B, n, 4) `boxes` from 0 to 1, corners, and (B, n) `classes`, on the device.
        """
        raise NotImplementedError

    # What they do.

    def at_start(self, options: Options, measure: Callable[[Any], None]) -> None:
        """Set a training up, and let `measure` have the trainer."""
        model = self.yolo(options["model"])
        model.add_callback("on_train_start", measure)
        model.train(**training(options))

    def train(self, rounds: Any, options: Options) -> None:
        """Steps of a training."""
        model = self.yolo(options["model"])
        step = rounds.steps(options["train"]["batch"], options["steps"], options["warm"], finish)
        model.add_callback("on_train_batch_start", step)
        model.train(**training(options))

    def data(self, rounds: Any, options: Options) -> None:
        """Augmented batches of the training loader alone."""

        def measure(trainer: Any) -> None:
            def batches() -> Iterator[Any]:
                number = 0
                while True:
                    yield from self.epoch(trainer, number)
                    number += 1

            pipe = batches()

            def skip(count: int) -> None:
                for _ in range(count):
                    next(pipe)

            skip(options["warm"])
            ahead = 4 * options["train"]["workers"]  # made while the other side was measured

            def work() -> int:
                return sum(self.images(next(pipe)) for _ in range(options["steps"]))

            rounds.repeat(work, before=lambda: skip(ahead))

        self.at_start(options, measure)

    def loss(self, rounds: Any, options: Options) -> None:
        """Assigner and losses of given outputs, and the gradients of these."""

        def measure(trainer: Any) -> None:
            stored = np.load(options["targets"])
            arrays = {k: torch.from_numpy(v).to(trainer.device) for k, v in stored.items()}
            size = options["train"]["imgsz"]
            images = arrays.pop("images").expand(-1, 3, size, size).contiguous()
            once = self.loss_of(trainer, images, arrays)

            def work() -> int:
                for _ in range(options["steps"]):
                    once()
                finish()
                return int(options["steps"])

            rounds.repeat(work)

        self.at_start(options, measure)

    def predict(self, rounds: Any, options: Options) -> None:
        """Arrays in, boxes out."""
        model = self.yolo(options["model"], task="detect")
        images = [*np.load(options["images"])][: options["batch"]]

        def work() -> int:
            for _ in range(options["calls"]):
                model.predict(images, batch=options["batch"], verbose=False, **options["predict"])
            return int(options["calls"]) * len(images)

        rounds.repeat(work, warm=2)

    def val(self, rounds: Any, options: Options) -> None:
        """Validate a split, suppression and metrics included."""
        model = self.yolo(options["model"])

        def work() -> int:
            model.val(
                plots=False, verbose=False, project=options["out"], exist_ok=True, **options["val"]
            )
            return int(options["count"])

        rounds.repeat(work)

    def export(self, rounds: Any, options: Options) -> None:
        """Write an ONNX file; ours proves it, too."""
        model = self.yolo(options["model"])

        def work() -> int:
            model.export(format="onnx", **options["export"])
            return 1

        rounds.repeat(work)
