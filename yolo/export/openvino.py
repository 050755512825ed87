# SPDX-License-Identifier: Apache-2.0
"""Write OpenVINO models: a folder with the graph, its weights and the metadata.

OpenVINO reads the ONNX graph itself (`Core.read_model`). Its converter `ovc` isn't used, which
reports each conversion to its makers, nor NNCF for 8 bits (`yolo.export.quantize` says why).

`half` stores the weights in fp16; what the runtime computes in is the backend's matter.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo.backends.openvino import METADATA
from yolo.backends.quiet import import_openvino
from yolo.cfg.load import write_yaml
from yolo.export.onnx import make
from yolo.export.quantize import graph_inputs, quantize

if TYPE_CHECKING:
    from torch import Tensor

    from yolo.export.formats import Job
    from yolo.export.graph import ExportGraph


def write(graph: ExportGraph, example: Tensor, path: Path, job: Job) -> None:
    """Write the folder `path` = `<stem>_openvino_model` or `<stem>_int8_openvino_model`.

    In it are `<stem>.xml`, `<stem>.bin` and `metadata.yaml`.

    Raises:
        MissingPackageError: if a package that this needs isn't installed.
        ConfigError: if `int8` can't be had with the other options.
        DataError: if there are no images for `int8`.
    """
    openvino = import_openvino()
    config = job.config
    inputs = graph_inputs(job, len(example)) if config.int8 else None
    model = make(graph, example, job)
    if inputs is not None:
        model = quantize(model, inputs)
    converted = openvino.Core().read_model(model.SerializeToString())
    for key, value in model_info(job).items():
        converted.set_rt_info(value, ["model_info", key])
    stem = path.name.removesuffix("_openvino_model")
    stem = stem.removesuffix("_int8") if config.int8 else stem
    path.mkdir(parents=True, exist_ok=True)
    # fp16 is what `save_model` does unless it is told otherwise.
    openvino.save_model(converted, str(path / f"{stem}.xml"), compress_to_fp16=config.half)
    write_yaml(path / METADATA, job.metadata)


def model_info(job: Job) -> dict[str, Any]:
    """Return what Intel's own programs read of a model, for its `rt_info`.

    Source: https://dlstreamer.github.io/dev_guide/model_info_xml.html
    """
    names = job.metadata["names"]
    info: dict[str, Any] = {
        "model_type": "YOLO",
        "labels": " ".join(str(names[i]).replace(" ", "_") for i in sorted(names)),
        "confidence_threshold": job.config.conf,
        "iou_threshold": job.config.iou,
    }
    if job.config.preprocess is None:
        info |= {"reverse_input_channels": True, "scale_values": 255}
    return info
