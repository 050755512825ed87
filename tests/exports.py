# SPDX-License-Identifier: Apache-2.0
"""Small networks whose predictions are worth comparing, and ONNX files made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import nano
from yolo.data.scene import scene

HEADS = {
    "Detect": [[1, 2], 1, "Detect", ["nc"]],
    "Segment": [[1, 2], 1, "Segment", ["nc", 8, 16]],
    "Pose": [[1, 2], 1, "Pose", ["nc"]],
    "OBB": [[1, 2], 1, "OBB", ["nc", 1]],
    "Classify": [-1, 1, "Classify", ["nc"]],
}
NAMES = ["arrow", "drop", "magnet", "mark", "ring"]


def network(spec, seed: int = 0):
    """Build a tiny network of a task whose scores are spread over 0..1."""
    description = {
        **nano.TINY, "nc": 5, "head": [HEADS[spec.head_names[0]]], "kpt_shape": [4, 3]
    }  # fmt: skip
    torch.manual_seed(seed)
    model = spec.model(description)
    model.names = NAMES
    return spread(model, seed)


def spread(model, seed: int = 0):
    """Change fresh weights so that scores are spread over 0..1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.uniform_(0.05, 0.3, generator=generator)
        for branch in getattr(model.head, "cv3", ()):
            branch[-1].weight.mul_(8)
            branch[-1].bias.fill_(-3)
    return model.eval()


def checkpoint(folder: Path, spec) -> Path:
    """Write such a network as a checkpoint."""
    from yolo.weights import write_checkpoint

    path = folder / f"{spec.name}.pt"
    write_checkpoint(network(spec), spec.name, path)
    return path


def images() -> list[np.ndarray]:
    """Draw images of three shapes."""
    sizes = [(64, 64), (90, 120), (130, 70)]
    return [scene(0, "val", i, size).image for i, size in enumerate(sizes)]


def parts(result) -> dict[str, np.ndarray]:
    """Return what a result holds, by the name of the part."""
    names = ("boxes", "obb", "keypoints", "masks", "probs")
    found = {name: getattr(result, name) for name in names}
    return {k: np.asarray(v.numpy().data, np.float64) for k, v in found.items() if v is not None}


def write_onnx(path: Path, rows: np.ndarray, shape=(1, 3, 64, 64), **metadata: object) -> Path:
    """Write an ONNX file that gives each image `rows` (numbers, A), plus the image's mean."""
    import onnx
    from onnx import TensorProto, helper

    batch = shape[0]
    out = [batch, *rows.shape]
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Squeeze", ["mean", "last"], ["flat"]),
        helper.make_node("Add", ["rows", "flat"], ["output0"]),
    ]
    constants = [
        helper.make_tensor("last", TensorProto.INT64, [1], [3]),
        helper.make_tensor("rows", TensorProto.FLOAT, [1, *rows.shape], rows.ravel().tolist()),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, out)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, {k: str(v) for k, v in metadata.items()})
    onnx.save_model(model, str(path))
    return path


def detections() -> np.ndarray:
    """Return predictions (4 + 2, 3) with two boxes that stay and one that goes."""
    boxes = np.array([[32, 32, 20, 10], [33, 32, 20, 10], [10, 32, 8, 8]], np.float32)
    scores = np.array([[0.9, 0.1], [0.8, 0.1], [0.1, 0.7]], np.float32)
    return np.concatenate([boxes, scores], 1).T.copy()
