# SPDX-License-Identifier: Apache-2.0
"""Our checkpoint: tensors and plain data in one file, written atomically and verified.

A .pt file is what `torch.save` makes of a dict, so that `torch.load(path, weights_only=True)` opens
it where only torch is installed; a .safetensors file holds the same without a run's state.
docs/checkpoints.md describes both. Reading goes through `yolo.engine.torchfile`, which runs nothing
and also tells Ultralytics' files, see `yolo.engine.foreign`.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from yolo.engine import foreign, safetensors
from yolo.engine.torchfile import TorchFile
from yolo.errors import CheckpointError, MissingFileError, MissingPackageError

FORMAT: Final = "plainyolo"
VERSION: Final = 1

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From the content of a version, once it is verified, to that of the next."""


@dataclass
class Checkpoint:
    """What a checkpoint file holds, beside `format`, `version` and `checksum`.

    Attributes:
        task: name of the task.
        names: class names by id, from 0.
        network: the resolved network description; `BaseModel(network)` builds it.
        weights: state dict in float32: what to predict with (the averaged weights).
        config: the resolved training options.
        epoch: last finished epoch, 0-based; -1 where nothing says.
        metrics: of that epoch.
        history: a row for each finished epoch, as in results.csv.
        versions: of the libraries that wrote it.
        date: when it was written, ISO 8601, UTC.
        state: None, or what resuming the run needs.
    """

    task: str
    names: dict[int, str]
    network: dict[str, Any]
    weights: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    epoch: int = -1
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    date: str = ""
    state: dict[str, Any] | None = None


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that `path` is at every moment a whole file, the old or the new one.

    The new file is written under a temporary name, synced, read back and compared byte by byte;
    only then does it take the place of the old one.

    Raises:
        CheckpointError: if the disk is full or the file can't be written; the old one is intact.
    """
    checkpoint.date = checkpoint.date or datetime.datetime.now(datetime.timezone.utc).isoformat()
    content = {f: getattr(checkpoint, f) for f in Checkpoint.__dataclass_fields__}
    content |= {"format": FORMAT, "version": VERSION}
    content["checksum"] = digest(content)
    data = _encode(content, path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not _holds(temporary, data):
            raise CheckpointError(
                f"{path}: the disk gives back other bytes than were written; the previous file is "
                "intact. Choose a project= on another disk"
            )
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(
            f"{path}: can't be written ({reason}); the previous file is intact. "
            "Free some space or choose another project="
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _encode(content: dict[str, Any], path: Path) -> bytes | memoryview:
    if path.suffix == safetensors.SUFFIX:
        try:
            return safetensors.encode(content)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def _holds(path: Path, data: bytes | memoryview) -> bool:
    """Tell whether a file has exactly these bytes."""
    step, view = 1 << 24, memoryview(data)
    with path.open("rb") as file:
        pieces = range(0, len(view) + 1, step)  # the last one may be empty: nothing may follow
        return all(file.read(step) == view[start : start + step] for start in pieces)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint, ours or Ultralytics', without executing anything from it.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is damaged, of a newer version, or of another library.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such checkpoint; check the path")
    content = read_content(path, path.suffix)
    known = Checkpoint.__dataclass_fields__
    return Checkpoint(**{key: value for key, value in content.items() if key in known})


def read_content(path: Path, suffix: str) -> dict[str, Any]:
    """Read a file's fields, verified and in the form of today's version; `suffix` tells its form.

    Raises:
        CheckpointError: see `load_checkpoint`.
    """
    try:
        if suffix == safetensors.SUFFIX:
            return _verified(safetensors.read(path))
        with TorchFile(path) as file:
            if foreign.is_foreign(file.content):
                return foreign.convert(file)
            found = file.content.get("format") if isinstance(file.content, dict) else None
            if found != FORMAT:
                raise CheckpointError(
                    "a torch file, but no checkpoint of this library or of Ultralytics 8.x, which "
                    "hold a network's description beside its weights. For bare weights, build "
                    "the network and use model.model.load_weights(state_dict)"
                )
            return _verified(file.plain(file.content))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (OSError, MissingPackageError):
        raise
    except Exception as error:  # text that is no text, numbers without end: a file may say anything
        raise CheckpointError(f"{path}: the file is damaged ({type(error).__name__})") from error


def _verified(content: dict[str, Any]) -> dict[str, Any]:
    """Check version, checksum and fields; bring an older version up to date."""
    version = content.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise CheckpointError(
            f"checkpoint version {version!r}, this library reads up to {VERSION}; "
            "update it with `pip install -U plainyolo`"
        )
    if content.get("checksum") != digest(content):
        raise CheckpointError(
            "the checksum doesn't match, so the file is damaged; use another copy"
        )
    for older in range(version, VERSION):
        if older not in MIGRATIONS:
            raise CheckpointError(f"checkpoint version {version} was never published")
        content = MIGRATIONS[older](content)
    for name, kind in _KINDS.items():
        if not isinstance(content.get(name), kind):
            raise CheckpointError(
                f"field {name!r}: expected {kind.__name__}, found "
                f"{type(content.get(name)).__name__}"
            )
    if not all(isinstance(value, Tensor) for value in content["weights"].values()):
        raise CheckpointError("field 'weights': expected tensors alone")
    return content


_KINDS: Final = {"task": str, "names": dict, "network": dict, "weights": dict, "config": dict}
"""Types of the fields that a model is made from."""


def digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a tree of tensors and plain data, but for its key "checksum".

    Raises:
        CheckpointError: if it holds anything else.
    """
    sha = hashlib.sha256()
    _feed(sha, {k: v for k, v in content.items() if k != "checksum"})
    return sha.hexdigest()


def _feed(sha: Any, value: Any) -> None:
    """Feed one value, its type and its extent into the hash, so that no two trees read alike."""
    if isinstance(value, Tensor):
        array = value.detach().cpu().contiguous()
        sha.update(f"T{array.dtype}{tuple(array.shape)}".encode())
        if array.numel():
            sha.update(array.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        sha.update(f"M{len(value)}".encode())
        for key, item in value.items():
            _feed(sha, key)
            _feed(sha, item)
    elif isinstance(value, (list, tuple)):
        sha.update(f"L{len(value)}".encode())
        for item in value:
            _feed(sha, item)
    elif isinstance(value, float):
        sha.update(b"F" + struct.pack("<d", value))
    elif value is None or isinstance(value, (bool, int, str)):
        text = f"{type(value).__name__}:{value}".encode()
        sha.update(f"P{len(text)}".encode() + text)
    else:
        raise CheckpointError(
            f"expected tensors and plain data, found {value!r:.80} ({type(value).__name__})"
        )


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; not every system lets one sync a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def plain(value: Any) -> Any:
    """Turn options and metrics into data that `weights_only` loading accepts.

    Raises:
        CheckpointError: if a value has no plain form.
    """
    if value is None or isinstance(value, (bool, int, float, str, Tensor)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {k if isinstance(k, (int, str)) else str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "__dataclass_fields__"):
        return plain(asdict(value))
    if callable(value):
        return f"{getattr(value, '__module__', '?')}:{getattr(value, '__qualname__', value)}"
    raise CheckpointError(f"{value!r} ({type(value).__name__}) has no plain form to save")
