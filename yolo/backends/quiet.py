# SPDX-License-Identifier: Apache-2.0
"""Import runtimes that report home, with their reporting off.

Nothing here touches the network unless the user asks for a file, so the reporting of what is
imported for them has to stay off, too:

- `import openvino` alone sends an event to Google Analytics and keeps a client's number in
  `~/intel` (its `tools/ovc/__init__.py`, seen in 2026.4). It does without where the package
  `openvino_telemetry`, on which it depends, can't be imported: so that package is hidden from it.
- onnxruntime (since 1.2x on Linux; seen in 1.31) writes a device's number and a data base to
  `~/.cache/Microsoft`, and sends them. Its `Privacy.md` names ORT_DISABLE_TELEMETRY=1, read when
  the library is loaded, as the only complete switch; `disable_telemetry_events()` comes too late.

Both last for the import alone: what was hidden or set is as before when a function here returns,
and what the user imported earlier, or decided with the variable, is left to them.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from yolo.errors import MissingPackageError

_LOCK = threading.RLock()


def import_onnxruntime() -> Any:
    """Return the module onnxruntime.

    Raises:
        MissingPackageError: if it isn't installed.
    """
    with _LOCK, _set("ORT_DISABLE_TELEMETRY", "1"):
        return _import("onnxruntime", "ONNX files run on onnxruntime", "onnx")


def import_openvino() -> Any:
    """Return the module openvino.

    Raises:
        MissingPackageError: if it isn't installed.
    """
    with _LOCK, _hidden("openvino_telemetry"):
        return _import("openvino", "OpenVINO models need the package openvino", "openvino")


def _import(name: str, why: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"{why}, which can't be imported ({error}): pip install 'plainyolo[{extra}]'"
        ) from error


@contextmanager
def _set(variable: str, value: str) -> Iterator[None]:
    """Set an environment variable that isn't set, for a while."""
    if variable in os.environ:
        yield
        return
    os.environ[variable] = value
    try:
        yield
    finally:
        del os.environ[variable]


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Let imports of a package fail, for a while."""
    absent = object()
    before = sys.modules.get(package, absent)
    sys.modules[package] = None  # type: ignore[assignment]  # how Python marks what isn't there
    try:
        yield
    finally:
        if before is absent:
            del sys.modules[package]
        else:
            sys.modules[package] = before  # type: ignore[assignment]
