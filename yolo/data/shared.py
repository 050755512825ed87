# SPDX-License-Identifier: Apache-2.0
"""Memory that the processes of a node share: a mapped file.

In memory the file is anonymous (`memfd_create`): it is bounded by the memory and not by the size
of /dev/shm (64 MB in many containers), and it vanishes with its last user, however that one ends.
Other processes reach it through /proc/<process>/fd, which is also how it is pickled.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from yolo.errors import DataError

CGROUPS = (
    ("/sys/fs/cgroup/memory", "max", "current", "inactive_file"),
    ("/sys/fs/cgroup/memory/memory", "limit_in_bytes", "usage_in_bytes", "total_inactive_file"),
)
"""Where a container's limits stand in both versions: beginning of the files' names; limit, use, and
the key of what is used but given back when memory is asked for."""


class SharedFile:
    """A file mapped into this process.

    Args:
        descriptor: of the open file; this object closes it.
        handle: a path that any process of the same user can open.
        size: bytes.

    Attributes:
        bytes: (size,) uint8, until `close`.
    """

    def __init__(self, descriptor: int, handle: str, size: int) -> None:
        self.descriptor, self.handle, self.size = descriptor, handle, size
        # Closing the descriptor frees an anonymous file once the last mapping is gone.
        self._closer = weakref.finalize(self, os.close, descriptor)
        self.bytes = np.frombuffer(mmap.mmap(descriptor, size), dtype=np.uint8)

    @classmethod
    def in_memory(cls, size: int) -> SharedFile:
        """Make a file of zeros that takes memory as it is written."""
        named = None
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("yolo-images")
            handle = f"/proc/{os.getpid()}/fd/{descriptor}"
        else:  # no anonymous files: a named one that goes when this process ends
            descriptor, named = tempfile.mkstemp(prefix="yolo-images-")
            handle = named
        os.ftruncate(descriptor, size)
        made = cls(descriptor, handle, size)
        if named:
            weakref.finalize(made, remove_if_mine, named, os.getpid())
        return made

    def close(self) -> None:
        """Let go of the memory."""
        self.bytes = np.empty(0, np.uint8)
        self._closer()

    def __getstate__(self) -> dict[str, Any]:
        return {"handle": self.handle, "size": self.size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        try:
            descriptor = os.open(state["handle"], os.O_RDWR)
        except OSError as error:
            text = f"the image cache {state['handle']} can't be opened from this process ({error})"
            hint = "keep the process that made it alive, or use cache='disk'"
            raise DataError(f"{text}; {hint}") from error
        self.__init__(descriptor, state["handle"], state["size"])  # type: ignore[misc]


def remove_if_mine(path: str, owner: int) -> None:
    """Remove a file in the process that made it, but not in a fork of that."""
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
