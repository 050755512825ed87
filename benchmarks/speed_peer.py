# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks.run` measures, done by the peer: run in its environment, as a black box.

Nothing here belongs to the product. `speed_ours.py` does the same by this library.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from speed_cases import Arrays, Cases, Options, gpu_mib
from speed_rounds import Rounds, drive

os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp()
os.environ["YOLO_OFFLINE"] = "true"

import torch
import ultralytics
from ultralytics import YOLO

ultralytics.settings.update({"sync": False})


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


class Peer(Cases):
    """The cases, with the peer's trainer; and the weights that both sides run."""

    names = (*Cases.names, "weights")

    def epoch(self, trainer: Any, number: int) -> Iterator[Any]:
        return iter(trainer.train_loader)

    def images(self, batch: Any) -> int:
        return len(batch["img"])

    def loss_of(self, trainer: Any, images: torch.Tensor, arrays: Arrays) -> Callable[[], None]:
        leaves: list[torch.Tensor] = []
        outputs = leaves_of(trainer.model(images), leaves)
        (count, each), boxes = arrays["classes"].shape, arrays["boxes"].flatten(0, 1)
        middles, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        batch = {
            "img": images,
            "cls": arrays["classes"].flatten()[:, None].float(),
            "bboxes": torch.cat((middles, sides), 1).float(),
            "batch_idx": torch.arange(count, device=boxes.device).repeat_interleave(each).float(),
        }

        def once() -> None:
            total, _ = trainer.model.loss(batch, outputs)
            torch.autograd.grad(total.sum(), leaves, allow_unused=True)

        return once

    def weights(self, rounds: Rounds, options: Options) -> None:
        """Train the detector that both sides predict and validate with."""
        model = self.yolo(options["model"])
        model.train(plots=False, project=options["out"], name="weights", **options["train"])
        shutil.copy(Path(options["out"]) / "weights" / "weights" / "last.pt", options["to"])
        rounds.repeat(lambda: 1, warm=0)


if __name__ == "__main__":
    drive(Peer(YOLO).by_name(), gpu_mib)
