# SPDX-License-Identifier: Apache-2.0
"""Write TensorRT files, where TensorRT and an NVIDIA GPU are there.

TensorRT reads the ONNX graph. Networks are strongly typed, as version 11 has them always: `half` is
in the types of the graph, `int8` in its QuantizeLinear nodes (`yolo.export.quantize`). TF32, which
TensorRT takes for fp32 by itself, is off, since scores differ by more than an export is allowed to.

Written from NVIDIA's documentation of the Python API, versions 10 and 11, and tested with a
stand-in for the package alone; `yolo.backends.engine` names the page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from yolo.backends.engine import cuda_device, import_tensorrt, join
from yolo.errors import ExportError
from yolo.export.onnx import make
from yolo.export.quantize import graph_inputs, quantize

if TYPE_CHECKING:
    from torch import Tensor

    from yolo.export.formats import Job
    from yolo.export.graph import ExportGraph

LARGEST_BATCH = 16
"""Images a call of a file whose batch is free, unless `batch` is larger."""

GROWTH = 2
"""Largest sides of a file whose sizes are free, as a multiple of `imgsz`..."""

RAW_GROWTH = 8
"""... and of the images where the file prepares them."""

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def write(graph: ExportGraph, example: Tensor, path: Path, job: Job) -> None:
    """Write a graph as a TensorRT file for the GPU of this machine.

    Raises:
        MissingPackageError: if TensorRT, or a package that makes ONNX files, isn't installed.
        ConfigError: if there is no GPU, or `int8` can't be had with the other options.
        DataError: if there are no images for `int8`.
        ExportError: if TensorRT refuses the graph.
    """
    trt = import_tensorrt()
    device = cuda_device(example.device if example.is_cuda else None)
    inputs = graph_inputs(job, len(example)) if job.config.int8 else None
    model = make(graph, example, job)
    if inputs is not None:
        model = quantize(model, inputs, symmetric=True)
    with torch.cuda.device(device):
        plan = build(trt, model.SerializeToString(), tuple(example.shape), job)
    path.write_bytes(join(json.dumps(job.metadata), plan))


def build(trt: Any, model: bytes, shape: tuple[int, ...], job: Job) -> bytes:
    """Return the plan that TensorRT makes of an ONNX model.

    Args:
        trt: the module tensorrt.
        model: the ONNX model.
        shape: of an input.
        job: what else is to be known.

    Raises:
        ExportError: if TensorRT refuses the model.
    """
    logger = trt.Logger(trt.ILogger.Severity.WARNING)
    builder = trt.Builder(logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        faults = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise ExportError(f"TensorRT can't read the graph: {'; '.join(faults)[:600]}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if job.config.workspace is not None:
        size = int(job.config.workspace * 2**30)
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
    if job.axes.get(job.inputs[0]):
        profile = builder.create_optimization_profile()
        profile.set_shape(job.inputs[0], *profile_shapes(shape, job))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError("TensorRT can't build the graph; see what it printed")
    return bytes(plan)


def profile_shapes(shape: tuple[int, ...], job: Job) -> Shapes:
    """Return the least, usual and largest shape of an input with free sizes."""
    height, width = job.metadata["imgsz"]
    stride, batch = int(job.metadata["stride"]), job.config.batch
    growth = GROWTH if job.config.preprocess is None else RAW_GROWTH
    ranges = {
        "batch": (1, batch, max(batch, LARGEST_BATCH)),
        "height": (stride, height, growth * height),
        "width": (stride, width, growth * width),
    }
    free = job.axes[job.inputs[0]]
    sizes = [ranges[free[i]] if i in free else (size,) * 3 for i, size in enumerate(shape)]
    least, usual, largest = zip(*sizes, strict=True)
    return least, usual, largest
