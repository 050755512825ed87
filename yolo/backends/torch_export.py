# SPDX-License-Identifier: Apache-2.0
"""Run files of torch.export (.pt2) with torch, once it is clear that reading them runs nothing.

`torch.export.load` unpickles what the archive marks as pickled, and evaluates the formulas of
sizes as Python. So the archive is looked through first: what is pickled must be tensors alone, and
formulas must be arithmetic. A package of AOTInductor holds machine code, which nobody can look
through; it isn't opened.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from yolo.backends.metadata import read_metadata
from yolo.backends.torchscript import TorchModel, archive_metadata
from yolo.errors import ModelError

_FOLDERS = ("extra", "models", "data", ".data", "archive_format", "archive_version", "byteorder")
_FORMULA = re.compile(r"(?!.*(__|\b[a-z_]\w*\s*\())([\w\s()'+*/,<>=-]|(?<=\d)\.(?=\d))*", re.DOTALL)
"""Arithmetic in sympy's notation: names, numbers, and calls of capitalised names alone."""
_TARGET = re.compile(
    r"torch\.ops\.\w+\.\w+\.\w+|torch\.sym_\w+|torch\._sym_sqrt"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|getitem)"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
"""What a program may call: operators and arithmetic, not any function that torch can reach."""


class TorchExportModel(TorchModel):
    """A program of torch.export.

    Args:
        path: the file.
        device: as in `yolo.engine.runtime.select_device`.
        **given: `task`, `names`, `kpt_shape` where the file doesn't say them.

    Raises:
        ModelError: if the file isn't sound, holds what might run when it is read, or doesn't say
            enough of itself.
    """

    def __init__(self, path: str | Path, device: Any = None, **given: Any) -> None:
        found = archive_metadata(path)
        check_archive(path)
        super().__init__(path, read_metadata(found, path, **given), device)
        from torch.export.passes import move_to_device_pass

        try:
            with warnings.catch_warnings(record=True):
                program = torch.export.load(str(path))
        except Exception as error:  # a damaged program can fail anywhere in torch
            reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"{path}: no sound torch.export file ({reason[:300]})") from error
        self.network = move_to_device_pass(program, self.device).module()


def check_archive(path: str | Path) -> None:
    """Refuse an archive that could run code when torch reads it.

    Raises:
        ModelError: if it could.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            inner = name.partition("/")[2]
            folder = inner.partition("/")[0]
            if "aotinductor" in inner:
                raise ModelError(
                    f"{path}: a package of AOTInductor holds machine code, which isn't run here; "
                    "if you trust it, use torch._inductor.aoti_load_package"
                )
            if folder not in _FOLDERS:
                raise ModelError(f"{path}: no sound torch.export file (it holds {name!r})")
            if inner.endswith(".json"):
                _check_json(json.loads(archive.read(name)), path)
            elif inner.startswith("data/sample_inputs/"):
                _check_tensors(archive.read(name), path)


def _check_json(value: Any, path: str | Path) -> None:
    for key, item in _items(value):
        if key == "use_pickle" and item is not False:
            raise ModelError(f"{path}: holds pickled objects, which could run code; export it anew")
        allowed = {"expr_str": _FORMULA, "target": _TARGET}.get(key)
        if allowed and not (isinstance(item, str) and allowed.fullmatch(item)):
            found = str(item)[:80]
            raise ModelError(f"{path}: expected a program of arithmetic alone, found {found!r}")


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, at any depth."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield from found.items()
            waiting.extend(found.values())
        elif isinstance(found, list):
            waiting.extend(found)


def _check_tensors(content: bytes, path: str | Path) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:
        raise ModelError(f"{path}: holds pickled objects that aren't plain tensors") from error
