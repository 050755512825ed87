# SPDX-License-Identifier: Apache-2.0
"""What a loader yields: images as stored, padded targets, and where everything came from.

Shape letters: B images, H W C as in memory, n objects and m ignored regions (padded).
Images stay small integers with the channels last: a quarter of the bytes to move, and the
device's `permute` gives the channels-last layout for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolo.data.collage import Collage
from yolo.data.letterbox import Placement
from yolo.data.sample import Sample
from yolo.nn.losses import Targets

Extras = Callable[[Sequence[Sample], tuple[int, int]], dict[str, Tensor]]
"""(samples, (h, w)) -> further targets, the batch first. Row j of an image's targets is its j-th
instance whose `ignore` is False."""


@dataclass(slots=True)
class Batch:
    """A batch of samples.

    Attributes:
        images: (B, H, W, C) uint8 or uint16; three channels are RGB. With a collage, the pixels of
            its pieces.
        targets: padded ground truth, pixels of the images.
        indices: B positions in the dataset.
        paths: B file names.
        original_shapes: B (h, w) of the files.
        placements: B maps from the images back to the files; empty for augmented samples, which
            have no single one.
        collage: how the images are made of pieces, until `to` does so.
    """

    images: Tensor
    targets: Targets
    indices: list[int]
    paths: list[str]
    original_shapes: list[tuple[int, int]]
    placements: list[Placement]
    collage: Collage | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return a copy with `change` applied to every tensor."""
        collage = None if self.collage is None else self.collage.map(change)
        targets = self.targets.map(change)
        return replace(self, images=change(self.images), targets=targets, collage=collage)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return a copy with all tensors on `device`, where pieces are put together."""
        moved = self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        if moved.collage is None:
            return moved
        return replace(moved, images=moved.collage.paint(moved.images), collage=None)

    def pin_memory(self) -> Batch:
        """Return a copy in page-locked memory, for copies that don't block."""
        return self.map(lambda tensor: tensor.pin_memory())


def normalize(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn stored images into a network's input.

    Args:
        images: (B, H, W, C) uint8 or uint16, on any device.
        dtype: floating point type of the result.

    Returns:
        (B, C, H, W) in 0..1, in channels-last memory order.
    """
    channels_first = images.permute(0, 3, 1, 2)
    if images.dtype == torch.uint16:  # 65535 doesn't fit into 16-bit floats
        return channels_first.to(torch.float32).div_(65535).to(dtype)
    return channels_first.to(dtype).div_(255)


def build_targets(
    samples: Sequence[Sample], size: tuple[int, int], extras: Extras | None = None
) -> Targets:
    """Pad the labels of samples to one length.

    Args:
        samples: B samples; crowd regions (`ignore`) become `Targets.ignore`.
        size: (h, w) of their images.
        extras: builds what a task needs besides boxes.
    """
    every = [sample.instances for sample in samples]
    boxes = [labels.boxes[~labels.ignore] for labels in every]
    regions = [labels.boxes[labels.ignore] for labels in every]
    return Targets(
        classes=_padded([labels.classes[~labels.ignore] for labels in every], (), np.int64),
        boxes=_padded(boxes, (4,), np.float32),
        mask=_padded([np.ones(len(found)) for found in boxes], (), np.bool_),
        ignore=_padded(regions, (4,), np.float32) if any(map(len, regions)) else None,
        size=size,
        extras={} if extras is None else extras(samples, size),
    )


def _padded(rows: Sequence[np.ndarray], shape: tuple[int, ...], dtype: Any) -> Tensor:
    """Stack B arrays (n, *shape) of several n, with zeros behind the shorter ones."""
    stacked = np.zeros((len(rows), max(map(len, rows), default=0), *shape), dtype)
    for target, found in zip(stacked, rows, strict=True):
        target[: len(found)] = found
    return torch.from_numpy(stacked)
