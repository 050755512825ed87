# SPDX-License-Identifier: Apache-2.0
"""A network and options so small that a whole training takes a second or two."""

from __future__ import annotations

from pathlib import Path

from guard import GUARD
from yolo.engine.checkpoint import digest

NETWORK = """
nc: 5
scales:
  n: [0.33, 0.125, 128]
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 3, C2f, [128, True]]
  - [-1, 1, Conv, [128, 3, 2]]
head:
  - [[3, 4], 1, Detect, [nc]]
"""

TINY = {
    "nc": 2,
    "backbone": [
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [16, 3, 2]],
    ],
    "head": [[[1, 2], 1, "Detect", ["nc"]]],
}
"""The least network with two levels, as a description."""


def state_of(model):
    """Return all that inference must leave alone: weights, modes, gradients, types, device."""
    inner = model.model
    return (
        digest(dict(inner.state_dict())),
        [(name, module.training) for name, module in inner.named_modules()],
        [(name, p.requires_grad, p.dtype, p.grad is None) for name, p in inner.named_parameters()],
        model.device,
        repr(inner),
    )


def write_network(folder: Path, text: str = NETWORK) -> Path:
    path = folder / "nano.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def task_network(folder: Path, spec) -> Path:
    """Write the package's network of a task, made small."""
    from yolo.cfg.load import read_yaml, write_yaml
    from yolo.cfg.networks import FOLDER

    network = read_yaml(FOLDER / f"yolov8{spec.suffix}.yaml")
    path = folder / f"{spec.name}.yaml"
    write_yaml(path, {**network, "scales": {"n": [0.33, 0.0625, 128]}})
    return path


def task_data(folder: Path, spec, **changes: object) -> Path:
    """Write a set of a few images with a task's kind of labels."""
    from yolo.data.shapes import write_shapes

    kind = next(iter(spec.label_format().kinds), "boxes")
    few = {"train": 20, "val": 4} if kind == "classes" else {"train": 4, "val": 2}  # all classes
    given = {**few, "size": (64, 64), "kind": kind, **changes}
    file = write_shapes(folder / spec.name, **given)
    GUARD.protected.add(str(folder / spec.name))
    return file


def options(project: Path, name: str, **changes: object) -> dict:
    """Options of a quick CPU run into `project/name`."""
    base = {
        "epochs": 3, "imgsz": 64, "batch": 4, "nbs": 8, "workers": 0, "device": "cpu",
        "plots": False, "verbose": False, "project": str(project), "name": name,
    }  # fmt: skip
    return base | changes


def train(
    project, name="run", *, network, data, model=None, trainer=None, callbacks=None, **changes
):
    """Train into `project/name`; give the facade, with the trainer in it.

    Args:
        project: parent of the run folder.
        name: of the run folder.
        network: file of the network, for a fresh facade.
        data: dataset file, or what else `data=` takes.
        model: a facade to train instead of a fresh one.
        trainer: a trainer class.
        callbacks: event -> function.
        changes: options, beside those of `options` and one epoch.
    """
    from yolo import YOLO

    model = model or YOLO(network)
    for event, callback in (callbacks or {}).items():
        model.add_callback(event, callback)
    as_given = str(data) if isinstance(data, Path) else data
    given = options(project, name, **{"data": as_given, "epochs": 1, **changes})
    model.train(trainer, **given)
    return model


def weights_of(model):
    """Return the averaged weights that a training ended with."""
    from yolo.engine.checkpoint import load_checkpoint

    return load_checkpoint(model.trainer.last).weights


def same(a, b):
    """Return True if two state dicts are equal bit for bit."""
    return a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)
