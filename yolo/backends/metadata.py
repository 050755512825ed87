# SPDX-License-Identifier: Apache-2.0
"""What an exported file says of itself: read, checked, completed by the user. No torch.

Values are text in Python's notation (ONNX), or plain data (TorchScript's JSON, OpenVINO's YAML).
Unknown keys are ignored; nothing is evaluated but literals.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yolo.errors import ModelError

MAX_TEXT = 1 << 20
"""Characters of a value; the names of 10,000 classes have 300,000. Reading takes a few hundred
bytes of memory a character at worst."""

MOST = 1 << 16
"""Largest whole number that is believed."""

RAW = {"raw": False, "raw_rgb": True}
"""The ready-made preprocessing as options and `yolo_info` name it: does it take RGB, not BGR."""


@dataclass(frozen=True)
class Metadata:
    """A model's facts.

    Attributes:
        task: name of the task.
        names: class id -> name.
        imgsz: (h, w) the network was made for, pixels.
        stride: largest stride, pixels.
        batch: images a call, binding where the batch isn't free.
        channels: of the images.
        kpt_shape: (keypoints, numbers of each), or None.
        dynamic: False: all sizes are fixed; "batch": the batch is free; True: the image, too.
        nms: outputs are finished rows.
        preprocess: name of a module before the network; for the ready-made one a key of `RAW`.
        postprocess: name of a user's module that made the outputs.
        conf: score floor of `nms`.
    """

    task: str
    names: Mapping[int, str]
    imgsz: tuple[int, int] = (640, 640)
    stride: int = 32
    batch: int = 1
    channels: int = 3
    kpt_shape: tuple[int, int] | None = None
    dynamic: bool | str = False
    nms: bool = False
    preprocess: str | None = None
    postprocess: str | None = None
    conf: float = 0.0


def read_metadata(
    found: Mapping[str, Any],
    origin: object,
    shape: Sequence[int | None] = (),
    *,
    task: str | None = None,
    names: Any = None,
    kpt_shape: Sequence[int] | None = None,
) -> Metadata:
    """Read what a file says of itself.

    Args:
        found: value by key, as the file has them.
        origin: the file, for messages.
        shape: (B, C, H, W) of the input where the runtime knows it, None for free sizes; it
            wins over what the file says.
        task: what the user says; it must agree with the file.
        names: class names that the user gives, where the file has none.
        kpt_shape: the same for keypoints.

    Raises:
        ModelError: if `task` or `names` are absent on both sides or contradict each other, or a
            value isn't what it must be.
    """
    read = _Reader(found, origin)
    args, info = read.mapping("args"), read.mapping("yolo_info")
    own_task, own_names = read.value("task"), read.value("names")
    if task is not None and own_task not in (None, task):
        raise ModelError(f"{origin}: is a model for {own_task!r}, not for {task!r}")
    wanted = {"task": own_task or task, "names": own_names or names}
    absent = [key for key, value in wanted.items() if not value]
    if absent:
        raise ModelError(
            f"{origin}: its metadata lack {' and '.join(map(repr, absent))}; give what is missing, "
            "as in YOLO(file, task='detect', names=['cat', 'dog']), or export the model again"
        )
    imgsz = read.numbers("imgsz", 2, 640)
    dynamic = info.get("dynamic", bool(args.get("dynamic")))
    sizes = list(shape) if len(shape) == 4 else [None] * 4
    if len(shape) == 4:
        imgsz = tuple(size or stated for size, stated in zip(shape[2:], imgsz, strict=True))
        dynamic = True if None in shape[2:] else "batch" if shape[0] is None else False
    return Metadata(
        task=str(wanted["task"]),
        names=class_names(wanted["names"], origin),
        imgsz=imgsz,
        stride=read.numbers("stride", 1, 32)[0],
        batch=sizes[0] or read.numbers("batch", 1, 1)[0],
        channels=sizes[1] or read.numbers("channels", 1, 3)[0],
        kpt_shape=read.numbers("kpt_shape", 2, kpt_shape),
        dynamic=dynamic if dynamic in (True, "batch") else False,
        nms=bool(args.get("nms")),
        preprocess=_name(info.get("preprocess")),
        postprocess=_name(info.get("postprocess")),
        conf=next((c for c in [args.get("conf")] if isinstance(c, (int, float))), 0.0),
    )


def _name(value: Any) -> str | None:
    return None if value is None else str(value)


def class_names(given: Any, origin: object) -> dict[int, str]:
    """Return class names by id, from a list or from pairs whose ids may be text.

    Raises:
        ModelError: if they aren't such, or the ids aren't 0, 1, 2 and so on.
    """
    pairs = given.items() if isinstance(given, Mapping) else None
    if isinstance(given, (list, tuple)):
        pairs = dict(enumerate(given)).items()
    try:
        names = {int(key): str(value) for key, value in pairs or ()}
    except (TypeError, ValueError, OverflowError):
        names = {}
    if not names or sorted(names) != list(range(len(names))):
        raise ModelError(
            f"{origin}: expected `names` as a list, or by class id 0, 1, 2, ..., "
            f"found {str(given)[:80]!r}"
        )
    return dict(sorted(names.items()))


class _Reader:
    """Values of a file's metadata, by key."""

    def __init__(self, found: Mapping[str, Any], origin: object) -> None:
        self.found = found
        self.origin = origin

    def value(self, key: str) -> Any:
        """Return a value as plain data; text that is no literal stays text."""
        value = self.found.get(key)
        if not isinstance(value, str):
            return value
        if len(value) > MAX_TEXT:
            raise ModelError(f"{self.origin}: metadata {key!r} have {len(value)} characters")
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        """Return `args`, or `yolo_info`, which is JSON."""
        value = self.value(key)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                value = None
        return value if isinstance(value, Mapping) else {}

    def numbers(self, key: str, count: int, given: Any = None) -> Any:
        """Return `count` whole numbers, one standing for all; None if there are none."""
        value = self.value(key)
        value = given if value is None else value
        if value is None:
            return None
        found = tuple(value) if isinstance(value, (list, tuple)) else (value,) * count
        if len(found) != count or not all(type(n) is int and 1 <= n <= MOST for n in found):
            raise ModelError(
                f"{self.origin}: expected metadata {key!r} as {count} whole numbers from 1 to "
                f"{MOST}, found {str(value)[:80]!r}"
            )
        return found
