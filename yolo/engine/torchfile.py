# SPDX-License-Identifier: Apache-2.0
"""Open what `torch.save` wrote, as data: nothing in it runs, and nothing is larger than the file.

Such a file is a zip of uncompressed entries: `<name>/data.pkl`, a pickle that describes the
objects, and `<name>/data/<key>`, the raw bytes of each storage. The pickle is read by
`yolo.engine.pickles`; a tensor is checked against the size of its storage's entry, and read only
when it is asked for.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from yolo.engine.pickles import Machine, Name, Record, make_dict, make_set
from yolo.errors import CheckpointError

MAX_PICKLE: Final = 8 << 20  # bytes; that of the largest published model has a few 100 kB
MAX_VISITS: Final = 4  # values met for each byte of the pickle; shared ones count every time
MAX_DEPTH: Final = 100
MAX_DIMS: Final = 8
MAX_REUSE: Final = 4  # bytes of tensors that are made for each byte of the file

_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}

_NUMBERS = {
    "f8": "<d", "f4": "<f", "f2": "<e", "i8": "<q", "i4": "<i", "i2": "<h", "i1": "<b",
    "u8": "<Q", "u4": "<I", "u2": "<H", "u1": "<B", "b1": "<?",
}  # fmt: skip

CLASSES: Final = re.compile(
    r"(ultralytics\.(nn|yolo|utils|data|models)(\.\w+)*"
    r"|torch\.nn\.modules\.\w+"
    r"|torchvision\.transforms\.\w+)\.([A-Z]\w*|v8\w+)"  # v8DetectionLoss and its like
    r"|types\.SimpleNamespace|numpy\.(dtype|ndarray)"
    r"|torch\.(float16|float32|float64|bfloat16|int64|int32|uint8|bool)"
    + "".join(f"|{re.escape(name)}" for name in _STORAGES)
)
"""Names whose objects may occur; they stay inert records."""


@dataclass(frozen=True, slots=True)
class Storage:
    """The bytes of an entry as `count` numbers of a type."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that isn't read yet: a view of a storage, checked to lie inside of it."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class TorchFile:
    """A file of `torch.save`, opened as data; a context manager.

    Args:
        path: the file.

    Attributes:
        content: the described object, with `Record` for objects of classes and `StoredTensor` for
            tensors.

    Raises:
        CheckpointError: without the file's name: if it is damaged, of another kind, or names what
            isn't allowed.
    """

    def __init__(self, path: Path) -> None:
        self._bytes_left = MAX_REUSE * path.stat().st_size
        self._storages: dict[Storage, Tensor] = {}
        with path.open("rb") as file:
            start = file.read(4)
        if start != b"PK\x03\x04":
            raise CheckpointError(_what_else(path))
        try:
            self._zip = zipfile.ZipFile(path)
        except Exception as error:  # damage shows in many ways
            raise CheckpointError(
                f"the file is damaged or cut short ({error}); use another copy"
            ) from error
        try:
            self._sizes = _entry_sizes(self._zip, path.stat().st_size)
            self._folder = _folder(list(self._sizes))
            data = self._entry("data.pkl", MAX_PICKLE)
            self._visits_left = MAX_VISITS * len(data)
            if self._entry("byteorder", 64, b"little") != b"little":
                raise CheckpointError("written on a big-endian machine, which isn't supported")
            self.content = Machine(_FUNCTIONS, CLASSES, self._persistent).run(data)
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def _entry(self, name: str, limit: int, default: bytes | None = None) -> bytes:
        """Read an entry; zipfile compares it with its CRC."""
        whole = f"{self._folder}/{name}"
        size = self._sizes.get(whole)
        if size is None and default is not None:
            return default
        if size is None or size > limit:
            raise CheckpointError(f"the file is damaged: entry {name!r} is absent or too large")
        try:
            return self._zip.read(whole)
        except Exception as error:
            raise CheckpointError(
                f"the file is damaged (entry {name!r}: {error}); use another copy"
            ) from error

    def _persistent(self, described: Any) -> Storage:
        """Turn ("storage", class, key, device, count) into a storage, if its entry is that long."""
        _, kind, key, _, count = described
        if type(key) is not str or type(count) is not int:
            raise TypeError("a storage without a key or a length")
        storage = Storage(key, _STORAGES[kind.text], count)
        size = self._sizes.get(f"{self._folder}/data/{key}")
        if size != count * storage.dtype.itemsize:
            raise CheckpointError(
                f"refused: storage {key[:40]!r} should have {count} numbers of "
                f"{storage.dtype}, its entry has {size} bytes"
            )
        return storage

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Read a tensor.

        Raises:
            CheckpointError: if its bytes are damaged, or the same bytes are read again and again.
        """
        storage = stored.storage
        self._bytes_left -= math.prod(stored.size) * storage.dtype.itemsize
        if self._bytes_left < 0:
            raise CheckpointError("refused: its tensors are larger than the file")
        if storage not in self._storages:
            data = self._entry(f"data/{storage.key}", 1 << 62)
            numbers = torch.empty(storage.count, dtype=storage.dtype)
            numbers.view(torch.uint8).numpy()[:] = np.frombuffer(data, np.uint8)
            self._storages[storage] = numbers
        return self._storages[storage].as_strided(stored.size, stored.stride, stored.offset)

    def enter(self, depth: int) -> None:
        """Count one more visited value, so that shared or circular parts don't go on for ever."""
        self._visits_left -= 1
        if depth > MAX_DEPTH or self._visits_left < 0:
            raise CheckpointError("refused: its data are nested without end")

    def plain(self, value: Any, depth: int = 0) -> Any:
        """Return a part of `content` as tensors and plain data.

        Raises:
            CheckpointError: if it holds objects, is nested too deep or endless.
        """
        self.enter(depth)
        if value is None or isinstance(value, (bool, int, float, str, bytes)):
            return value
        if isinstance(value, StoredTensor):
            return self.tensor(value)
        if isinstance(value, dict):
            return {key: self.plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.plain(item, depth + 1) for item in value)
        if isinstance(value, set):
            return value
        found = getattr(value, "kind", None) or getattr(value, "text", type(value).__name__)
        raise CheckpointError(f"expected plain data, found an object of {found}")


def _what_else(path: Path) -> str:
    """Say what a file is that is no zip; a bare pickle is looked at for what it would call."""
    with path.open("rb") as file:
        start = file.read(1 << 20)
    if not start.startswith(b"\x80"):
        return "not a checkpoint: expected a zip as torch.save writes it, found something else"
    try:
        Machine(_FUNCTIONS, CLASSES, lambda described: None).run(start)
    except CheckpointError as error:
        if str(error).startswith("refused"):
            return str(error)
    return (
        "a bare pickle, as torch.save wrote it before 1.6; it isn't read. Save it anew with a "
        "current torch, where you trust it"
    )


def _entry_sizes(archive: zipfile.ZipFile, file_size: int) -> dict[str, int]:
    """Return the entries' sizes, after checks that none can be larger than the file."""
    sizes: dict[str, int] = {}
    for info in archive.infolist():
        if info.filename in sizes:
            raise CheckpointError(f"refused: two entries are called {info.filename[:80]!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise CheckpointError(
                f"refused: entry {info.filename[:80]!r} is compressed, which torch.save never does"
            )
        sizes[info.filename] = info.file_size
    if sum(sizes.values()) > file_size:
        raise CheckpointError("refused: its entries overlap")
    return sizes


def _folder(names: list[str]) -> str:
    """Return the one folder that holds data.pkl."""
    found = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl")]
    if len(found) != 1 or "/" in found[0]:
        raise CheckpointError("not a checkpoint: a zip, but not as torch.save writes it")
    return found[0]


def _rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *_: Any
) -> StoredTensor | None:
    """Stand for torch._utils._rebuild_tensor_v2."""
    if storage is None:  # a bare pickle that is only looked at
        return None
    if not all(type(number) is int for number in (offset, *size, *stride)):
        raise TypeError("a tensor whose shape isn't numbers")
    sound = (
        isinstance(storage, Storage)
        and len(size) == len(stride) <= MAX_DIMS
        and min((offset, *size, *stride)) >= 0
    )
    if sound and math.prod(size):
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        sound = last < storage.count and math.prod(size) <= storage.count
    if not sound:
        raise CheckpointError(f"refused: a tensor of shape {str(size)[:80]} exceeds its storage")
    return StoredTensor(storage, offset, tuple(size), tuple(stride))


def _number(dtype: Record, data: bytes) -> Any:
    """Stand for NumPy's scalars."""
    if not isinstance(dtype.args[0], str):
        raise TypeError("a number without a type")
    (value,) = struct.unpack(_NUMBERS[dtype.args[0]], data)
    return value


def _text(value: Any) -> str:
    """Stand for what is text anyway."""
    if not isinstance(value, str):
        raise TypeError("expected text")
    return value


def _forward(owner: Any, name: Any) -> Record:
    """Stand for getattr: 8.0 and 8.1 kept a head's `forward` of its base class, and nothing else.

    What comes of it can't be called: the machine calls names alone.
    """
    if not isinstance(owner, Name) or name != "forward":
        raise CheckpointError(
            "refused: the pickle uses builtins.getattr on something else than a layer's forward; "
            "nothing was run"
        )
    return Record(owner.text, (name,))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": make_dict,
    **{f"{m}.{s}": make_set for m in ("builtins", "__builtin__") for s in ("set", "frozenset")},
    **{f"{m}.getattr": _forward for m in ("builtins", "__builtin__")},
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": tuple,
    "torch.device": lambda kind, *_: _text(kind),
    **{
        f"pathlib{place}.{kind}{flavour}Path": lambda *parts, pure=pure: str(pure(*parts))
        for place in ("", "._local")
        for kind in ("", "Pure")
        for flavour, pure in (("Posix", PurePosixPath), ("Windows", PureWindowsPath))
    },
    **{f"numpy.{core}.multiarray.scalar": _number for core in ("core", "_core")},
    "_codecs.encode": lambda text, encoding: text.encode("latin1"),
}
"""What stands for the functions that a checkpoint may name."""

__all__ = ["Name", "Record", "StoredTensor", "TorchFile"]
