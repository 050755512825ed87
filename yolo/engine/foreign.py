# SPDX-License-Identifier: Apache-2.0
"""From what Ultralytics 8.x saved to the fields of our checkpoint.

Such a file holds a pickled module, in half precision, under `ema` while its training runs and under
`model` when it has ended. What is taken: parameters and buffers by their names (which our modules
share), the network's YAML, the class names and their embeddings where they are words, the training
options, the results of the epochs.
Whatever else the module carries stays unread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from torch import Tensor

from yolo.engine.pickles import Record
from yolo.engine.torchfile import StoredTensor, TorchFile
from yolo.errors import CheckpointError

ORIGIN: Final = "ultralytics"
"""Key of `Checkpoint.versions` that tells a converted file, with the version that wrote it."""

_SLOTS = ("ema", "model")  # the averaged weights are what one predicts with
_LOCAL = ("yaml_file", "channels")  # a path of another machine; our name for the second is ch
_NOT_OURS = ("classes", "channels_last", "device")
"""Options that later calls shall not start from: they aren't meant for predicting with us."""


def is_foreign(content: Any) -> bool:
    """Tell whether the content of a torch file is such a checkpoint."""
    return isinstance(content, dict) and _module(content) is not None


def convert(file: TorchFile) -> dict[str, Any]:
    """Return the fields of our checkpoint.

    Raises:
        CheckpointError: if a part is absent or isn't what it should be.
    """
    content = file.content
    module = _module(content)
    state: Any = module.state if module else None
    if not isinstance(state, dict):
        raise CheckpointError("its model has no attributes; the file is damaged")
    yaml = file.plain(state.get("yaml"))
    if not isinstance(yaml, dict):
        raise CheckpointError(
            f"its model ({module and module.kind}) carries no network description, "
            "so its network can't be built"
        )
    names = _names(file, state.get("names", yaml.get("names")))
    options = _options(file, content.get("train_args") or state.get("args"))
    network = {key: value for key, value in yaml.items() if key not in _LOCAL}
    network |= {"nc": len(names), "ch": yaml.get("ch", yaml.get("channels", 3)), "names": names}
    if "kpt_shape" in state:
        network["kpt_shape"] = file.plain(state["kpt_shape"])
    if isinstance(yaml.get("nc"), int) and yaml["nc"] != len(names):  # of a network for words
        network["class_width"] = min(yaml["nc"], 100)
    if isinstance(text := state.get("txt_feats"), StoredTensor) and text.size[-2:-1] == (
        len(names),
    ):
        network["words"] = file.tensor(text).float().reshape(len(names), -1)
    weights = _weights(file, module)
    if _is_unscaled(network, weights):
        network["unscaled"] = len(names)
    epoch, metrics = content.get("epoch"), _table(file, content.get("train_metrics"))
    return {
        "task": _text(state.get("task")) or _text(options.get("task")),
        "names": names,
        "network": network,
        "weights": weights,
        "config": {k: v for k, v in options.items() if k not in _NOT_OURS},
        "epoch": epoch if isinstance(epoch, int) else -1,
        "metrics": {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float))},
        "history": _history(_table(file, content.get("train_results"))),
        "versions": {ORIGIN: _text(content.get("version"))},
        "date": _text(content.get("date")),
    }


def _text(value: Any) -> str:
    """Return short text; anything else could be nested without end."""
    return value[:40] if isinstance(value, str) else ""


def _module(content: Mapping[Any, Any]) -> Record | None:
    """Return the pickled model."""
    found = [content.get(slot) for slot in _SLOTS]
    return next((value for value in found if isinstance(value, Record)), None)


def _weights(file: TorchFile, module: Any) -> dict[str, Tensor]:
    """Read the state dict; floating-point tensors in float32."""
    weights: dict[str, Tensor] = {}
    for name, stored in _walk(file, module, "", 0):
        tensor = file.tensor(stored)
        weights[name] = tensor.float() if tensor.is_floating_point() else tensor
    if not weights:
        raise CheckpointError("its model holds no weights")
    return weights


def _walk(
    file: TorchFile, module: Any, prefix: str, depth: int
) -> Iterator[tuple[str, StoredTensor]]:
    """Yield what a module's state dict would hold, in its order."""
    file.enter(depth)
    state = getattr(module, "state", None)
    if not isinstance(state, dict):
        raise CheckpointError(f"its part {prefix[:80]!r} is no module")
    transient = state.get("_non_persistent_buffers_set") or ()
    for group in ("_parameters", "_buffers"):
        for name, value in (state.get(group) or {}).items():
            if isinstance(value, StoredTensor) and name not in transient:
                yield f"{prefix}{name}", value
    for name, child in (state.get("_modules") or {}).items():
        if child is not None:
            yield from _walk(file, child, f"{prefix}{name}.", depth + 1)


def _is_unscaled(network: Mapping[str, Any], weights: Mapping[str, Tensor]) -> bool:
    """Tell whether rows as wide as there are classes kept that width: 8.2 didn't scale them."""
    rows = [row for part in ("backbone", "head") for row in network.get(part) or ()]
    return any(
        len(weights.get(f"model.{i}.{last}conv.weight", ())) == network["nc"]
        for i, row in enumerate(rows)
        if isinstance(row, list) and len(row) == 4 and row[3] and row[3][0] == network["nc"]
        for last in ("", "cv2.")
    )


def _names(file: TorchFile, given: Any) -> dict[int, str]:
    """Return the class names, which are a list or a dict."""
    names = file.plain(given)
    pairs = dict(enumerate(names)) if isinstance(names, (list, tuple)) else names
    try:
        found = {int(i): str(name) for i, name in pairs.items()}
    except (AttributeError, TypeError, ValueError):
        found = {}
    if not found or sorted(found) != list(range(len(found))):
        raise CheckpointError(f"expected class names, found {str(names)[:80]}")
    return found


def _options(file: TorchFile, given: Any) -> dict[str, Any]:
    """Return the training options, a dict or a namespace; those that aren't plain are left out."""
    options = given.state if isinstance(given, Record) else given
    plain: dict[str, Any] = {}
    for key, value in options.items() if isinstance(options, dict) else ():
        if isinstance(value, (str, int, float, list)):
            plain[str(key)] = file.plain(value)
    return plain


def _table(file: TorchFile, given: Any) -> dict[str, Any]:
    return file.plain(given) if isinstance(given, dict) else {}


def _history(columns: Mapping[str, Any]) -> list[dict[str, float]]:
    """Turn columns into one row an epoch."""
    lists = {name: values for name, values in columns.items() if isinstance(values, list)}
    count = max(map(len, lists.values()), default=0)
    return [
        {
            name: values[i]
            for name, values in lists.items()
            if i < len(values) and isinstance(values[i], (int, float))
        }
        for i in range(count)
    ]
