# SPDX-License-Identifier: Apache-2.0
"""How many images a training step can take on a CUDA device."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch

from yolo.data.batch import build_targets
from yolo.data.geometry import box_corners
from yolo.data.sample import Instances, Sample
from yolo.engine.inputs import extras
from yolo.errors import ConfigError

if TYPE_CHECKING:
    from yolo.engine.trainer import Trainer

PROBES = (1, 2, 4, 8, 16)
OBJECTS = 8


def fitting_batch(trainer: Trainer, share: float) -> int:
    """Measure the memory of a few steps and extrapolate.

    Steps of growing size run on a copy of the network, with random images and `OBJECTS` each;
    memory is linear in the batch, so the line through the two largest tells the rest.

    Args:
        trainer: a trainer whose model and criterion are built.
        share: of the device's memory to fill, in (0, 1].

    Raises:
        ConfigError: if not even one image fits.
    """
    device = trainer.device
    budget = share * torch.cuda.get_device_properties(device).total_memory
    model = copy.deepcopy(trainer.learner).train()
    peaks: list[tuple[int, int]] = []
    for batch in PROBES:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            _step(trainer, model, batch)
        except torch.cuda.OutOfMemoryError:
            break
        peaks.append((batch, torch.cuda.max_memory_reserved(device)))
        if peaks[-1][1] > budget:
            break
    del model
    torch.cuda.empty_cache()
    if not peaks:
        raise ConfigError(
            f"batch={trainer.args.batch}: not even one image of {trainer.imgsz} fits the memory of "
            f"{device}; use a smaller imgsz or model"
        )
    if len(peaks) == 1:
        return peaks[0][0]
    (b0, m0), (b1, m1) = peaks[-2:]
    slope = max(m1 - m0, 1) / (b1 - b0)
    return max(int(b1 + (budget - m1) / slope), 1)


def _step(trainer: Trainer, model: torch.nn.Module, batch: int) -> None:
    """Run one forward and backward pass on made-up data."""
    stride = max(trainer.model.stride)  # the largest input that multi_scale may draw
    h, w = (int(side * (1 + trainer.args.multi_scale)) // stride * stride for side in trainer.imgsz)
    generator = torch.Generator().manual_seed(0)
    samples = [made_up_sample((h, w), trainer.data.kpt_shape, seed) for seed in range(batch)]
    further = extras(trainer.args, trainer.spec, trainer.data)
    targets = build_targets(samples, (h, w), further).to(trainer.device)
    images = torch.rand(batch, h, w, trainer.data.channels, generator=generator)
    images = images.to(trainer.device).permute(0, 3, 1, 2)
    with torch.autocast(trainer.device.type, trainer.amp_dtype, enabled=trainer.amp):
        raw = model(images)
    trainer.criterion(raw, targets).total.backward()
    model.zero_grad(set_to_none=True)


def made_up_sample(
    size: tuple[int, int], kpt_shape: tuple[int, int] | None = None, seed: int = 0
) -> Sample:
    """Return a black image of (h, w) with `OBJECTS` that have labels of every kind."""
    h, w = size
    low = np.random.default_rng(seed).random((OBJECTS, 2)) * (0.7 * w, 0.7 * h)
    corners = box_corners(np.concatenate([low, low + np.array([0.3 * w, 0.3 * h])], axis=1))
    count = kpt_shape[0] if kpt_shape else 1
    keypoints = np.concatenate([corners[:, :1], np.full((OBJECTS, 1, 1), 2.0)], axis=2)
    instances = Instances.from_boxes(
        [0] * OBJECTS,
        corners[:, [0, 2]].reshape(-1, 4),
        polygons=[[ring] for ring in corners],
        keypoints=keypoints.repeat(count, axis=1),
        corners=corners,
    )
    image = np.zeros((h, w, 3), dtype=np.uint8)
    return Sample(image, instances, image_class=0, original_shape=size)
