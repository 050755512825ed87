# SPDX-License-Identifier: Apache-2.0
"""Run ONNX files with onnxruntime. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from yolo.backends.exported import ExportedModel, sound
from yolo.backends.metadata import read_metadata
from yolo.backends.quiet import import_onnxruntime
from yolo.errors import ConfigError, ModelError


class OnnxModel(ExportedModel):
    """An ONNX file in an onnxruntime session.

    Args:
        path: the file.
        device: None or "cpu", or CUDA: "cuda", 0, "cuda:1", ...
        **given: `task`, `names`, `kpt_shape` where the file doesn't say them.

    Raises:
        MissingPackageError: if onnxruntime isn't installed.
        ModelError: if the file isn't sound, or doesn't say enough of itself.
        ConfigError: if onnxruntime can't use the device.
    """

    def __init__(self, path: str | Path, device: Any = None, **given: Any) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        providers = _providers(device, onnxruntime)
        with sound(path, "ONNX file"):
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise ModelError(f"{path}: expected one input, found {len(inputs)}")
        self._input = inputs[0].name
        self._half = inputs[0].type == "tensor(float16)"
        shape = [size if isinstance(size, int) else None for size in inputs[0].shape]
        found = self.session.get_modelmeta().custom_metadata_map
        super().__init__(path, read_metadata(found, path, shape, **given))

    def run(self, inputs: np.ndarray) -> list[np.ndarray]:
        """Run the file on exactly the input it takes; give its outputs in order, float32."""
        if self._half:  # files of other origin
            inputs = inputs.astype(np.float16)
        outputs = self.session.run(None, {self._input: inputs})
        return [_as_float32(output) for output in outputs]


def _as_float32(output: np.ndarray) -> np.ndarray:
    return output.astype(np.float32, copy=False) if output.dtype.kind == "f" else output


def _providers(device: Any, onnxruntime: Any) -> list[Any]:
    """Return what runs the session.

    Raises:
        ConfigError: if onnxruntime can't use the device.
    """
    cpu = "CPUExecutionProvider"
    text = "" if device is None else str(device).lower().removeprefix("cuda").removeprefix(":")
    if text in {"", "cpu"} and str(device).lower() != "cuda":
        return [cpu]
    index = text or "0"
    available = onnxruntime.get_available_providers()
    if not index.isdigit() or "CUDAExecutionProvider" not in available:
        raise ConfigError(
            f"device={device!r}: this onnxruntime runs on {', '.join(available)}; for a GPU: "
            "pip install onnxruntime-gpu"
        )
    return [("CUDAExecutionProvider", {"device_id": int(index)}), cpu]
