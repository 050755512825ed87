# SPDX-License-Identifier: Apache-2.0
"""Our checkpoint as a safetensors file: weights as its tensors, all the rest as JSON beside them.

The metadata key `plainyolo` holds the JSON text. It keeps what JSON would lose: a mapping with keys
other than text is `{"@pairs": [[key, value], ...]}`, and `weights` is the list of the tensors'
names in the state dict's order, which the checksum goes by. The description's `words` (see
`yolo.tasks.detect.model`) are a tensor of that name. The state of a run has no place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from yolo.errors import CheckpointError, MissingPackageError

SUFFIX: Final = ".safetensors"
KEY: Final = "plainyolo"
_PAIRS = "@pairs"
_WORDS = "words"


def encode(content: Mapping[str, Any]) -> bytes:
    """Return the file of a checkpoint's content.

    Raises:
        CheckpointError: if it holds tensors beside weights and words.
        MissingPackageError: without the package safetensors.
    """
    weights = content["weights"]
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    rest, words = {**content, "weights": list(weights)}, content["network"].get(_WORDS)
    if isinstance(words, Tensor):
        tensors[_WORDS] = words.clone()
        rest["network"] = {**content["network"], _WORDS: None}
    try:
        text = json.dumps(_to_json(rest))
    except TypeError:
        raise CheckpointError(
            "a safetensors file holds weights and plain data, no training state; save it as .pt"
        ) from None
    data: bytes = package().torch.save(tensors, {KEY: text})
    return data


def read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint.

    Raises:
        OSError: if the file can't be read.
        CheckpointError: if it is damaged or not ours.
        MissingPackageError: without the package safetensors.
    """
    opened = package()
    with path.open("rb"):
        pass  # the package's own error for a file that can't be read says less
    try:
        with opened.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        content = _from_json(json.loads(text)) if text else {}
        if content:
            content["weights"] = {name: tensors[name] for name in content["weights"]}
            if _WORDS in tensors:
                content["network"][_WORDS] = tensors[_WORDS]
    except Exception as error:  # the package's own errors, and all that bad JSON may raise
        raise CheckpointError(
            "the file is damaged or no safetensors file "
            f"({str(error).splitlines()[0][:200] if str(error) else type(error).__name__})"
        ) from error
    if not content:
        raise CheckpointError(
            "holds tensors alone; expected the network's description in its metadata, as "
            "model.save() writes it"
        )
    return content


def package() -> Any:
    """Return the package safetensors, with its `torch`.

    Raises:
        MissingPackageError: without it.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise MissingPackageError(
            "safetensors files need the package safetensors: pip install 'plainyolo[safetensors]'"
        ) from error
    return safetensors


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and _PAIRS not in value:
            return {key: _to_json(item) for key, item in value.items()}
        return {_PAIRS: [[_to_json(key), _to_json(item)] for key, item in value.items()]}
    return [_to_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_PAIRS}:
            return {key: _from_json(item) for key, item in value[_PAIRS]}
        return {key: _from_json(item) for key, item in value.items()}
    return [_from_json(item) for item in value] if isinstance(value, list) else value
