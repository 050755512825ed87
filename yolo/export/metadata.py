# SPDX-License-Identifier: Apache-2.0
"""What an exported file says of itself, in the notation that the familiar loaders read.

They take every key for an attribute of their own, so there are the familiar ones and `yolo_info`
alone. That is JSON, and says the whole policy of the input, so that the file can be used right
where nothing of this package is installed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import yolo
from yolo.backends.metadata import RAW
from yolo.data.letterbox import FILL

if TYPE_CHECKING:
    from yolo.cfg.schema import ExportConfig
    from yolo.tasks.spec import TaskSpec

VERSION = 1
"""Of `yolo_info`."""

_ARGS = ("batch", "half", "int8", "simplify", "opset", "conf", "iou", "max_det", "agnostic_nms")


def describe(
    config: ExportConfig, spec: TaskSpec, network: Any, size: tuple[int, int], nms: bool
) -> dict[str, Any]:
    """Return what the file of an export says of itself, as plain data.

    Args:
        config: the options of the export.
        spec: the task.
        network: with `names`, `stride`, `num_channels`, and `kpt_shape` where it has keypoints.
        size: (h, w) of the network's input, pixels.
        nms: overlapping boxes are suppressed in the file.
    """
    names, stride = dict(network.names), int(max(network.stride))
    facts: dict[str, Any] = {
        "description": f"{spec.name} model with {len(names)} classes",
        "author": "plainyolo",
        "version": yolo.__version__,
        "task": spec.name,
        "stride": stride,
        "batch": config.batch,
        "imgsz": list(size),
        "names": names,
        "channels": int(network.num_channels),
        "args": {
            **{name: getattr(config, name) for name in _ARGS},
            # The familiar loaders take this for a free size, too, which "batch" hasn't.
            "dynamic": config.dynamic is True,
            "imgsz": list(size),
            "nms": nms,
        },
        "end2end": False,
    }
    if hasattr(network, "kpt_shape"):
        facts["kpt_shape"] = list(network.kpt_shape)
    info = {
        "version": VERSION,
        "task": spec.name,
        "names": [names[i] for i in sorted(names)],
        "input": _input_policy(config, spec, size, stride),
        "dynamic": config.dynamic,
        "precision": "int8" if config.int8 else "fp16" if config.half else "fp32",
        "preprocess": module_name(config.preprocess),
        "postprocess": module_name(config.postprocess),
        "weights_sha256": digest(network),
    }
    return {**facts, "yolo_info": json.dumps(info)}


def _input_policy(
    config: ExportConfig, spec: TaskSpec, size: tuple[int, int], stride: int
) -> dict[str, Any]:
    """Say what the file wants to be fed with."""
    assert spec.outputs is not None
    fit: dict[str, Any] = {"kind": spec.outputs.fit, "size": list(size), "stride": stride}
    if fit["kind"] == "letterbox":
        fit |= {"fill": FILL, "centred": True, "interpolation": "bilinear"}
    if config.preprocess is None:
        return {"layout": "BCHW", "type": "float32", "colours": "RGB", "range": [0, 1], "fit": fit}
    if isinstance(config.preprocess, str):
        colours = "RGB" if RAW[config.preprocess] else "BGR"
        inside = {"colours": colours, "range": [0, 255], "fit": None}
        return {"layout": "HWC", "type": "uint8", **inside}
    return {"made_by": module_name(config.preprocess)}


def module_name(module: Any) -> str | None:
    """Name what was given as processing of one's own."""
    if module is None or isinstance(module, str):
        return module
    return type(module).__qualname__


def digest(network: nn.Module) -> str:
    """Return the SHA-256 over all weights and buffers, by name, in their own precision."""
    found = hashlib.sha256()
    for name, value in sorted({**dict(network.named_buffers()), **network.state_dict()}.items()):
        plain = value.detach().cpu().contiguous().view(-1)
        found.update(f"{name} {plain.dtype} {tuple(value.shape)}\n".encode())
        found.update(plain.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def as_text(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts as text in Python's notation, as ONNX has them."""
    return {key: value if isinstance(value, str) else repr(value) for key, value in facts.items()}
