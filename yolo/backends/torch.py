# SPDX-License-Identifier: Apache-2.0
"""Run a torch network for prediction, without altering the model it came from.

The backend works on a fused copy in eval mode; weights, dtype, device, mode and requires_grad of
the given model stay as they are. The copy is kept between calls, and made anew when a weight
changes.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LOGGER = logging.getLogger(__name__)

Fingerprint = tuple[tuple[int, int], ...]

CPU_PIXELS = 4 * 640 * 640
"""Pixels that run at once on a CPU: the maps of more don't stay in its caches, and every image of a
batch of 32 took a fifth longer than one of a batch of 4 (yolov8n, 640 px, two cores)."""


class TorchBackend:
    """A fused, eval-mode copy of a model on a device.

    Safe to call from several threads at once: a call changes nothing in it.

    Args:
        model: a network with `names`, `stride`, `num_channels`; not altered.
        device: where to run.
        dtype: of weights and maps: float32, float16 or bfloat16. The heads decode in float32, since
            coordinates of several hundred pixels don't fit into half precision. None means
            float32; float16 on the CPU falls back to it.
        channels_last: layout of weights and maps; None means yes.
        fuse: fold batch normalisation into the convolutions.
        task: name of the task.
        imgsz: (h, w) the model was trained at.
    """

    dynamic = True
    takes_tensors = True

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        channels_last: bool | None = None,
        fuse: bool = True,
        task: str = "",
        imgsz: tuple[int, int] = (640, 640),
    ) -> None:
        source: Any = model
        self.device = torch.device(device)
        self.dtype = _usable(dtype, self.device)
        self.names: Mapping[int, str] = dict(source.names)
        self.stride = int(max(source.stride))
        self.channels = int(source.num_channels)
        self.imgsz = imgsz
        self.task = task
        self.kpt_shape: tuple[int, int] | None = getattr(source, "kpt_shape", None)
        self.channels_last = channels_last is not False
        self._fuse = fuse
        self._source = model  # itself: a later model may get the address of one that is gone
        self._fingerprint = fingerprint(model)
        self.model = self._copy(model)

    def __getstate__(self) -> dict[str, Any]:
        # After a journey the copy is on its own: no need to carry the original along.
        return {**vars(self), "_source": None}

    def _copy(self, model: nn.Module) -> nn.Module:
        twin: Any = copy.deepcopy(model).eval().requires_grad_(False)
        # Fused in float32, before precision is given up.
        twin = twin.to(self.device)
        if self._fuse and hasattr(twin, "fuse"):
            twin.float().fuse()
        if self.channels_last:
            twin = twin.to(memory_format=torch.channels_last)
        result: nn.Module = twin.to(self.dtype)
        return result

    @classmethod
    def reuse(
        cls,
        backend: TorchBackend | None,
        model: nn.Module,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        channels_last: bool | None = None,
        **kwargs: Any,
    ) -> TorchBackend:
        """Return `backend` if it still stands for `model` and these options, else a new one.

        Changes that go around torch's version counters (`p.data`) are not noticed.
        """
        wanted = (torch.device(device), _usable(dtype, torch.device(device)))
        if (
            backend is not None
            and (backend.device, backend.dtype) == wanted
            and backend.channels_last == (channels_last is not False)
            and backend.fits(model)
        ):
            return backend
        return cls(model, device, dtype, channels_last, **kwargs)

    def fits(self, model: nn.Module) -> bool:
        """Whether the copy still has the weights and names of `model`."""
        named: Any = model
        return (
            self._source is model
            and self.names == dict(named.names)
            and self._fingerprint == fingerprint(model)
        )

    def __call__(self, images: np.ndarray | Tensor) -> Any:
        """Run images.

        Args:
            images: (B, H, W, C) uint8 or uint16, BGR for three channels; or a (B, C, H, W) float
                tensor, RGB 0..1.

        Returns:
            The model's decoded float32 outputs, as ordinary tensors on the device. The first
            dimension of each is the batch.
        """
        height, width = images.shape[2:] if isinstance(images, Tensor) else images.shape[1:3]
        step = len(images)
        if self.device.type == "cpu":
            step = max(CPU_PIXELS // (height * width), 1)
        with torch.inference_mode():
            parts = [self._run(images[i : i + step]) for i in range(0, len(images), step)]
            outputs = parts[0] if len(parts) == 1 else _join(parts)
        # Clones made outside of inference mode may be written to and used in autograd.
        outputs = _each(outputs, lambda tensor: tensor.float().clone())
        if self.device.type == "cuda":
            # So that the time of the run is counted as such; reading the boxes would wait anyway.
            torch.cuda.synchronize(self.device)
        return outputs

    def _run(self, images: np.ndarray | Tensor) -> Any:
        batch = images.to(self.device) if isinstance(images, Tensor) else self._load(images)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return self.model(batch.to(self.dtype, memory_format=layout))

    def _load(self, images: np.ndarray) -> Tensor:
        """Return images as (B, C, H, W) RGB 0..1, a channels-last view of the NHWC memory."""
        limit = 65535 if images.dtype == np.uint16 else 255
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        batch = batch.permute(0, 3, 1, 2).to(torch.float32)
        if self.channels == 3:
            batch = batch.flip(1)
        return batch.div_(limit)


def fingerprint(model: nn.Module) -> Fingerprint:
    """Return what changes whenever a parameter or buffer is written to or replaced.

    Tensors made in torch's inference mode count no versions: only a replacement shows.
    """
    tensors = chain(model.parameters(), model.buffers())
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


def _usable(dtype: torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the precision to run in."""
    if dtype == torch.float16 and device.type == "cpu":
        LOGGER.warning("half precision is slow on the CPU; predicting in float32")
        return torch.float32
    return dtype or torch.float32


def _each(outputs: Any, change: Any) -> Any:
    """Apply `change` to every floating-point tensor in nested tuples, lists and dicts."""
    if isinstance(outputs, Tensor):
        return change(outputs) if outputs.is_floating_point() else outputs.clone()
    if isinstance(outputs, Mapping):
        return {key: _each(value, change) for key, value in outputs.items()}
    if isinstance(outputs, (tuple, list)):
        return type(outputs)(_each(value, change) for value in outputs)
    return outputs


def _join(parts: Sequence[Any]) -> Any:
    """Put the outputs of parts of a batch together: tensors in nested tuples, lists and dicts."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, Mapping):
        return {key: _join([part[key] for part in parts]) for key in first}
    if isinstance(first, (tuple, list)):
        return type(first)(_join(values) for values in zip(*parts, strict=True))
    return first
