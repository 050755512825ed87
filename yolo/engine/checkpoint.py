# SPDX-License-Identifier: Apache-2.0
"""Our checkpoint: tensors and plain data in one file, written atomically and verified.

The file is what `torch.save` makes of a dict, so that `torch.load(path, weights_only=True)` opens
it where only torch is installed:

| key | value |
|---|---|
| format, version | "plainyolo", 1 |
| checksum | SHA-256 over everything else (`digest`) |
| task, names, network | task name, {id: class name}, the resolved network YAML as a dict |
| weights | state dict in float32: what to predict with (the EMA) |
| config | the resolved training options |
| epoch, metrics | 0-based epoch, its metrics |
| history | one {column: number} a finished epoch |
| versions, date | of the libraries, of the file |
| state | None, or what resuming needs (raw weights, optimizer, EMA, scaler, generators, ...) |
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import os
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolo.errors import CheckpointError, MissingFileError

FORMAT = "plainyolo"
VERSION = 1


@dataclass
class Checkpoint:
    """What a checkpoint file holds; the module docstring explains the fields."""

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

    The new file is written under a temporary name, synced, read back and compared with its
    checksum; only then does it take the place of the old one.

    Raises:
        CheckpointError: if the disk is full or the file can't be written; the old one is intact.
    """
    checkpoint.date = checkpoint.date or datetime.datetime.now(datetime.timezone.utc).isoformat()
    content = {f: getattr(checkpoint, f) for f in Checkpoint.__dataclass_fields__}
    content |= {"format": FORMAT, "version": VERSION}
    content["checksum"] = digest(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        _read(temporary)
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


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of ours without executing anything from it.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is damaged, of a newer version, or not ours.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such checkpoint; check the path")
    content = _read(path)
    known = Checkpoint.__dataclass_fields__
    return Checkpoint(**{key: value for key, value in content.items() if key in known})


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"{path}: not a readable checkpoint (damaged, or written by another library): {first}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: expected a checkpoint with format {FORMAT!r}, found "
            f"{content.get('format') if isinstance(content, dict) else type(content).__name__!r}"
        )
    if int(content["version"]) > VERSION:
        raise CheckpointError(
            f"{path}: checkpoint version {content['version']}, this library reads up to "
            f"{VERSION}; update it with `pip install -U plainyolo`"
        )
    if content.get("checksum") != digest(content):
        raise CheckpointError(
            f"{path}: the checksum doesn't match, so the file is damaged; use another copy"
        )
    return content


def digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a tree of tensors and plain data, but for its key "checksum"."""
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
    else:
        text = f"{type(value).__name__}:{value}".encode()
        sha.update(f"P{len(text)}".encode() + text)


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
