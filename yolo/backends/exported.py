# SPDX-License-Identifier: Apache-2.0
"""What runtimes of exported files share: images in, batches cut to size, arrays out; no torch.

Shapes: B images, H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yolo.backends.metadata import Metadata


class ExportedModel:
    """Base of the runtimes; a Backend of yolo/engine/predictor.py.

    A subclass opens the file in its constructor, hands what the file says of itself to this one,
    and defines `run`.

    Args:
        path: the file or folder.
        metadata: what it says of itself.

    Attributes:
        path: the file or folder.
        metadata: what it says of itself.
        nms: outputs are finished rows (B, n, 6 + extra).
        raw: takes (H, W, C) uint8 images of any size, and gives boxes in their pixels.
    """

    def __init__(self, path: str | Path, metadata: Metadata) -> None:
        self.path = Path(path)
        self.metadata = metadata
        self.task = metadata.task
        self.names: Mapping[int, str] = metadata.names
        self.stride = metadata.stride
        self.channels = metadata.channels
        self.imgsz = metadata.imgsz
        self.kpt_shape = metadata.kpt_shape
        self.dynamic = metadata.dynamic is True
        self.nms = metadata.nms
        self.raw = metadata.raw

    def run(self, inputs: np.ndarray) -> list[np.ndarray]:
        """Run the file on exactly the input it takes; return its outputs in order, float32.

        Args:
            inputs: (B, C, H, W) float32, RGB 0..1, B as the file was made for, contiguous; or,
                for a `raw` file, one (H, W, C) uint8 image.
        """
        raise NotImplementedError(f"{type(self).__name__} must define run")

    def __call__(self, images: Any) -> tuple[np.ndarray, ...]:
        """Run (B, H, W, C) uint8 or uint16 images, BGR for three channels."""
        raise NotImplementedError
