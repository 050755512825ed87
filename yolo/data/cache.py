# SPDX-License-Identifier: Apache-2.0
"""Images of one split, resized for use, and one copy of them for all processes of a node."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from yolo.data.images import read_image
from yolo.data.letterbox import fill_value, fit_shape, resize
from yolo.data.recent import RECENT_BYTES, Recent, SharedRecent
from yolo.data.sample import Instances
from yolo.data.shared import free_memory
from yolo.data.slots import HEADROOM, Layout, Slots
from yolo.errors import ConfigError, CorruptImageError, DataError

if TYPE_CHECKING:
    from yolo.data.index import LabelIndex

logger = logging.getLogger(__name__)

Mode = Literal[False, "ram", "disk"]


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
        recent_bytes: memory for the latest images of one process where nothing else keeps them.
        strict: a corrupt image is an error.
        fit: False loads images whole, as they are.

    Attributes:
        corrupt: images that this process found corrupt when it loaded them.

    Raises:
        ConfigError: for an unknown mode, or "disk" without a folder.
    """

    def __init__(
        self,
        index: LabelIndex,
        size: tuple[int, int],
        *,
        channels: int = 3,
        mode: Mode = False,
        cache_dir: str | Path | None = None,
        recent_bytes: int = RECENT_BYTES,
        strict: bool = False,
        fit: bool = True,
    ) -> None:
        if mode not in (False, "ram", "disk") or (mode == "disk" and cache_dir is None):
            text = "expected False, 'ram' or 'disk' (for which set cache_dir)"
            raise ConfigError(f"cache={mode!r}: {text}")
        self.index, self.channels, self.fit = index, channels, fit
        self.size = (int(size[0]), int(size[1]))
        self.strict = strict
        self.corrupt: set[int] = set()
        slots = self._make_slots(mode, cache_dir) if mode and len(index) else None
        self.kept: Slots | Recent | SharedRecent = slots or Recent(recent_bytes)

    @property
    def cached(self) -> bool:
        """Whether a shared cache stands behind this store."""
        return isinstance(self.kept, Slots)

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
        image = self.kept.get(i)
        if image is None:
            image = self._read(i)
            if i not in self.corrupt:  # every process is to find out
                self.kept.put(i, image)
        return image

    def share_recent(self, count: int, workers: int) -> None:
        """Keep the latest `count` images once for all workers, unless all images are kept.

        Fewer are kept where they would take more memory than `workers` processes else take for
        themselves. Images of other kinds than three channels of 8 bits, whole images, and systems
        without record locks are left as they are.
        """
        if self.cached or self.channels != 3 or not self.fit or sys.platform == "win32":
            return
        shapes = fitted_shapes(np.asarray(self.index.shapes), self.size)
        largest = 3 * int(shapes.prod(axis=1).max())
        room = min(workers * RECENT_BYTES, int(HEADROOM * free_memory()))
        places = min(count, len(shapes), room // largest)
        if places:
            self.kept = SharedRecent.make(shapes, places)

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
        """Let go of the cache; the memory is free when no other process uses it.

        What is loaded later is read from its file.
        """
        self.kept.close()
        self.kept = Recent()

    def _decode(self, i: int) -> np.ndarray:
        image = self.index.image(i, self.channels)
        return read_image(self.index.path(i), self.channels) if image is None else image

    def _read(self, i: int) -> np.ndarray:
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
        (height, width), found = self.original_shape(i), image.shape
        if found[:2] != (height, width):
            raise DataError(
                f"{self.path(i)}: expected {height}x{width} pixels as when the labels were "
                f"read, found {found[0]}x{found[1]}; an image may not change meanwhile"
            )
        image = resize(image, self.loaded_shape(i))
        image.setflags(write=False)
        return image

    def _make_slots(self, mode: Mode, cache_dir: str | Path | None) -> Slots | None:
        shapes = np.asarray(self.index.shapes)
        shapes = fitted_shapes(shapes, self.size) if self.fit else shapes.astype(np.int64)
        layout = Layout(shapes, self.channels, self.dtype)
        try:
            if mode == "ram":
                return Slots.in_memory(layout)
            assert cache_dir is not None
            return Slots.on_disk(layout, Path(cache_dir) / f"images-{self._key()}.cache")
        except OSError as error:
            text = "cache=%r: %.2f GB of images can't be cached: %s; going on without"
            logger.warning(text, mode, layout.total / 2**30, error)
            return None

    def _key(self) -> str:
        """Name the cache by what it depends on: the files, and how they are loaded."""
        size = self.size if self.fit else None
        digest = hashlib.sha256(repr((1, size, self.channels, self.dtype.str)).encode())
        for i in range(len(self.index)):
            path = self.path(i)
            if self.index.image(i, self.channels) is not None:
                raise ConfigError(f"cache='disk' needs image files, and {path} is none; use 'ram'")
            facts = (0, 0)
            with contextlib.suppress(OSError):
                facts = os.stat(path).st_size, os.stat(path).st_mtime_ns
            digest.update(f"\n{path}|{facts}".encode())
        return digest.hexdigest()[:24]


def fitted_shapes(shapes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return `letterbox.fit_shape` of many (n, 2) shapes at once, as (n, 2) int64."""
    height, width = shapes[:, 0].astype(np.int64), shapes[:, 1].astype(np.int64)
    upright = size[0] * width <= size[1] * height
    rows = np.where(upright, size[0], np.minimum(-(-height * size[1] // width), size[0]))
    columns = np.where(upright, np.minimum(-(-width * size[0] // height), size[1]), size[1])
    return np.stack([rows, columns], axis=1)
