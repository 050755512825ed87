# SPDX-License-Identifier: Apache-2.0
"""Read images: bounded, EXIF-rotated, complete or refused. H, W, C: height, width, channels.

This is also the only place that imports OpenCV: `from yolo.data.images import cv2`.
Sizes come from the file's header before a pixel is decoded, so that a small file that unpacks to
gigabytes is refused; a file that ends early is refused too, where OpenCV would fill it with grey.
Files are only read, never mended.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from yolo.errors import CorruptImageError, DataError, MissingFileError, MissingPackageError

try:
    import cv2 as cv2
except ImportError as error:
    raise MissingPackageError(
        f"OpenCV can't be imported ({error}). Where libGL is missing: "
        "pip uninstall -y opencv-python && pip install opencv-python-headless"
    ) from error

IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".dng", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".tif"),
    *(".tiff", ".webp"),
)
ARRAY_SUFFIX = ".npy"

MAX_PIXELS = 178_956_970
"""Most pixels an image may have; the bound at which Pillow, too, refuses to open a file."""

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TIFF_WIDTH, TIFF_HEIGHT, TIFF_ORIENTATION = 256, 257, 274
TIFF_DATA = ((273, 279), (324, 325))  # offsets and byte counts of strips, of tiles
NPY_MAGIC = b"\x93NUMPY"


class Header(NamedTuple):
    """What a file says about itself: format, sides before rotation, EXIF's orientation (1 to 8).

    `whole` is False for a file that ends early.
    """

    kind: str
    height: int
    width: int
    orientation: int
    whole: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) after EXIF rotation."""
        pair = (self.height, self.width)
        return pair if self.orientation < 5 else pair[::-1]


def image_shape(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (h, w) of an image after EXIF rotation, from its header alone.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if it is empty, no image, too large, or ends early.
    """
    name = os.fspath(path)
    with _opened(name) as file:
        return _inspect(file, name).shape


def read_image(source: str | os.PathLike[str] | bytes, channels: int = 3) -> np.ndarray:
    """Read an image file, or the bytes of one.

    Args:
        source: file name, or the encoded image itself.
        channels: 3 gives BGR uint8 whatever the file holds (grey, alpha, 16 bit). 1 gives grey.
            Any other number keeps the channels as OpenCV decodes them (an RGBA file is BGRA) and
            needs the file to have so many; the pages of a TIFF count as channels. With channels
            other than 3 the value range is kept.

    Returns:
        (H, W, channels) uint8, or uint16 where channels is not 3 and the file has 16 bits.

    Raises:
        MissingFileError: if there is no such file.
        CorruptImageError: if its pixels can't be decoded.
        DataError: if it is empty, truncated, too large, or of another channel count.
    """
    if isinstance(source, bytes):
        name, data = "image bytes", source
    else:
        name = os.fspath(source)
        with _opened(name) as file:
            data = file.read()
    header = _inspect(io.BytesIO(data), name)
    image = np.atleast_3d(_decode(data, header, channels, name))
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{name}: expected values of type uint8 or uint16, found {image.dtype}")
    # OpenCV's TIFF reader rotates by itself whatever the flags say; the other readers are told not
    # to, because which of them obey the orientation depends on OpenCV's version.
    if header.kind != "TIFF":
        image = _rotate(image, header.orientation)
    image = to_bgr8(image) if channels == 3 else image
    if image.shape[2] != channels:
        raise DataError(
            f"{name}: expected {channels} channels, found {image.shape[2]}; "
            "set `channels` in the dataset's YAML to what its images have"
        )
    if image.shape[:2] != header.shape:
        found = image.shape[:2]
        raise DataError(f"{name}: expected {header.shape} pixels as in the header, found {found}")
    return np.ascontiguousarray(image)


def to_bgr8(image: np.ndarray) -> np.ndarray:
    """Turn grey, BGR or BGRA (H, W, C) of 8 or 16 bits into BGR uint8; alpha is dropped.

    16-bit values are divided by 257 and rounded, which takes 65535 to 255.
    """
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[:, :, :3]


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    try:
        with open(name, "rb") as file:
            yield file
    except FileNotFoundError:
        raise MissingFileError(f"{name}: no such image") from None
    except OSError as error:
        raise DataError(f"{name}: can't be read: {error}") from error


def _decode(data: bytes, header: Header, channels: int, name: str) -> np.ndarray:
    """Decode to (H, W) or (H, W, C) in BGR order, without rotation but for TIFF."""
    if header.kind == "NPY":
        stored: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
        return stored
    buffer = np.frombuffer(data, dtype=np.uint8)
    flags = {3: cv2.IMREAD_COLOR, 1: cv2.IMREAD_GRAYSCALE}.get(channels, cv2.IMREAD_UNCHANGED)
    if flags != cv2.IMREAD_UNCHANGED:
        flags |= cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        if header.kind == "TIFF" and flags == cv2.IMREAD_UNCHANGED:
            done, pages = cv2.imdecodemulti(buffer, flags)
            if done and len({page.shape for page in pages}) == 1:
                return np.concatenate([np.atleast_3d(page) for page in pages], axis=2)
        else:
            image = cv2.imdecode(buffer, flags)
            return _decode_with_pillow(data) if image is None else image
    except Exception as error:  # OpenCV's and Pillow's own errors are of many kinds
        raise CorruptImageError(
            f"{name}: the image is corrupt, its pixels can't be decoded ({error}); replace it"
        ) from error
    raise DataError(
        f"{name}: OpenCV can't decode this TIFF, or its pages differ in size; "
        "store the channels as a .npy array (h, w, channels) instead"
    )


def _decode_with_pillow(data: bytes) -> np.ndarray:
    """Decode what OpenCV doesn't know (AVIF and HEIC in some builds) to 8-bit BGR or BGRA."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGBA" if "A" in image.getbands() else "RGB"))
    return pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]


def _rotate(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation (Exif 2.32, tag 0x0112): 1 upright ... 8 turned left."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image[:, ::-1] if orientation in (2, 3, 6, 7) else image


def _inspect(file: BinaryIO, name: str) -> Header:
    """Read the header and check size and completeness.

    Raises:
        DataError: if the file is empty, no image, too large, or ends early.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    magic = file.read(12)
    file.seek(0)
    if not size:
        raise DataError(f"{name}: the file is empty (zero bytes); expected an image")
    try:
        if magic.startswith(NPY_MAGIC):
            header = _npy_header(file, size)
        elif magic[:4] in TIFF_MAGIC:
            header = _tiff_header(file, size)
        else:
            header = _common_header(file, size, magic)
    except Image.DecompressionBombError:
        raise DataError(f"{name}: more than {MAX_PIXELS:,} pixels; make it smaller") from None
    except Exception as error:  # Pillow and NumPy raise nearly anything on mangled bytes
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "no format that is known here" if unknown else f"its header is bad ({error!r})"
        raise DataError(f"{name}: not a readable image: {reason}") from error
    height, width = header.shape
    if not (min(height, width) > 0 and height * width <= MAX_PIXELS):
        text = f"{height}x{width} pixels, expected 1 to {MAX_PIXELS:,}"
        raise DataError(f"{name}: {text}; make it smaller")
    if not header.whole:
        raise DataError(f"{name}: the {header.kind} file is truncated (it ends early)")
    return header


def _common_header(file: BinaryIO, size: int, magic: bytes) -> Header:
    with Image.open(file) as image:
        kind, orientation, whole = str(image.format), 1, True
        with suppress(Exception):  # a corrupt EXIF block doesn't make the pixels unusable
            orientation = int(image.getexif().get(TIFF_ORIENTATION, 1))
        tile: Any = image.tile[0] if kind == "BMP" and image.tile else ("",)
        if kind in ("JPEG", "MPO"):
            whole = _jpeg_whole(file, size)
        elif kind == "PNG":
            whole = _png_whole(file, size)
        elif kind == "WEBP":
            whole = size >= struct.unpack("<I", magic[4:8])[0] + 8
        elif tile[0] == "raw":
            whole = size >= tile[2] + tile[3][1] * image.height
        orientation = orientation if 1 <= orientation <= 8 else 1
        return Header(kind, image.height, image.width, orientation, whole)


def _jpeg_whole(file: BinaryIO, size: int) -> bool:
    """Look for the end marker, which other data may follow (a second picture, a video, zeros)."""
    file.seek(max(size - 2, 0))
    if file.read(2) == b"\xff\xd9":
        return True
    file.seek(0)
    data, at = file.read(), 2
    # Walk the segments up to the first scan, since an embedded preview has an end marker of its
    # own. Inside a scan FF is always followed by 00 or a restart marker (ITU T.81, B.1.1.5).
    while at + 4 <= size and data[at] == 0xFF:
        if data[at + 1] == 0xDA:
            return data.find(b"\xff\xd9", at) >= 0
        fill = data[at + 1] == 0xFF
        at += 1 if fill else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _png_whole(file: BinaryIO, size: int) -> bool:
    """Walk the chunks (length, type, data, checksum) to IEND; what follows it doesn't matter."""
    at, kind = 8, b""
    while at + 12 <= size and kind != b"IEND":
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        at += 12 + length
    return kind == b"IEND" and at <= size


def _tiff_header(file: BinaryIO, size: int) -> Header:
    """Read the first directory only: Pillow opens no TIFF of more than four channels."""
    start = file.read(8)
    if 43 in start[2:4]:  # BigTIFF
        start += file.read(8)
    directory = ImageFileDirectory_v2(start)
    file.seek(directory.next)
    directory.load(file)
    ends = [0]
    for offsets, counts in TIFF_DATA:
        ends += map(sum, zip(directory.get(offsets, ()), directory.get(counts, ()), strict=False))
    height, width = int(directory[TIFF_HEIGHT]), int(directory[TIFF_WIDTH])
    turned = directory.get(TIFF_ORIENTATION, 1) in (5, 6, 7, 8)
    return Header("TIFF", height, width, 5 if turned else 1, 0 < max(ends) <= size)


def _npy_header(file: BinaryIO, size: int) -> Header:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
    if len(shape) not in (2, 3) or dtype.hasobject:
        raise ValueError(f"expected an array (h, w) or (h, w, channels), found {shape} of {dtype}")
    needed = file.tell() + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return Header("NPY", shape[0], shape[1], 1, size >= needed)
