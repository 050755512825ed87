# SPDX-License-Identifier: Apache-2.0
"""What can run a network: one file a runtime, chosen by the name of the exported file."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo.errors import MissingFileError

if TYPE_CHECKING:
    from yolo.backends.exported import ExportedModel

BACKENDS = {
    ".onnx": "yolo.backends.onnx:OnnxModel",
    ".torchscript": "yolo.backends.torchscript:TorchScriptModel",
    ".pt2": "yolo.backends.torch_export:TorchExportModel",
    "_openvino_model": "yolo.backends.openvino:OpenVinoModel",
    ".engine": "yolo.backends.engine:EngineModel",
}
"""How names of exported files and folders end, and the class that runs them."""


def is_exported(model: Any) -> bool:
    """Tell by its name whether a model is an exported file or folder."""
    return _suffix(model) is not None


def _suffix(model: Any) -> str | None:
    name = Path(model).name
    return next((suffix for suffix in BACKENDS if name.endswith(suffix)), None)


def open_backend(path: str | Path, device: Any = None, **given: Any) -> ExportedModel:
    """Open an exported file.

    Args:
        path: the file or folder.
        device: where to run; None: as the runtime likes best.
        **given: what the file doesn't say itself: `task`, `names`, `imgsz`, `kpt_shape`.

    Raises:
        MissingFileError: if there is no such file.
        MissingPackageError: if its runtime isn't installed.
        ModelError: if the file can't be used, or doesn't say enough of itself.
    """
    if not Path(path).exists():
        raise MissingFileError(f"{path}: no such exported model; check the path, or export one")
    module, _, name = BACKENDS[_suffix(path) or ".onnx"].partition(":")
    backend: ExportedModel = getattr(importlib.import_module(module), name)(path, device, **given)
    return backend
