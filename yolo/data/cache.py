# SPDX-License-Identifier: Apache-2.0
"""Images of one split, resized for use, and one copy of them for all processes of a node.

A cache is one file of fixed slots, one an image, mapped into every process and filled as images
are first needed. A slot's flag is written after its pixels, so a slot is whole or empty, and two
processes that fill the same slot write the same bytes.

In memory the file is anonymous (`memfd_create`): it is bounded by the memory and not by the size
of /dev/shm (64 MB in many containers), and it vanishes with its last user, however that one ends.
Other processes reach it through /proc/<process>/fd, which is also how a store is pickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import mmap
import os
import shutil
import tempfile
import weakref
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from yolo.data.images import read_image
from yolo.data.letterbox import fill_value, fit_shape, resize
from yolo.data.sample import Instances
from yolo.errors import ConfigError, CorruptImageError, DataError

logger = logging.getLogger(__name__)

Mode = Literal[False, "ram", "disk"]

LRU_BYTES = 256 << 20
EMPTY, FILLED = 0, 1
PAGE = mmap.ALLOCATIONGRANULARITY
HEADROOM = 0.9
"""Share of the free memory or disk that a cache may claim."""


class ImageIndex(Protocol):
    """What a store asks of an index of images; `index.LabelIndex` is one."""

    shapes: np.ndarray
    """(n, 2) integers: (h, w) of each file, EXIF rotation applied."""

    def __len__(self) -> int: ...

    def path(self, i: int) -> str:
        """Return the file name of image i."""

    def image(self, i: int, channels: int) -> np.ndarray | None:
        """Return the pixels of an image that is a Python object; None for a file."""

    def instances(self, i: int) -> Instances:
        """Return the objects of image i, in pixels of the file."""


class ImageStore:
    """Loads images resized so that they just fit `size`; keeps them as `mode` says.

    Pickles (for a spawned worker or another rank of the node) as a second door to the same cache.

    A file whose pixels turn out to be corrupt, which its header can't tell, costs that image alone:
    it is named in a warning, and stands as a grey image without objects.

    Args:
        index: which images there are.
        size: (h, w) that images are fitted into, touching it: see `letterbox.fit_shape`.
        channels: of the images.
        mode: False keeps the latest images of this process; "ram" all of them in memory; "disk"
            all of them in a file of `cache_dir` that the next run uses again. A cache that there
            is no room for is not made, and a warning says so.
        cache_dir: folder of the "disk" cache (made when needed).
        lru_bytes: memory for the latest images of one process where nothing else keeps them.
        strict: a corrupt image is an error.
        fit: False loads images whole, as they are.

    Attributes:
        corrupt: images that this process found corrupt when it loaded them.

    Raises:
        ConfigError: for an unknown mode, or "disk" without a folder.
    """

    def __init__(
        self,
        index: ImageIndex,
        size: tuple[int, int],
        *,
        channels: int = 3,
        mode: Mode = False,
        cache_dir: str | Path | None = None,
        lru_bytes: int = LRU_BYTES,
        strict: bool = False,
        fit: bool = True,
    ) -> None:
        if mode not in (False, "ram", "disk"):
            raise ConfigError(f"cache={mode!r}: expected False, 'ram' or 'disk'")
        if mode == "disk" and cache_dir is None:
            raise ConfigError("cache='disk' needs a folder; set cache_dir")
        self.index = index
        self.size = (int(size[0]), int(size[1]))
        self.channels = channels
        self.lru_bytes = lru_bytes
        self.strict = strict
        self.fit = fit
        self.corrupt: set[int] = set()
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()
        self._recent_bytes = 0
        self._slots: _Slots | None = None
        if mode and len(index):
            self._slots = self._make_slots(mode, cache_dir)

    @property
    def cached(self) -> bool:
        """Whether a shared cache stands behind this store."""
        return self._slots is not None

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Type of the images: uint8 for three channels, else that of the first sound one."""
        for i in range(len(self.index) if self.channels != 3 else 0):
            with contextlib.suppress(DataError, OSError):
                return self._decode(i).dtype
        return np.dtype(np.uint8)

    def load(self, i: int) -> np.ndarray:
        """Return image i, (h', w', C) uint8 or uint16, read-only; `loaded_shape` gives h' and w'.

        Raises:
            DataError: if the file can't be read, or is not what it was when it was indexed.
        """
        if self._slots is not None:
            image = self._slots.get(i)
            if image is None:
                image = self._read(i)
                # What is corrupt stays out of the cache, so that every process finds out.
                if i not in self.corrupt and self._slots.put(i, image):
                    image = self._slots.get(i)
            assert image is not None
            return image
        recent = self._recent.get(i)
        if recent is not None:
            self._recent.move_to_end(i)
            return recent
        image = self._read(i)
        self._recent[i] = image
        self._recent_bytes += image.nbytes
        while self._recent_bytes > self.lru_bytes:
            _, oldest = self._recent.popitem(last=False)
            self._recent_bytes -= oldest.nbytes
        return image

    def original_shape(self, i: int) -> tuple[int, int]:
        """Return (h, w) of the image's file."""
        height, width = self.index.shapes[i].tolist()
        return height, width

    def loaded_shape(self, i: int) -> tuple[int, int]:
        """Return (h, w) of what `load` returns, without loading."""
        shape = self.original_shape(i)
        return fit_shape(shape, self.size) if self.fit else shape

    def instances(self, i: int) -> Instances:
        """Return the objects of image i, in pixels of the file; none if it was found corrupt."""
        return Instances.empty() if i in self.corrupt else self.index.instances(i)

    def path(self, i: int) -> str:
        """Return the file name of image i."""
        return self.index.path(i)

    def close(self) -> None:
        """Let go of the cache; the memory is free when no other process uses it."""
        self._recent.clear()
        self._recent_bytes = 0
        if self._slots is not None:
            self._slots.close()
            self._slots = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_recent": OrderedDict(), "_recent_bytes": 0}

    def _decode(self, i: int) -> np.ndarray:
        image = self.index.image(i, self.channels)
        return read_image(self.index.path(i), self.channels) if image is None else image

    def _read(self, i: int) -> np.ndarray:
        path = self.index.path(i)
        try:
            image = self._decode(i)
        except CorruptImageError as error:
            if self.strict:
                raise
            if i not in self.corrupt:
                logger.warning("%s; it counts as an image without objects", error)
            self.corrupt.add(i)
            size = (*self.loaded_shape(i), self.channels)
            return np.full(size, fill_value(self.dtype), self.dtype)
        expected = self.original_shape(i)
        if image.shape[:2] != expected:
            raise DataError(
                f"{path}: expected {expected[0]}x{expected[1]} pixels as when the labels were "
                f"read, found {image.shape[0]}x{image.shape[1]}; an image may not change meanwhile"
            )
        image = resize(image, self.loaded_shape(i))
        image.setflags(write=False)
        return image

    def _make_slots(self, mode: Mode, cache_dir: str | Path | None) -> _Slots | None:
        shapes = np.asarray(self.index.shapes)
        shapes = fitted_shapes(shapes, self.size) if self.fit else shapes.astype(np.int64)
        layout = _Layout(shapes, self.channels, self.dtype)
        try:
            if mode == "ram":
                return _Slots.in_memory(layout)
            assert cache_dir is not None
            return _Slots.on_disk(layout, Path(cache_dir) / f"images-{self._key()}.cache")
        except OSError as error:
            logger.warning(
                "cache=%r: %.2f GB of images can't be cached: %s; going on without",
                mode,
                layout.total / 2**30,
                error,
            )
            return None

    def _key(self) -> str:
        """Name the cache by what it depends on: the files, and how they are loaded."""
        size = self.size if self.fit else None
        digest = hashlib.sha256(repr((1, size, self.channels, self.dtype.str)).encode())
        for i in range(len(self.index)):
            path = self.index.path(i)
            if self.index.image(i, self.channels) is not None:
                raise ConfigError(f"cache='disk' needs image files, and {path} is none; use 'ram'")
            try:
                facts = os.stat(path)
                digest.update(f"\n{path}|{facts.st_size}|{facts.st_mtime_ns}".encode())
            except OSError:
                digest.update(f"\n{path}|absent".encode())
        return digest.hexdigest()[:24]


def fitted_shapes(shapes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return `letterbox.fit_shape` of many (n, 2) shapes at once, as (n, 2) int64."""
    height, width = shapes[:, 0].astype(np.int64), shapes[:, 1].astype(np.int64)
    upright = size[0] * width <= size[1] * height
    rows = np.where(upright, size[0], np.minimum(-(-height * size[1] // width), size[0]))
    columns = np.where(upright, np.minimum(-(-width * size[0] // height), size[1]), size[1])
    return np.stack([rows, columns], axis=1)


class _Layout:
    """Where each image lies in a cache: n flag bytes, then the slots from a page border on."""

    def __init__(self, shapes: np.ndarray, channels: int, dtype: np.dtype[Any]) -> None:
        self.shapes, self.channels, self.dtype = shapes, channels, dtype
        sizes = shapes[:, 0] * shapes[:, 1] * channels * dtype.itemsize
        start = -(-len(shapes) // PAGE) * PAGE
        self.offsets = start + np.concatenate([[0], np.cumsum(sizes)])
        self.total = int(self.offsets[-1])


class _Slots:
    """A mapped cache file. `handle` is a path that any process of the same user can open."""

    def __init__(self, layout: _Layout, descriptor: int, handle: str) -> None:
        self.layout = layout
        self.handle = handle
        self._file: int = descriptor
        # Closing the descriptor frees an anonymous file once the last mapping is gone.
        self._closer = weakref.finalize(self, os.close, descriptor)
        self._map()

    def _map(self) -> None:
        mapped = mmap.mmap(self._file, self.layout.total)
        self._bytes: np.ndarray | None = np.frombuffer(mapped, dtype=np.uint8)

    @classmethod
    def in_memory(cls, layout: _Layout) -> _Slots:
        free = free_memory()
        if layout.total > HEADROOM * free:
            raise OSError(errno.ENOMEM, f"{free / 2**30:.2f} GB of memory are free")
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("yolo-images")
            handle = f"/proc/{os.getpid()}/fd/{descriptor}"
        else:  # no anonymous files: a named one that goes when this process ends
            descriptor, handle = tempfile.mkstemp(prefix="yolo-images-")
            weakref.finalize(layout, _remove_if_mine, handle, os.getpid())
        os.ftruncate(descriptor, layout.total)
        return cls(layout, descriptor, handle)

    @classmethod
    def on_disk(cls, layout: _Layout, path: Path) -> _Slots:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.stat().st_size != layout.total:
            free = shutil.disk_usage(path.parent).free
            if layout.total > HEADROOM * free:
                raise OSError(errno.ENOSPC, f"{free / 2**30:.2f} GB are free in {path.parent}")
            fresh, waiting = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
            try:
                _reserve(fresh, layout.total)
                os.replace(waiting, path)
            finally:
                os.close(fresh)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(waiting)
        return cls(layout, os.open(path, os.O_RDWR), str(path))

    def get(self, i: int) -> np.ndarray | None:
        assert self._bytes is not None
        if self._bytes[i] != FILLED:
            return None
        start, stop = self.layout.offsets[i : i + 2].tolist()
        rows, columns = self.layout.shapes[i].tolist()
        image = self._bytes[start:stop].view(self.layout.dtype)
        image = image.reshape(rows, columns, self.layout.channels)
        image.setflags(write=False)
        return image

    def put(self, i: int, image: np.ndarray) -> bool:
        """Store an image; False if it has another type than the cache was made for."""
        assert self._bytes is not None
        if image.dtype != self.layout.dtype:
            return False
        start, stop = self.layout.offsets[i : i + 2].tolist()
        self._bytes[start:stop] = np.ascontiguousarray(image).reshape(-1).view(np.uint8)
        self._bytes[i] = FILLED
        return True

    def close(self) -> None:
        self._bytes = None
        self._closer()

    def __getstate__(self) -> dict[str, Any]:
        return {"layout": self.layout, "handle": self.handle}

    def __setstate__(self, state: dict[str, Any]) -> None:
        try:
            descriptor = os.open(state["handle"], os.O_RDWR)
        except OSError as error:
            raise DataError(
                f"the image cache {state['handle']} can't be opened from this process ({error}); "
                "keep the process that made it alive, or use cache='disk'"
            ) from error
        self.__init__(state["layout"], descriptor, state["handle"])  # type: ignore[misc]


def _reserve(descriptor: int, size: int) -> None:
    """Give a file its blocks now: a disk that fills up later would kill the process (SIGBUS)."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except AttributeError:  # no such call on this system
        os.ftruncate(descriptor, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
        os.ftruncate(descriptor, size)  # this file system can't reserve


def _remove_if_mine(path: str, owner: int) -> None:
    if os.getpid() == owner:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def free_memory() -> int:
    """Return the bytes of memory that this process may still take, container limits included."""
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    facts = _read_numbers(Path("/proc/meminfo"))
    if "MemAvailable:" in facts:
        free.append(facts["MemAvailable:"] * 1024)
    for folder, limit, used, idle in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        (
            "/sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        with contextlib.suppress(OSError, ValueError):
            most = int((Path(folder) / limit).read_text())
            taken = int((Path(folder) / used).read_text())
            # Pages of files read long ago are given back when memory is asked for.
            spare = _read_numbers(Path(folder) / "memory.stat").get(idle, 0)
            free.append(most - taken + spare)
    return max(min(free), 0)


def _read_numbers(path: Path) -> dict[str, int]:
    """Read lines of a name and a number; nothing where the file doesn't exist."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
