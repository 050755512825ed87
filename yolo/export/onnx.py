# SPDX-License-Identifier: Apache-2.0
"""Write ONNX files, by torch's exporter of whole graphs."""

from __future__ import annotations

import importlib
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from yolo.backends.quiet import import_onnxruntime
from yolo.errors import ConfigError, MissingPackageError
from yolo.export.metadata import as_text

if TYPE_CHECKING:
    from yolo.export.formats import Job
    from yolo.export.graph import ExportGraph

OPSETS = (18, 19, 20, 21, 22, 23, 24)
"""Operator sets that work for every task. Torch's exporter builds for 18 and newer; converted to
older ones its graphs are refused by onnxruntime (`Split` has another form there)."""

DEFAULT_OPSET = 18


def write(graph: ExportGraph, example: Tensor, path: Path, job: Job) -> None:
    """Write a graph as an ONNX file that holds its weights and metadata.

    Raises:
        MissingPackageError: if the packages that make ONNX files aren't installed.
        ConfigError: if the operator set isn't one that works.
    """
    onnx = _package("onnx")
    model = make(graph, example, job)
    onnx.helper.set_model_props(model, as_text(job.metadata))
    onnx.checker.check_model(model)
    onnx.save_model(model, str(path))


def make(graph: ExportGraph, example: Tensor, job: Job) -> Any:
    """Return a graph as a tidy ONNX model (onnx.ModelProto) without metadata; raises as `write`."""
    with suppress(MissingPackageError):
        import_onnxruntime()  # silently, before the tools used here do
    opset = job.config.opset or DEFAULT_OPSET
    if opset not in OPSETS:
        raise ConfigError(f"opset={opset}: expected one of {', '.join(map(str, OPSETS))}")
    _package("onnxscript")
    free = {axis: torch.export.Dim.DYNAMIC for axis in job.axes.get(job.inputs[0], {})}
    translations: Any = None
    if graph.nms is not None:
        from yolo.export.nms import onnx_translations

        translations = onnx_translations()
    with torch.no_grad(), warnings.catch_warnings(record=True):  # torch's own, by the dozen
        program: Any = torch.onnx.export(
            graph,
            (example,),
            input_names=list(job.inputs),
            output_names=list(job.outputs),
            opset_version=opset,
            dynamo=True,
            dynamic_shapes=(free,) if free else None,
            custom_translation_table=translations,
            verbose=False,
        )
    model = program.model_proto
    written = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        raise ConfigError(f"opset={opset}: this model needs {written}; use opset={written}")
    _tidy(model, job)
    return model


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"making ONNX files needs the package {name} ({error}): pip install 'plainyolo[export]'"
        ) from error


def _tidy(model: Any, job: Job) -> None:
    """Name the free sizes, and drop the exporter's notes, which hold paths of this machine."""
    graph = model.graph
    names: dict[str, str] = {}
    for value in graph.input:
        for axis, name in job.axes.get(value.name, {}).items():
            size = value.type.tensor_type.shape.dim[axis]
            names[size.dim_param] = name
            size.dim_param = name
    for value in graph.output:
        free = job.axes.get(value.name, {})
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if size.dim_param or axis in free:
                size.dim_param = free.get(axis) or names.get(size.dim_param, f"{value.name}_{axis}")
    del graph.value_info[:]
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
