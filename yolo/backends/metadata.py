# SPDX-License-Identifier: Apache-2.0
"""What an exported file says of itself: read, checked, completed by the user. No torch.

Values are text in Python's notation (ONNX), or plain data (TorchScript's JSON, OpenVINO's YAML).
Unknown keys are ignored; nothing is evaluated but literals.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yolo.errors import ModelError

MAX_TEXT = 4 << 20
"""Characters of a value; the names of 10,000 classes have 300,000."""

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
    given: Mapping[str, Any] = field(default_factory=dict, repr=False)


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
    args, info = read.mapping("args"), read.info()
    own_task = read.value("task")
    if task is not None and own_task not in (None, task):
        raise ModelError(f"{origin}: is a model for {own_task!r}, not for {task!r}")
    own_names = read.value("names")
    absent = [
        key
        for key, value in (("task", own_task or task), ("names", own_names or names))
        if not value
    ]
    if absent:
        raise ModelError(
            f"{origin}: its metadata lack {' and '.join(map(repr, absent))}; give what is missing, "
            "as in YOLO(file, task='detect', names=['cat', 'dog']), or export the model again"
        )
    sizes = dict(enumerate(shape)) if len(shape) == 4 else {}
    imgsz = read.pair("imgsz") or (640, 640)
    dynamic: bool | str = info.get("dynamic", bool(args.get("dynamic", False)))
    if sizes:
        imgsz = (sizes[2] or imgsz[0], sizes[3] or imgsz[1])
        free = sizes[2] is None or sizes[3] is None
        dynamic = True if free else "batch" if sizes[0] is None else False
    return Metadata(
        task=str(own_task or task),
        names=class_names(own_names or names, origin),
        imgsz=imgsz,
        stride=read.number("stride", 32),
        batch=sizes.get(0) or read.number("batch", 1),
        channels=sizes.get(1) or read.number("channels", 3),
        kpt_shape=read.pair("kpt_shape") or _pair(kpt_shape),
        dynamic=dynamic,
        nms=bool(args.get("nms")),
        preprocess=info.get("preprocess"),
        postprocess=info.get("postprocess"),
        given={k: v for k, v in args.items() if k in {"conf", "iou", "max_det", "agnostic_nms"}},
    )


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
    except (TypeError, ValueError):
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
        value = self.value(key)
        return value if isinstance(value, Mapping) else {}

    def info(self) -> Mapping[str, Any]:
        """Return `yolo_info`, which is JSON."""
        text = self.found.get("yolo_info")
        try:
            value = json.loads(text) if isinstance(text, str) and len(text) <= MAX_TEXT else text
        except (ValueError, RecursionError):
            value = None
        return value if isinstance(value, Mapping) else {}

    def number(self, key: str, default: int) -> int:
        value = self.value(key)
        if value is None:
            return default
        try:
            number = int(value) if int(value) == float(value) else 0
        except (TypeError, ValueError):
            number = 0
        if number < 1:
            raise ModelError(
                f"{self.origin}: expected metadata {key!r} as a whole number >= 1, found {value!r}"
            )
        return number

    def pair(self, key: str) -> tuple[int, int] | None:
        value = self.value(key)
        if value is None:
            return None
        pair = _pair(value)
        if pair is None:
            raise ModelError(
                f"{self.origin}: expected metadata {key!r} as one or two whole numbers >= 1, "
                f"found {value!r}"
            )
        return pair


def _pair(value: Any) -> tuple[int, int] | None:
    """Return one or two whole numbers as two, or None."""
    two = (value, value) if isinstance(value, int) else value
    if not isinstance(two, (list, tuple)) or len(two) != 2:
        return None
    if not all(type(n) is int and n >= 1 for n in two):
        return None
    return two[0], two[1]
