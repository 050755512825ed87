# SPDX-License-Identifier: Apache-2.0
"""What runtimes of exported files share: images in, batches cut to size, arrays out. No torch.

Shapes: B images, H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yolo.backends.metadata import RAW, Metadata
from yolo.errors import ModelError, YoloError

if TYPE_CHECKING:
    from yolo.tasks.spec import Outputs


class ExportedModel:
    """Base of the runtimes; a Backend of yolo/engine/predictor.py.

    A subclass opens the file in its constructor `(path, device=None, **given)`, hands what the
    file says of itself to this one, and defines `run`. Calls from several threads must be safe.

    Args:
        path: the file or folder.
        metadata: what it says of itself.

    Attributes:
        path: the file or folder.
        metadata: what it says of itself.
        nms: outputs are finished rows (B, n, 6 + E).
        raw: takes (H, W, C) uint8 images of any size, and gives boxes in their pixels.
        layout: what the outputs must be by the task, once somebody says it.
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
        self.raw = metadata.preprocess in RAW
        self.layout: Outputs | None = None

    def run(self, inputs: np.ndarray) -> list[np.ndarray]:
        """Run the file on exactly the input it takes; give its outputs in order, float32.

        Args:
            inputs: (B, C, H, W) float32, RGB 0..1, contiguous, B as the file was made for; or,
                for a `raw` file, one (H, W, C) uint8 image.
        """
        raise NotImplementedError(f"{type(self).__name__} must define run")

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run (B, H, W, C) uint8 or uint16 images, BGR for three channels."""
        if not self.raw:
            return self.infer(as_input(images, self.channels))
        if images.dtype == np.uint16:
            images = (images // 257).astype(np.uint8)
        if RAW[str(self.metadata.preprocess)]:
            images = images[..., ::-1]
        found = [self.run(np.ascontiguousarray(image)) for image in images]
        return self._checked(tuple(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def infer(self, inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run (B, C, H, W) float32 images, RGB 0..1, any B: in the pieces that the file takes."""
        if self.metadata.dynamic:
            return self._checked(tuple(self.run(np.ascontiguousarray(inputs))))
        size, count = self.metadata.batch, len(inputs)
        missing = -count % size
        if missing:
            inputs = np.concatenate([inputs, np.repeat(inputs[-1:], missing, 0)])
        starts = range(0, count, size)
        found = [self.run(np.ascontiguousarray(inputs[i : i + size])) for i in starts]
        joined = (np.concatenate(parts)[:count] for parts in zip(*found, strict=True))
        return self._checked(tuple(joined))

    def _checked(self, outputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Hold the shape of the first output against the classes, as far as they are known.

        Raises:
            ModelError: if they don't fit.
        """
        if self.metadata.postprocess:
            raise ModelError(
                f"{self.path}: its outputs are made by your own module "
                f"{self.metadata.postprocess!r}; run the file with its runtime"
            )
        if self.layout is None:
            return outputs
        count, wanted = len(self.names), len(self.names)
        if self.layout.boxes:
            further = int(self.layout.rotated)
            if self.kpt_shape:
                further = self.kpt_shape[0] * self.kpt_shape[1]
            if len(outputs) > 1:
                further = outputs[1].shape[1]
            wanted = further + (6 if self.nms else 4 + count)
        found = outputs[0].shape[2 if self.nms else 1]
        if found != wanted:
            raise ModelError(
                f"{self.path}: expected {wanted} numbers a prediction for {self.task!r} with "
                f"{count} classes, found {found}; its names or its task are wrong"
            )
        return outputs


@contextmanager
def sound(path: object, kind: str) -> Iterator[None]:
    """Say of whatever a runtime raises that the file isn't sound."""
    try:
        yield
    except YoloError:
        raise
    except Exception as error:
        raise ModelError(
            f"{path}: no sound {kind}; copy or export it again ({reason(error)})"
        ) from error


def reason(error: Exception) -> str:
    """Tell what went wrong in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def as_input(images: np.ndarray, channels: int) -> np.ndarray:
    """Turn (B, H, W, C) uint8 or uint16 images into (B, C, H, W) float32, RGB 0..1."""
    limit = 65535 if images.dtype == np.uint16 else 255
    planes = (images[..., ::-1] if channels == 3 else images).transpose(0, 3, 1, 2)
    return np.divide(planes, np.float32(limit), dtype=np.float32, order="C")
