# SPDX-License-Identifier: Apache-2.0
"""Run files of torch.export (.pt2) with torch, once it is clear that reading them runs nothing.

`torch.export.load` unpickles constants and example inputs, evaluates the formulas of sizes, imports
what the structure of inputs names, compiles guards as Python, and writes a function's source with
the names of the graph's values. All that stands in the archive. So torch isn't given the file, but
an archive made anew of what could be looked through: raw tensors, and JSON in which every text has
a form that can't run anything. It has no example inputs; they aren't needed.

A package of AOTInductor holds machine code, which nobody can look through; it isn't opened.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from yolo.backends.exported import sound
from yolo.backends.metadata import read_metadata
from yolo.backends.torchscript import TorchModel, archive_metadata
from yolo.errors import ModelError

_ENTRY = re.compile(
    r"\w+/(archive_format|archive_version|byteorder|\.(data|format|storage)\w*(/\w+)?|extra/[\w.]+"
    r"|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/(weights|constants)/(model_(weights|constants)_config\.json|(weight|tensor)_\d+))"
)
"""What an archive may hold: no pickled objects but the example inputs, which are left out."""

_NUMBER = r"\d|[\s()*+/,<>=%!-]"
_FORMULA = (
    r"(Symbol\('[a-z]+\d+'|Float\('[\d.e+-]{1,40}'"
    r"|(Integer|Rational|Add|Mul|Pow|Min|Max|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|IntTrueDiv"
    r"|FloatTrueDiv|ModularIndexing|(Ceil|Floor|Trunc|Round)ToInt|ToFloat|Identity|Where|And|Or|Not"
    r"|Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality|(Strict)?(Less|Greater)Than)\("
    r"|(positive|nonnegative|integer|precision)=|True|False|[a-z]{1,2}\d+(?!\d)|" + _NUMBER + ")*"
)
_GUARD = rf"(L\['\w+'\]\.size\(\)\[\d+\]|\b(and|or|not|max|min|Max|Min|Mod|Eq|Ne)\b|{_NUMBER})*"
_STRUCTURE = (
    r"(\"type\": (null|\"builtins\.(tuple|list|dict)\")|\"context\": (null|\"(null|\[\])\")"
    r"|\"children_spec\": |[\s\[\]{},\d])*"
)
_CALL = (
    r"torch\.ops\.(aten(?!\.(from_file|save|load))|torchvision|yolo)\.\w+\.\w+|torch\.sym_\w+"
    r"|torch\._sym_sqrt|math\.(ceil|floor|trunc|sqrt)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|getitem)"
)
_TEXTS = {
    "expr_str": _FORMULA, "guards_code": _GUARD, "in_spec": _STRUCTURE, "out_spec": _STRUCTURE,
    "target": _CALL, "name": r"\w*", "as_name": r"\w*",
    "as_string": r"[\w\s'()+*/,.<>=%!-]*",
    "forward_arg_names": r"\w*", "path_name": r"(weight|tensor)_\d+",
}  # fmt: skip
"""Forms of texts by their key; others are names with dots, or versions."""

_OTHER = r"[\w.+:-]*"
_EMPTY = (
    "as_graph", "as_operator", "as_custom_obj", "custom_obj_values", "constant_input", "use_pickle",
)  # fmt: skip
"""Keys of what isn't needed here and could run."""


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
        found, archive = archive_metadata(path), harmless(path)
        super().__init__(path, read_metadata(found, path, **given), device)
        from torch.export.passes import move_to_device_pass

        with sound(path, "torch.export file"), warnings.catch_warnings(record=True):
            program = torch.export.load(archive)
            self.network = move_to_device_pass(program, self.device).module()


def harmless(path: str | Path) -> io.BytesIO:
    """Return an archive anew, made of what can't run code when torch reads it.

    Raises:
        ModelError: if there is more in it.
    """
    result = io.BytesIO()
    with (
        sound(path, "torch.export file"),
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(result, "w") as new,
    ):
        for entry in old.infolist():
            name = entry.filename
            if "/data/aotinductor/" in name:
                raise ModelError(
                    f"{path}: a package of AOTInductor holds machine code, which isn't run here; "
                    "if you trust it, use torch._inductor.aoti_load_package"
                )
            twice = name in new.namelist()
            if twice or entry.compress_type or not _ENTRY.fullmatch(name):
                raise ModelError(
                    f"{path}: no sound torch.export file (expected a program and tensors alone, "
                    f"found {name!r})"
                )
            content = old.read(entry)
            if name.endswith(".json"):
                content = json.dumps(_checked(json.loads(content), "", path)).encode()
            new.writestr(name, b"" if name.endswith(".pt") else content)
    result.seek(0)
    return result


def _checked(value: Any, key: str, path: str | Path) -> Any:
    """Return JSON without the notes of its nodes; `key` is that under which a value stands."""
    if isinstance(value, dict):
        texts = [text for text in value if not re.fullmatch(_OTHER, text)]
        if not texts and (key not in _EMPTY or not value):
            return {k: {} if k == "metadata" else _checked(v, k, path) for k, v in value.items()}
        found: Any = texts or key
    elif isinstance(value, list):
        return [_checked(item, key, path) for item in value]
    elif isinstance(value, str):
        if key not in _EMPTY and re.fullmatch(_TEXTS.get(key, _OTHER), value):
            return value
        found = value
    elif value and key in _EMPTY:
        found = key
    else:
        return value
    raise ModelError(f"{path}: expected a program of arithmetic alone, found {str(found)[:80]!r}")
