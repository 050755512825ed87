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
from typing import Any

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


Reader = Callable[[int], Iterator[Frame]]


@dataclass(slots=True)
class _Item:
    """Something that yields frames: `read(k)`, with k the number of frames given so far."""

    kind: str
    label: str
    read: Reader


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
        if _is_lazy(self.source):
            self.total = 0
        else:
            items = list(items)
            self.total = len(items)
        given, failures = 0, []
        place = 0
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
            raise MissingFileError(
                f"the source {_brief(self.source)} is empty; expected at least one image, "
                f"for example {SHORTEST}"
            )
        if not given:
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise DataError(
                f"no image of the source could be read: {failures[0]}{more}"
                if failures
                else f"{_brief(self.source)}: no frame in it"
            )

    def _expand(self, source: Any) -> Iterator[_Item]:
        """Yield the items of a source of any kind."""
        if source is None:
            raise ConfigError(f"predict needs a source; the shortest useful call: {SHORTEST}")
        if isinstance(source, (str, Path)):
            yield from self._expand_text(str(source))
        elif isinstance(source, bool):
            raise ConfigError(f"expected a source such as 'image.jpg', got {source}")
        elif isinstance(source, (int, np.integer)):
            yield self._stream(int(source), f"camera {source}")
        elif isinstance(source, np.ndarray):
            yield self._array(source)
        elif isinstance(source, (bytes, bytearray)):
            yield self._bytes(bytes(source))
        elif hasattr(source, "getexif") and hasattr(source, "convert"):
            yield self._pil(source)
        elif hasattr(source, "detach") and hasattr(source, "cpu"):
            yield from self._tensors(source)
        elif isinstance(source, dict) or not isinstance(source, Iterable):
            raise ConfigError(
                f"expected a file, folder, glob, array, PIL image, tensor, video, camera number, "
                f"or a list or generator of these, got {type(source).__name__}"
            )
        else:
            for part in source:
                yield from self._expand(part)

    def _expand_text(self, text: str) -> Iterator[_Item]:
        """Yield the items of a path, glob, list file, camera or stream address."""
        lower = text.lower().strip()
        if lower.startswith(LIVE_SCHEMES):
            yield self._stream(text.strip(), re.sub(r"//[^/@]*@", "//", text.strip()))
            return
        if re.match(r"[a-z0-9+.-]+://", lower):
            raise ConfigError(
                f"{text!r}: nothing is downloaded here; fetch the file yourself and give its path, "
                "or give a generator of frames for a live http stream"
            )
        if lower == "screen" or lower.startswith("screen "):
            raise ConfigError("source='screen' isn't supported; give a generator of screenshots")
        path = Path(text).expanduser()
        if path.is_dir():
            yield from self._folder(path)
        elif path.is_file():
            yield from self._file(path)
        elif lower.isdecimal():
            yield self._stream(int(lower), f"camera {lower}")
        elif glob.has_magic(text):
            found = sorted(glob.glob(str(path), recursive=True))
            files = [Path(name) for name in found if _kind_of(Path(name)) and Path(name).is_file()]
            if not files:
                raise MissingFileError(f"{text}: the pattern matches no image or video")
            yield from self._files(files)
        else:
            raise MissingFileError(f"{text}: no such file or folder (looked at {path.absolute()})")

    def _folder(self, folder: Path) -> Iterator[_Item]:
        files = [p for p in sorted(folder.iterdir()) if _kind_of(p) and p.is_file()]
        if not files:
            raise MissingFileError(
                f"{folder}: no image or video in this folder (subfolders aren't searched; "
                f"give the pattern '{folder}/**' for them)"
            )
        yield from self._files(files)

    def _files(self, files: list[Path]) -> Iterator[_Item]:
        """Yield images first, then videos."""
        for path in sorted(files, key=lambda p: _kind_of(p) == "video"):
            yield from self._file(path)

    def _file(self, path: Path) -> Iterator[_Item]:
        suffix = path.suffix.lower()
        name = str(path.absolute())
        kind = _kind_of(path)
        if suffix in {".txt", ".csv"}:
            yield from self._list_file(path)
        elif kind == "image":
            yield _Item(
                "image", name, lambda _: _still(name, lambda: read_image(name, self.channels))
            )
        elif kind == "video":
            yield _Item("video", name, lambda _: self._read_video(name, name, live=False))
        else:
            raise DataError(
                f"{path}: expected an image, a video or a .txt or .csv list, found "
                f"{suffix or 'no suffix'}. Images: {' '.join(IMAGE_SUFFIXES)}. "
                f"Videos: {' '.join(VIDEO_SUFFIXES)}"
            )

    def _list_file(self, path: Path) -> Iterator[_Item]:
        """Yield the sources that a file lists, one a line (the first column of a .csv)."""
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: expected UTF-8 text, {error}") from error
        if path.suffix.lower() == ".csv":
            lines = [row[0] for row in csv.reader(lines) if row]
        for number, line in enumerate(lines, start=1):
            entry = line.strip()
            if not entry:
                continue
            if entry.startswith("./"):
                entry = str(path.parent / entry)
            try:
                yield from self._expand_text(entry)
            except MissingFileError as error:
                if number == 1 and path.suffix.lower() == ".csv":
                    continue  # a heading
                raise MissingFileError(f"{path}:{number}: {error}") from error

    def _bytes(self, data: bytes) -> _Item:
        return _Item(
            "array",
            "encoded image",
            lambda given: _still(f"image{given}.jpg", lambda: read_image(data, self.channels)),
        )

    def _array(self, array: np.ndarray) -> _Item:
        # What can't be an image at all is the caller's slip, and no file to be skipped.
        fit_channels(check_image(array, copy=False)[:1, :1], self.channels)

        def load() -> np.ndarray:
            # A copy, since the caller may go on writing into the array while results refer to it.
            return fit_channels(check_image(array), self.channels)

        return _Item("array", "array", lambda given: _still(f"image{given}.jpg", load))

    def _pil(self, picture: Any) -> _Item:
        name = str(getattr(picture, "filename", ""))

        def load() -> np.ndarray:
            try:
                return from_pil(picture, self.channels)
            except OSError as error:
                raise DataError(f"{name or 'PIL image'}: can't be decoded: {error}") from error

        return _Item("array", "PIL image", lambda given: _still(name or f"image{given}.jpg", load))

    def _tensors(self, tensor: Any) -> Iterator[_Item]:
        """Yield the images of a (B, C, H, W) tensor, RGB 0..1."""
        batch = check_tensor(tensor, self.channels)

        def item(chw: Any) -> _Item:
            def read(given: int) -> Iterator[Frame]:
                values = chw.permute(1, 2, 0).cpu().numpy()
                image = np.rint(values * 255).clip(0, 255).astype(np.uint8)
                if self.channels == 3:
                    image = image[..., ::-1]
                image = np.ascontiguousarray(image)
                yield Frame(image, f"image{given}.jpg", tensor=chw)

            return _Item("tensor", "tensor", read)

        for chw in batch:
            yield item(chw)

    def _stream(self, address: int | str, name: str) -> _Item:
        return _Item("stream", name, lambda _: self._read_video(address, name, live=True))

    def _read_video(self, address: int | str, name: str, live: bool) -> Iterator[Frame]:
        capture = cv2.VideoCapture(address)
        try:
            if not capture.isOpened():
                what = "this camera or stream" if live else "this video"
                raise DataError(
                    f"{name}: OpenCV can't open {what}; check "
                    + ("address, cable and permission" if live else "the file and its codec")
                )
            if live and not self.stream_buffer:
                capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
            fps = float(capture.get(cv2.CAP_PROP_FPS) or 0)
            count = 0 if live else max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT) or 0), 0)
            number = 0
            while True:
                start = time.perf_counter()
                # Frames in between are not decoded to pixels.
                if not all(capture.grab() for _ in range(self.vid_stride if number else 1)):
                    break
                done, image = capture.retrieve()
                if not done:
                    break
                number += self.vid_stride if number else 1
                spent = 0.0 if live else time.perf_counter() - start
                image = fit_channels(check_image(image, copy=False), self.channels)
                yield Frame(image, name, number, frames=count, fps=fps, live=live, seconds=spent)
            if not number:
                raise DataError(f"{name}: no frame could be read from it")
        finally:
            capture.release()


def _still(path: str, load: Callable[[], np.ndarray]) -> Iterator[Frame]:
    """Yield one image, with the time that loading it took."""
    start = time.perf_counter()
    image = load()
    yield Frame(image, path, seconds=time.perf_counter() - start)


def _kind_of(path: Path) -> str:
    """Return "image", "video" or "" by the suffix."""
    suffix = path.suffix.lower()
    return "image" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else ""


def _is_lazy(source: Any) -> bool:
    """Whether a source's items must not be listed beforehand: a generator, a data loader."""
    if isinstance(source, (list, tuple)):
        return any(map(_is_lazy, source))
    finite = (str, Path, bytes, bytearray, np.ndarray, dict, set, frozenset)
    return (
        isinstance(source, Iterable)
        and not isinstance(source, finite)
        and not hasattr(source, "detach")
    )


def _brief(source: Any) -> str:
    text = repr(source)
    return text if len(text) <= 80 else f"{text[:77]}..."
