# SPDX-License-Identifier: Apache-2.0
"""Room for the images of one split, shared by all processes of a node: one file of fixed slots.

The file is mapped into every process and filled as images are first needed. A slot's flag is
written after its pixels, so a slot is whole or empty, and two processes that fill the same slot
write the same bytes.

In memory the file is anonymous (`memfd_create`): it is bounded by the memory and not by the size
of /dev/shm (64 MB in many containers), and it vanishes with its last user, however that one ends.
Other processes reach it through /proc/<process>/fd, which is also how slots are pickled.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from yolo.errors import DataError

HEADROOM = 0.9
"""Share of the free memory or disk that slots may claim."""

CGROUPS = (
    ("/sys/fs/cgroup/memory", "max", "current", "inactive_file"),
    ("/sys/fs/cgroup/memory/memory", "limit_in_bytes", "usage_in_bytes", "total_inactive_file"),
)
"""Where a container's limits stand in both versions: beginning of the files' names; limit, use, and
the key of what is used but given back when memory is asked for."""


class Layout:
    """Where each image lies in a cache: n flag bytes, then the slots from a page border on."""

    def __init__(self, shapes: np.ndarray, channels: int, dtype: np.dtype[Any]) -> None:
        self.shapes, self.channels, self.dtype = shapes, channels, dtype
        sizes = shapes[:, 0] * shapes[:, 1] * channels * dtype.itemsize
        page = mmap.ALLOCATIONGRANULARITY
        self.offsets = -(-len(shapes) // page) * page + np.concatenate([[0], np.cumsum(sizes)])
        self.total = int(self.offsets[-1])

    def require(self, free: int, where: str) -> None:
        """Raise OSError if there isn't enough room."""
        if self.total > HEADROOM * free:
            raise OSError(errno.ENOSPC, f"{free / 2**30:.2f} GB {where}")


class Slots:
    """A mapped cache file. `handle` is a path that any process of the same user can open."""

    def __init__(self, layout: Layout, descriptor: int, handle: str) -> None:
        self.layout, self.handle = layout, handle
        # Closing the descriptor frees an anonymous file once the last mapping is gone.
        self._closer = weakref.finalize(self, os.close, descriptor)
        mapped = mmap.mmap(descriptor, layout.total)
        self._bytes: np.ndarray | None = np.frombuffer(mapped, dtype=np.uint8)

    @classmethod
    def in_memory(cls, layout: Layout) -> Slots:
        """Make room in memory.

        Raises:
            OSError: if there isn't enough; so does `on_disk`.
        """
        layout.require(free_memory(), "of memory are free")
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("yolo-images")
            handle = f"/proc/{os.getpid()}/fd/{descriptor}"
        else:  # no anonymous files: a named one that goes when this process ends
            descriptor, handle = tempfile.mkstemp(prefix="yolo-images-")
            weakref.finalize(layout, _remove_if_mine, handle, os.getpid())
        os.ftruncate(descriptor, layout.total)
        return cls(layout, descriptor, handle)

    @classmethod
    def on_disk(cls, layout: Layout, path: Path) -> Slots:
        """Make room in a file, or open the one of an earlier run."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.stat().st_size != layout.total:
            layout.require(shutil.disk_usage(path.parent).free, f"are free in {path.parent}")
            fresh, waiting = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
            try:
                _reserve(fresh, layout.total)
                os.replace(waiting, path)
            finally:
                os.close(fresh)
                _remove_if_mine(waiting, os.getpid())
        return cls(layout, os.open(path, os.O_RDWR), str(path))

    def get(self, i: int) -> np.ndarray | None:
        """Return image i, read-only; None if it isn't there yet."""
        assert self._bytes is not None
        if not self._bytes[i]:
            return None
        start, stop = self.layout.offsets[i : i + 2].tolist()
        image = self._bytes[start:stop].view(self.layout.dtype)
        image = image.reshape(*self.layout.shapes[i].tolist(), self.layout.channels)
        image.setflags(write=False)
        return image

    def put(self, i: int, image: np.ndarray) -> bool:
        """Store an image; False if it has another type than the cache was made for."""
        assert self._bytes is not None
        if image.dtype != self.layout.dtype:
            return False
        start, stop = self.layout.offsets[i : i + 2].tolist()
        self._bytes[start:stop] = np.ascontiguousarray(image).reshape(-1).view(np.uint8)
        self._bytes[i] = 1
        return True

    def close(self) -> None:
        """Let go of the room."""
        self._bytes = None
        self._closer()

    def __getstate__(self) -> dict[str, Any]:
        return {"layout": self.layout, "handle": self.handle}

    def __setstate__(self, state: dict[str, Any]) -> None:
        try:
            descriptor = os.open(state["handle"], os.O_RDWR)
        except OSError as error:
            text = f"the image cache {state['handle']} can't be opened from this process ({error})"
            hint = "keep the process that made it alive, or use cache='disk'"
            raise DataError(f"{text}; {hint}") from error
        self.__init__(state["layout"], descriptor, state["handle"])  # type: ignore[misc]


def _reserve(descriptor: int, size: int) -> None:
    """Give a file its blocks now: a disk that fills up later would kill the process (SIGBUS)."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:
        # The system has no such call, or the file system can't reserve.
        if getattr(error, "errno", errno.EINVAL) not in (errno.EINVAL, errno.ENOTSUP):
            raise
        os.ftruncate(descriptor, size)


def _remove_if_mine(path: str, owner: int) -> None:
    if os.getpid() == owner:
        with suppress(FileNotFoundError):
            os.unlink(path)


def free_memory() -> int:
    """Return the bytes of memory that this process may still take, container limits included."""
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, KeyError):
        free.append(_read_numbers("/proc/meminfo")["MemAvailable:"] * 1024)
    for start, limit, used, idle in CGROUPS:
        with suppress(OSError, ValueError):
            most, taken = (int(Path(f"{start}.{end}").read_text()) for end in (limit, used))
            free.append(most - taken + _read_numbers(f"{start}.stat").get(idle, 0))
    return max(min(free), 0)


def _read_numbers(path: str) -> dict[str, int]:
    """Read lines of a name and a number."""
    rows = [line.split() for line in Path(path).read_text().splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
