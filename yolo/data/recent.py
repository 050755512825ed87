# SPDX-License-Identifier: Apache-2.0
"""The images that were decoded last: of one process, or of all workers together.

A mosaic takes its partners from beside its own image in the epoch's order, where other workers make
other mosaics: with memories of their own, each of many workers would decode nearly every image.
"""

from __future__ import annotations

import mmap
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from yolo.data.shared import SharedFile

if sys.platform != "win32":
    import fcntl

RECENT_BYTES = 256 << 20
"""Memory for the latest images of one process."""


class Recent:
    """The latest images of this process; a copy in another process begins empty.

    Args:
        room: bytes.
    """

    def __init__(self, room: int = RECENT_BYTES) -> None:
        self.room, self.used = room, 0
        self._images: OrderedDict[int, np.ndarray] = OrderedDict()

    def get(self, i: int) -> np.ndarray | None:
        """Return image i, if it is among them."""
        if i in self._images:
            self._images.move_to_end(i)
        return self._images.get(i)

    def put(self, i: int, image: np.ndarray) -> None:
        """Keep an image, and drop those that were not asked for the longest."""
        self._images[i] = image
        self.used += image.nbytes
        while self.used > self.room:
            self.used -= self._images.popitem(last=False)[1].nbytes

    def close(self) -> None:
        """Drop all images."""
        self._images.clear()
        self.used = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"room": self.room}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["room"])  # type: ignore[misc]


class SharedRecent:
    """A ring of places for the latest images of several processes.

    Each place has a lock of its own (POSIX record locks: those of a process that is killed are
    free), under which it is written or copied; it belongs to nobody while it is written. Where an
    image lies is noted without a lock: whoever looks there sees whose place it is.

    Args:
        file: zeros, `bytes_of` many.
        shapes: (n, 2) of the images that may come, uint8 of three channels.
        places: of the ring.
    """

    def __init__(self, file: SharedFile, shapes: np.ndarray, places: int) -> None:
        self.file, self.shapes, self.places = file, shapes, places
        n, start, self._largest = len(shapes), *self._layout(shapes, places)
        numbers = file.bytes[: 8 * (1 + places + n)].view(np.int64)
        # Image numbers count from 1 here, and places too: the file is all zeros at first.
        self._turn, self._owner, self._place = np.split(numbers, [1, 1 + places])
        self._pixels = file.bytes[start:].reshape(places, self._largest)

    @classmethod
    def make(cls, shapes: np.ndarray, places: int) -> SharedRecent:
        """Make an empty ring; it takes memory as it is filled."""
        start, largest = cls._layout(shapes, places)
        return cls(SharedFile.in_memory(start + places * largest), shapes, places)

    @staticmethod
    def _layout(shapes: np.ndarray, places: int) -> tuple[int, int]:
        """Return where the pixels begin, and the bytes of a place, both on page borders."""
        page = mmap.ALLOCATIONGRANULARITY
        header, largest = 8 * (1 + places + len(shapes)), 3 * int(shapes.prod(axis=1).max())
        return -(-header // page) * page, -(-largest // page) * page

    @contextmanager
    def _locked(self, place: int, kind: int) -> Iterator[None]:
        """Hold the lock of a place, from 1 on, or (0) of the turn."""
        fcntl.lockf(self.file.descriptor, kind, 1, place)
        try:
            yield
        finally:
            fcntl.lockf(self.file.descriptor, fcntl.LOCK_UN, 1, place)

    def _image(self, i: int, place: int) -> np.ndarray:
        height, width = self.shapes[i].tolist()
        return self._pixels[place - 1, : height * width * 3].reshape(height, width, 3)

    def get(self, i: int) -> np.ndarray | None:
        """Return a copy of image i, if it is among them."""
        place = int(self._place[i])
        if not place:
            return None
        with self._locked(place, fcntl.LOCK_SH):
            if self._owner[place - 1] != i + 1:
                return None
            image = self._image(i, place).copy()
        image.setflags(write=False)
        return image

    def put(self, i: int, image: np.ndarray) -> None:
        """Keep an image in the place of the one that came first."""
        place = int(self._place[i])
        if place and self._owner[place - 1] == i + 1:
            return
        with self._locked(0, fcntl.LOCK_EX):
            place = int(self._turn[0]) % self.places + 1
            self._turn[0] += 1
        with self._locked(place, fcntl.LOCK_EX):
            self._owner[place - 1] = 0
            self._image(i, place)[...] = image
            self._owner[place - 1] = i + 1
        self._place[i] = place

    def close(self) -> None:
        """Let go of the memory."""
        del self._pixels, self._turn, self._owner, self._place  # which hold the mapping
        self.file.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "shapes": self.shapes, "places": self.places}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
