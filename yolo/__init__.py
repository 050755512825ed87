# SPDX-License-Identifier: Apache-2.0
"""YOLOv8 models you may own, read and trust.

The public names are imported when first used, so that `import yolo` costs nothing and changes
nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from yolo.api import YOLO as YOLO
    from yolo.api import YOLOWorld as YOLOWorld
    from yolo.engine.fetch import fetch_weights as fetch_weights
    from yolo.engine.tracking import Tracker as Tracker
    from yolo.ensemble import attempt_load_weights as attempt_load_weights
    from yolo.errors import YoloError as YoloError
    from yolo.nn.layer import layer as layer
    from yolo.tasks.spec import TASKS as TASKS
    from yolo.tasks.spec import TaskSpec as TaskSpec
    from yolo.tasks.spec import register_task as register_task

_PUBLIC = {
    "YOLO": "yolo.api",
    "YOLOWorld": "yolo.api",
    "attempt_load_weights": "yolo.ensemble",
    "fetch_weights": "yolo.engine.fetch",
    "Tracker": "yolo.engine.tracking",
    "TASKS": "yolo.tasks.spec",
    "TaskSpec": "yolo.tasks.spec",
    "register_task": "yolo.tasks.spec",
    "layer": "yolo.nn.layer",
    "YoloError": "yolo.errors",
}

__all__ = [
    "TASKS", "YOLO", "TaskSpec", "Tracker", "YOLOWorld", "YoloError", "__version__",
    "attempt_load_weights", "fetch_weights", "layer", "register_task",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'yolo' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
