# SPDX-License-Identifier: Apache-2.0
"""What can be predicted on, read one frame at a time.

A file, folder (not recursive), glob, video, camera, live stream, a .txt or .csv list; a NumPy
array, PIL image, torch tensor or the bytes of an image file; and lists, tuples or generators of any
of these. Nothing is downloaded. An image that can't be read is skipped with a warning naming it.

H, W, C: height, width, channels; B images in a tensor.
"""

from __future__ import annotations

import csv
import glob
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yolo.data.arrays import check_image, check_tensor, fit_channels, from_pil
from yolo.data.images import ARRAY_SUFFIX, cv2, read_image
from yolo.data.images import IMAGE_SUFFIXES as PICTURE_SUFFIXES
from yolo.errors import ConfigError, DataError, MissingFileError

LOGGER = logging.getLogger(__name__)

IMAGE_SUFFIXES = (*PICTURE_SUFFIXES, ARRAY_SUFFIX)
VIDEO_SUFFIXES = (
    *(".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm"),
    ".wmv",
)
LIVE_SCHEMES = ("rtsp://", "rtmp://", "tcp://", "udp://")
SHORTEST = "model.predict('image.jpg')"


@dataclass(slots=True)
class Frame:
    """One image to predict on.

    Attributes:
        image: (H, W, C) uint8, BGR for three channels; uint16 too where C is not 3.
        path: file, stream address, or a made-up name such as "image0.jpg".
        number: 0 for a still image, else the frame's number in its video, from 1.
        place: number of its item in the source, from 1.
        total: number of items in the source, 0 when it isn't known.
        frames: frames of the video, 0 when it isn't known.
        fps: frames a second of the video.
        live: whether it comes from a camera or stream, which has no end.
        tensor: (C, H, W) float tensor, RGB 0..1, when a tensor was given.
        seconds: time spent on reading and decoding, not on waiting for a camera or generator.
    """

    image: np.ndarray
    path: str
    number: int = 0
    place: int = 1
    total: int = 1
    frames: int = 0
    fps: float = 0.0
    live: bool = False
    tensor: Any = None
    seconds: float = 0.0

    @property
    def is_video(self) -> bool:
        """Whether the frame is one of several of a video or stream."""
        return self.number > 0


class _Item(NamedTuple):
    """Something that yields frames: `read(k)`, with k the number of frames given so far."""

    kind: str
    label: str
    read: Callable[[int], Iterator[Frame]]


@dataclass
class Source:
    """Frames of a source, in order.

    Args:
        source: see the module.
        channels: of the model. With 3, images become BGR uint8; else channels and range are kept.
        vid_stride: take every n-th frame of videos and streams.
        stream_buffer: keep all frames that a live stream delivers, in place of the newest.

    Attributes:
        kinds: what was met so far: "image", "array", "tensor", "video", "stream".
        total: number of items, 0 when it isn't known (a generator).
    """

    source: Any
    channels: int = 3
    vid_stride: int = 1
    stream_buffer: bool = False
    kinds: set[str] = field(default_factory=set)
    total: int = 0

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames.

        Raises:
            ConfigError: if the source is None or of a kind that isn't understood.
            MissingFileError: if a file isn't there, or there is nothing in the source.
            DataError: if not one image could be read.
        """
        items: Iterable[_Item] = self._expand(self.source)
        self.total = 0
        if not _is_lazy(self.source):
            items = listed = list(items)
            self.total = len(listed)
        place, given, failures = 0, 0, []
        for place, item in enumerate(items, start=1):
            self.kinds.add(item.kind)
            try:
                for frame in item.read(given):
                    frame.place, frame.total = place, self.total
                    given += 1
                    yield frame
            except (DataError, MissingFileError) as error:
                # One bad or vanished file doesn't cost the others; all of them are named.
                failures.append(str(error))
                LOGGER.warning("%s: skipped: %s", item.label, error)
        if not place:
            text = f"the source {self.source!r:.80} is empty; expected at least one image"
            raise MissingFileError(f"{text}, for example {SHORTEST}")
        if not given:
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            reason = failures[0] if failures else f"{self.source!r:.80} has no frame"
            raise DataError(f"no image of the source could be read: {reason}{more}")

    def _expand(self, source: Any) -> Iterator[_Item]:
        """Yield the items of a source of any kind."""
        if source is None:
            raise ConfigError(f"predict needs a source; the shortest useful call: {SHORTEST}")
        if isinstance(source, (str, Path)):
            yield from self._expand_text(str(source))
        elif isinstance(source, (int, np.integer)) and not isinstance(source, bool):
            yield self._video(int(source), f"camera {source}", live=True)
        elif isinstance(source, np.ndarray):
            # What can't be an image at all is the caller's slip, and no file to be skipped.
            fit_channels(check_image(source, copy=False)[:1, :1], self.channels)
            # A copy, since the caller may go on writing into the array while results refer to it.
            yield _still("array", lambda: fit_channels(check_image(source), self.channels))
        elif isinstance(source, (bytes, bytearray)):
            yield _still("encoded image", lambda: read_image(bytes(source), self.channels))
        elif hasattr(source, "getexif") and hasattr(source, "convert"):
            name = str(getattr(source, "filename", ""))
            yield _still("PIL image", lambda: self._pil(source, name), name)
        elif hasattr(source, "detach") and hasattr(source, "cpu"):
            yield from map(self._tensor, check_tensor(source, self.channels))
        elif isinstance(source, dict) or not isinstance(source, Iterable):
            found = source if isinstance(source, bool) else type(source).__name__
            raise ConfigError(
                f"expected a file, folder, glob, array, PIL image, tensor, video, camera number, "
                f"or a list or generator of these, got {found}"
            )
        else:
            for part in source:
                yield from self._expand(part)

    def _expand_text(self, text: str) -> Iterator[_Item]:
        """Yield the items of a path, glob, list file, camera or stream address."""
        lower, path = text.lower().strip(), Path(text).expanduser()
        if lower.startswith(LIVE_SCHEMES):
            address = text.strip()
            yield self._video(address, re.sub(r"//[^/@]*@", "//", address), live=True)
        elif re.match(r"[a-z0-9+.-]+://", lower):
            hint = "give the path of a file you fetched, or a generator of a live stream's frames"
            raise ConfigError(f"{text!r}: nothing is downloaded here; {hint}")
        elif lower == "screen" or lower.startswith("screen "):
            raise ConfigError("source='screen' isn't supported; give a generator of screenshots")
        elif path.is_dir():
            nothing = (
                "no image or video in this folder (subfolders aren't searched; give the pattern"
            )
            yield from self._files(
                sorted(path.iterdir()), f"{path}: {nothing} '{path}/**' for them)"
            )
        elif path.is_file():
            yield from self._file(path)
        elif lower.isdecimal():
            yield self._video(int(lower), f"camera {lower}", live=True)
        elif glob.has_magic(text):
            found = map(Path, sorted(glob.glob(str(path), recursive=True)))
            yield from self._files(found, f"{text}: the pattern matches no image or video")
        else:
            raise MissingFileError(f"{text}: no such file or folder (looked at {path.absolute()})")

    def _files(self, found: Iterable[Path], nothing: str) -> Iterator[_Item]:
        """Yield the images among files, then the videos; `nothing` says that there are none."""
        files = [path for path in found if _kind_of(path) and path.is_file()]
        if not files:
            raise MissingFileError(nothing)
        for path in sorted(files, key=lambda p: _kind_of(p) == "video"):
            yield from self._file(path)

    def _file(self, path: Path) -> Iterator[_Item]:
        kind, name = _kind_of(path), str(path.absolute())
        if path.suffix.lower() in {".txt", ".csv"}:
            yield from self._list_file(path)
        elif kind == "image":
            yield _still(name, lambda: read_image(name, self.channels), name, kind)
        elif kind == "video":
            yield self._video(name, name, live=False)
        else:
            text = f"an image ({' '.join(IMAGE_SUFFIXES)}), a video ({' '.join(VIDEO_SUFFIXES)})"
            found = path.suffix or "no suffix"
            raise DataError(f"{path}: expected {text} or a .txt or .csv list, found {found}")

    def _list_file(self, path: Path) -> Iterator[_Item]:
        """Yield the sources that a file lists, one a line (the first column of a .csv)."""
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: expected UTF-8 text, {error}") from error
        table = path.suffix.lower() == ".csv"
        if table:
            lines = [row[0] for row in csv.reader(lines) if row]
        for number, line in enumerate(lines, start=1):
            entry = line.strip()
            entry = str(path.parent / entry) if entry.startswith("./") else entry
            try:
                yield from self._expand_text(entry) if entry else ()
            except MissingFileError as error:
                if number > 1 or not table:  # else a heading
                    raise MissingFileError(f"{path}:{number}: {error}") from error

    def _pil(self, picture: Any, name: str) -> np.ndarray:
        try:
            return from_pil(picture, self.channels)
        except OSError as error:
            raise DataError(f"{name or 'PIL image'}: can't be decoded: {error}") from error

    def _tensor(self, chw: Any) -> _Item:
        """Return the item of a (C, H, W) tensor, RGB 0..1."""

        def read(given: int) -> Iterator[Frame]:
            values = chw.permute(1, 2, 0).cpu().numpy()
            image = np.rint(values * 255).clip(0, 255).astype(np.uint8)
            image = np.ascontiguousarray(image[..., ::-1] if self.channels == 3 else image)
            yield Frame(image, f"image{given}.jpg", tensor=chw)

        return _Item("tensor", "tensor", read)

    def _video(self, address: int | str, name: str, live: bool) -> _Item:
        kind = "stream" if live else "video"
        return _Item(kind, name, lambda _: self._read_video(address, name, live))

    def _read_video(self, address: int | str, name: str, live: bool) -> Iterator[Frame]:
        capture = cv2.VideoCapture(address)
        try:
            if not capture.isOpened():
                what = "camera or stream; check address, cable and permission"
                what = what if live else "video; check the file and its codec"
                raise DataError(f"{name}: OpenCV can't open this {what}")
            if live and not self.stream_buffer:
                capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
            fps = float(capture.get(cv2.CAP_PROP_FPS) or 0)
            count = 0 if live else max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT) or 0), 0)
            number = 0
            while True:
                start = time.perf_counter()
                step = self.vid_stride if number else 1
                # Frames in between are not decoded to pixels.
                if not all(capture.grab() for _ in range(step)):
                    break
                done, image = capture.retrieve()
                if not done:
                    break
                number += step
                spent = 0.0 if live else time.perf_counter() - start
                image = fit_channels(check_image(image, copy=False), self.channels)
                yield Frame(image, name, number, frames=count, fps=fps, live=live, seconds=spent)
            if not number:
                raise DataError(f"{name}: no frame could be read from it")
        finally:
            capture.release()


def _still(
    label: str, load: Callable[[], np.ndarray], path: str = "", kind: str = "array"
) -> _Item:
    """Return the item of one image, which notes the time that loading takes."""

    def read(given: int) -> Iterator[Frame]:
        start = time.perf_counter()
        image = load()
        yield Frame(image, path or f"image{given}.jpg", seconds=time.perf_counter() - start)

    return _Item(kind, label, read)


def _kind_of(path: Path) -> str:
    """Return "image", "video" or "" by the suffix."""
    suffix = path.suffix.lower()
    return "image" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else ""


def _is_lazy(source: Any) -> bool:
    """Whether a source's items must not be listed beforehand: a generator, a data loader."""
    if isinstance(source, (list, tuple)):
        return any(map(_is_lazy, source))
    finite = (str, Path, bytes, bytearray, np.ndarray, dict, set, frozenset)
    lazy = isinstance(source, Iterable) and not isinstance(source, finite)
    return lazy and not hasattr(source, "detach")
