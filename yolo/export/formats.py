# SPDX-License-Identifier: Apache-2.0
"""The formats that a model can be exported to. Looking one up imports neither torch nor a runtime.

A writer is a function `write(graph, example, path, job)` in a file of its own; it is given as
"package.module:name" and imported when it is needed. What runs the file stands in
`yolo/backends/__init__.py`, by the same suffix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from yolo.registry import Registry

if TYPE_CHECKING:
    from yolo.cfg.schema import ExportConfig

Axes = Mapping[str, Mapping[int, str]]
"""Name of an input or output -> axis -> the name of its free size."""


@dataclass(frozen=True)
class Job:
    """What a writer has to know beside the graph.

    Attributes:
        config: the options of the export.
        metadata: what the file says of itself, plain data by key.
        inputs: names of the graph's inputs, in their order.
        outputs: names of its outputs, in their order.
        axes: the sizes that stay free, by input and output; empty for a static file.
        calibration: gives images to measure 8-bit scales on, each a float32 NumPy array
            (B, C, H, W), RGB 0..1, as the network sees them; None unless `config.int8`.
    """

    config: ExportConfig
    metadata: Mapping[str, Any]
    inputs: tuple[str, ...] = ("images",)
    outputs: tuple[str, ...] = ("output0",)
    axes: Axes = field(default_factory=dict)
    calibration: Callable[[], Iterable[Any]] | None = None


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        name: what users write.
        suffix: how the file or folder is called behind the stem of the weights.
        writer: "module:name" of `write(graph: ExportGraph, example: Tensor, path: Path, job: Job)`,
            which writes the file or folder `path`.
        takes: options of the export that mean something for it, beyond those all formats have.
        device: kind of device that its runtime proves it on, None where it is that of the export.
    """

    name: str
    suffix: str
    writer: str
    takes: frozenset[str]
    device: str | None = None


FORMATS: Registry[Format] = Registry("export format")

_GRAPH = frozenset({"half", "dynamic"})

for _format in (
    Format("torchscript", ".torchscript", "yolo.export.torchscript:write", _GRAPH),
    Format("onnx", ".onnx", "yolo.export.onnx:write", _GRAPH | {"opset"}, device="cpu"),
    Format("torch_export", ".pt2", "yolo.export.torch_export:write", _GRAPH | {"compile"}),
    Format(
        "openvino",
        "_openvino_model",
        "yolo.export.openvino:write",
        _GRAPH | {"int8"},
        device="cpu",
    ),
    Format(
        "engine",
        ".engine",
        "yolo.export.engine:write",
        _GRAPH | {"int8", "workspace"},
        device="cuda",
    ),
):
    FORMATS.add(_format.name, _format)
