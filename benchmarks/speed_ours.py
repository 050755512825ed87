# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks.run` measures, done by this library; `speed_peer.py` has the peer do it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the library is the one of this checkout
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.speed_cases import Arrays, Cases, gpu_mib
from benchmarks.speed_rounds import drive
from yolo import YOLO
from yolo.nn.losses import Targets


class Ours(Cases):
    """The cases, with this library's trainer."""

    def epoch(self, trainer: Any, number: int) -> Iterator[Any]:
        """Return the batches of an epoch."""
        return trainer.train_loader.epoch(number)

    def images(self, batch: Any) -> int:
        """Count the images of a batch."""
        return len(batch)

    def loss_of(self, trainer: Any, images: torch.Tensor, arrays: Arrays) -> Callable[[], None]:
        """Return what runs assigner, losses and gradients once."""
        raw = {name: value.detach() for name, value in trainer.model(images).items()}
        size, classes = images.shape[-1], arrays["classes"]
        objects = torch.ones_like(classes, dtype=torch.bool)
        targets = Targets(classes, arrays["boxes"] * size, objects, size=(size, size))
        leaves = [v.requires_grad_() for k, v in raw.items() if k in {"boxes", "scores"}]

        def once() -> None:
            torch.autograd.grad(trainer.criterion(raw, targets).total, leaves)

        return once


if __name__ == "__main__":
    drive(Ours(YOLO).by_name(), gpu_mib)
