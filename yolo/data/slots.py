# SPDX-License-Identifier: Apache-2.0
"""Room for the images of one split, shared by all processes of a node: one file of fixed slots.

The file is mapped into every process and filled as images are first needed. A slot's flag is
written after its pixels, so a slot is whole or empty, and two processes that fill the same slot
write the same bytes.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from yolo.data.shared import SharedFile, free_memory, remove_if_mine

HEADROOM = 0.9
"""Share of the free memory or disk that slots may claim."""


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
    """A cache file, mapped."""

    def __init__(self, layout: Layout, file: SharedFile) -> None:
        self.layout, self.file = layout, file

    @classmethod
    def in_memory(cls, layout: Layout) -> Slots:
        """Make room in memory.

        Raises:
            OSError: if there isn't enough; so does `on_disk`.
        """
        layout.require(free_memory(), "of memory are free")
        return cls(layout, SharedFile.in_memory(layout.total))

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
                remove_if_mine(waiting, os.getpid())
        return cls(layout, SharedFile(os.open(path, os.O_RDWR), str(path), layout.total))

    def get(self, i: int) -> np.ndarray | None:
        """Return image i, read-only; None if it isn't there yet."""
        if not self.file.bytes[i]:
            return None
        start, stop = self.layout.offsets[i : i + 2].tolist()
        image = self.file.bytes[start:stop].view(self.layout.dtype)
        image = image.reshape(*self.layout.shapes[i].tolist(), self.layout.channels)
        image.setflags(write=False)
        return image

    def put(self, i: int, image: np.ndarray) -> bool:
        """Store an image; False if it has another type than the cache was made for."""
        if image.dtype != self.layout.dtype:
            return False
        start, stop = self.layout.offsets[i : i + 2].tolist()
        self.file.bytes[start:stop] = np.ascontiguousarray(image).reshape(-1).view(np.uint8)
        self.file.bytes[i] = 1
        return True

    def close(self) -> None:
        """Let go of the room."""
        self.file.close()


def _reserve(descriptor: int, size: int) -> None:
    """Give a file its blocks now: a disk that fills up later would kill the process (SIGBUS)."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:
        # The system has no such call, or the file system can't reserve.
        if getattr(error, "errno", errno.EINVAL) not in (errno.EINVAL, errno.ENOTSUP):
            raise
        os.ftruncate(descriptor, size)
