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

import ctypes
import importlib
import os
import sys
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from yolo.errors import MissingPackageError

_LOCK = threading.RLock()


def import_onnxruntime() -> Any:
    """Return the module onnxruntime.

    Raises:
        MissingPackageError: if it isn't installed.
    """
    decided = os.environ.get("ORT_DISABLE_TELEMETRY", "1")
    with _LOCK, _held(os.environ, "ORT_DISABLE_TELEMETRY", decided):
        return _import("onnxruntime", "ONNX files run on onnxruntime", "onnx")


def import_openvino() -> Any:
    """Return the module openvino.

    Raises:
        MissingPackageError: if it isn't installed.
    """
    with _LOCK, _held(sys.modules, "openvino_telemetry", None):  # how Python marks what is absent
        return _import("openvino", "OpenVINO models need the package openvino", "openvino")


class _SignalStack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Put this thread's alternate signal stack back afterwards.

    OpenVINO (seen in 2026.4) sets one of its own when it loads a device, and unmaps it with the
    last model there. Where another thread drops the last reference, this thread keeps a stack that
    is gone, and the next signal, of a child process that ends say, kills the process.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


def _import(name: str, why: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"{why}, which can't be imported ({error}): pip install 'plainyolo[{extra}]'"
        ) from error


@contextmanager
def _held(mapping: MutableMapping[str, Any], key: str, value: Any) -> Iterator[None]:
    """Let a key have a value for a while."""
    before = {key: mapping[key]} if key in mapping else {}
    mapping[key] = value
    try:
        yield
    finally:
        del mapping[key]
        mapping.update(before)
