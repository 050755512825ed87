# SPDX-License-Identifier: Apache-2.0
"""Run OpenVINO models. No torch.

fp32 models compute in fp32 everywhere: left to itself, OpenVINO takes bf16 or fp16 where the device
is good at it, and then scores differ by more than an export is allowed to. The number of threads,
and everything else, is as OpenVINO and its environment variables have it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yolo.backends.exported import ExportedModel, sound
from yolo.backends.metadata import read_metadata
from yolo.backends.quiet import import_openvino, signal_stack_kept
from yolo.cfg.load import read_yaml
from yolo.errors import ConfigError, ModelError

METADATA = "metadata.yaml"


class OpenVinoModel(ExportedModel):
    """A folder with an OpenVINO model.

    Args:
        path: the folder, with one `.xml`, its `.bin` and `metadata.yaml`.
        device: None or "cpu", or another of OpenVINO's devices, as "gpu", "intel:gpu" or "npu".
        **given: `task`, `names`, `kpt_shape` where the folder doesn't say them.

    Raises:
        MissingPackageError: if openvino isn't installed.
        ModelError: if the model isn't sound, or doesn't say enough of itself.
        ConfigError: if OpenVINO has no such device.
    """

    def __init__(self, path: str | Path, device: Any = None, **given: Any) -> None:
        openvino = import_openvino()
        file = Path(path) / METADATA
        found = read_yaml(file, error=ModelError) if file.is_file() else {}
        with signal_stack_kept():
            core = openvino.Core()
            target = _device(device, core.available_devices)
            with sound(path, "OpenVINO model"):
                model = core.read_model(str(_graph_file(Path(path))))
                precision = "f16" if _is_half(found) and target != "CPU" else "f32"
                options = {"INFERENCE_PRECISION_HINT": precision}
                self.compiled = core.compile_model(model, target, options)
        if len(model.inputs) != 1:
            raise ModelError(f"{path}: expected one input, found {len(model.inputs)}")
        shape = [
            None if size.is_dynamic else size.get_length() for size in model.input().partial_shape
        ]
        super().__init__(path, read_metadata(found, path, shape, **given))
        self._requests = threading.local()

    def run(self, inputs: np.ndarray) -> list[np.ndarray]:
        """Run the model on exactly the input it takes; give its outputs in order, float32."""
        request = getattr(self._requests, "own", None)
        if request is None:  # a request serves one thread at a time
            request = self._requests.own = self.compiled.create_infer_request()
        return [np.asarray(output) for output in request.infer([inputs]).to_tuple()]


def _graph_file(folder: Path) -> Path:
    """Return the one graph of a folder.

    Raises:
        ModelError: if there is none, or several.
    """
    found = sorted(folder.glob("*.xml"))
    if len(found) != 1:
        raise ModelError(
            f"{folder}: expected a folder with one .xml file, found {len(found)}; name the folder "
            "that export has made"
        )
    return found[0]


def _is_half(found: Mapping[str, Any]) -> bool:
    """Tell whether the metadata ask for fp16."""
    args = found.get("args")
    return isinstance(args, Mapping) and args.get("half") is True


def _device(asked: Any, available: list[str]) -> str:
    """Return OpenVINO's name of a device.

    Raises:
        ConfigError: if there is no such device.
    """
    name = str("cpu" if asked is None else asked).lower().removeprefix("intel:").upper()
    if name.partition(".")[0] in {known.partition(".")[0] for known in available}:
        return name
    raise ConfigError(f"device={asked!r}: expected one of {', '.join(available)}, as openvino has")
