# SPDX-License-Identifier: Apache-2.0
"""Run TensorRT files: a 4-byte little-endian length, so many bytes of JSON metadata, the plan.

Written from NVIDIA's documentation of the Python API, versions 10 and 11
(https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html), and
tested with a stand-in for the package alone: no machine with TensorRT has run it yet.

Maps live in torch's CUDA tensors, whose addresses TensorRT is given.
"""

from __future__ import annotations

import importlib
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolo.backends.exported import ExportedModel
from yolo.backends.metadata import MAX_TEXT, read_metadata
from yolo.engine.runtime import select_device
from yolo.errors import ConfigError, MissingPackageError, ModelError


class EngineModel(ExportedModel):
    """A TensorRT file. It runs on the kind of GPU, and the version of TensorRT, that made it.

    Args:
        path: the file.
        device: None, or CUDA: "cuda", 0, "cuda:1", ...
        **given: `task`, `names`, `kpt_shape` where the file doesn't say them.

    Raises:
        MissingPackageError: if TensorRT isn't installed.
        ConfigError: if the device isn't a GPU that is there.
        ModelError: if TensorRT refuses the file, or it doesn't say enough of itself.
    """

    def __init__(self, path: str | Path, device: Any = None, **given: Any) -> None:
        trt = import_tensorrt()
        self.device = cuda_device(device)
        found, plan = split(Path(path).read_bytes())
        with torch.cuda.device(self.device):
            # The runtime has to live as long as the engine.
            self._runtime = trt.Runtime(trt.Logger(trt.ILogger.Severity.WARNING))
            self.engine = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise ModelError(
                f"{path}: TensorRT {trt.__version__} on {self.device} refuses the file; expected "
                "one made with this version on this kind of GPU: export it here again"
            )
        self.context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        is_input = [self.engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names]
        if sum(is_input) != 1:
            raise ModelError(f"{path}: expected one input, found {sum(is_input)}")
        self._input = names.pop(is_input.index(True))
        self._outputs = names
        kinds = {n: trt.nptype(self.engine.get_tensor_dtype(n)) for n in [self._input, *names]}
        self._types = {n: torch.from_numpy(np.empty(0, kind)).dtype for n, kind in kinds.items()}
        sizes = [int(size) for size in self.engine.get_tensor_shape(self._input)]
        shape = [size if size >= 0 else None for size in sizes]
        super().__init__(path, read_metadata(found, path, shape, **given))
        self._lock = threading.Lock()  # a context serves one call at a time

    def run(self, inputs: np.ndarray) -> list[np.ndarray]:
        """Run the file on exactly the input it takes; give its outputs in order, float32.

        Raises:
            ModelError: if the file wasn't built for inputs of this shape.
        """
        with self._lock, torch.cuda.device(self.device):
            x = torch.from_numpy(inputs).to(self.device, self._types[self._input]).contiguous()
            if not self.context.set_input_shape(self._input, tuple(x.shape)):
                raise ModelError(
                    f"{self.path}: wasn't built for an input {tuple(x.shape)}; predict with a "
                    "smaller batch= or imgsz=, or export it with larger ones"
                )
            tensors = {self._input: x, **{name: self._room(name) for name in self._outputs}}
            for name, tensor in tensors.items():
                self.context.set_tensor_address(name, tensor.data_ptr())
            stream = torch.cuda.Stream(self.device)
            stream.wait_stream(torch.cuda.current_stream(self.device))  # for the copy of the input
            if not self.context.execute_async_v3(stream.cuda_stream):
                raise ModelError(f"{self.path}: TensorRT could not run it; see what it printed")
            stream.synchronize()
            outputs = [tensors[name] for name in self._outputs]
            return [(y.float() if y.is_floating_point() else y).cpu().numpy() for y in outputs]

    def _room(self, name: str) -> Tensor:
        """Return an empty tensor for an output, whose shape follows from the input's."""
        shape = tuple(self.context.get_tensor_shape(name))
        return torch.empty(shape, dtype=self._types[name], device=self.device)


def import_tensorrt() -> Any:
    """Return the module tensorrt.

    Raises:
        MissingPackageError: if it isn't installed, or older than version 10.
    """
    why = "TensorRT files need NVIDIA's package tensorrt, version 10 or newer"
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise MissingPackageError(
            f"{why}, which can't be imported ({error}): pip install tensorrt"
        ) from error
    if int(trt.__version__.partition(".")[0]) < 10:
        raise MissingPackageError(f"{why}, found {trt.__version__}: pip install -U tensorrt")
    return trt


def cuda_device(asked: Any) -> torch.device:
    """Return the GPU to run on.

    Raises:
        ConfigError: if it isn't there, or something else than a GPU is asked for.
    """
    device = select_device("cuda" if asked is None else asked)
    if device.type != "cuda":
        raise ConfigError(f"device={asked!r}: TensorRT runs on NVIDIA GPUs alone; use 'cuda'")
    return device


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the metadata and the plan of a file; a bare plan has none."""
    length = int.from_bytes(data[:4], "little")
    try:
        found = json.loads(data[4 : 4 + length]) if length <= MAX_TEXT else None
    except (ValueError, RecursionError):
        found = None
    return (found, data[4 + length :]) if isinstance(found, dict) else ({}, data)


def join(metadata: str, plan: bytes) -> bytes:
    """Return the file of metadata, as JSON, and a plan."""
    text = metadata.encode()
    return len(text).to_bytes(4, "little") + text + plan
