# SPDX-License-Identifier: Apache-2.0
"""Reading images: every format to the right channels, every broken file refused by name."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from yolo.data.images import (
    MAX_PIXELS,
    image_shape,
    read_image,
    to_bgr8,
)
from yolo.errors import DataError, MissingFileError


def picture(h: int = 20, w: int = 30, c: int = 3, dtype: type = np.uint8) -> np.ndarray:
    top = np.iinfo(dtype).max
    ramp = np.linspace(0, top, h * w * c).reshape(h, w, c).astype(dtype)
    return ramp[:, :, 0] if c == 1 else ramp


def write(path: Path, image: np.ndarray) -> Path:
    done, data = cv2.imencode(path.suffix, image)
    assert done
    path.write_bytes(data.tobytes())
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".jpg", ".webp"])
def test_colour_image_keeps_shape_and_order(tmp_path: Path, suffix: str) -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, :, 0] = 200  # blue
    path = write(tmp_path / f"blå 图{suffix}", image)
    assert image_shape(path) == (20, 30)
    read = read_image(path)
    assert read.shape == (20, 30, 3)
    assert read.dtype == np.uint8
    assert np.abs(read.astype(int) - image).max() <= 6
    assert np.array_equal(read_image(path.read_bytes()), read)


@pytest.mark.parametrize(("c", "dtype"), [(1, np.uint8), (1, np.uint16), (3, np.uint16)])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_three_channels_whatever_the_file_holds(
    tmp_path: Path, suffix: str, c: int, dtype: type
) -> None:
    image = picture(c=c, dtype=dtype)
    read = read_image(write(tmp_path / f"a{suffix}", image))
    scale = 257 if dtype is np.uint16 else 1
    expected = np.round(np.atleast_3d(image) / scale).astype(np.uint8)
    assert read.shape == (20, 30, 3)
    assert read.dtype == np.uint8
    assert np.array_equal(read, np.broadcast_to(expected, (20, 30, 3)))


def test_alpha_is_dropped_for_three_channels_and_kept_for_four(tmp_path: Path) -> None:
    image = picture(c=4)
    path = write(tmp_path / "a.png", image)
    assert np.array_equal(read_image(path), image[:, :, :3])
    assert np.array_equal(read_image(path, 4), image)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_four_channels_of_16_bits_keep_their_values(tmp_path: Path, suffix: str) -> None:
    image = picture(c=4, dtype=np.uint16)
    path = write(tmp_path / f"a{suffix}", image)
    read = read_image(path, 4)
    assert image_shape(path) == (20, 30)
    assert read.dtype == np.uint16
    assert np.array_equal(read, image)


def test_tiff_pages_and_arrays_become_channels(tmp_path: Path) -> None:
    image = picture(c=5, dtype=np.uint16)
    done, data = cv2.imencodemulti(".tiff", [np.ascontiguousarray(image[..., i]) for i in range(5)])
    assert done
    tiff, npy = tmp_path / "a.tiff", tmp_path / "a.npy"
    tiff.write_bytes(data.tobytes())
    np.save(npy, image)
    for path in (tiff, npy):
        assert image_shape(path) == (20, 30)
        assert np.array_equal(read_image(path, 5), image)


def test_one_channel_is_grey_and_keeps_depth(tmp_path: Path) -> None:
    deep = picture(c=1, dtype=np.uint16)
    assert np.array_equal(read_image(write(tmp_path / "a.png", deep), 1)[:, :, 0], deep)
    assert read_image(write(tmp_path / "b.png", picture()), 1).shape == (20, 30, 1)


def test_wrong_channel_count_names_both(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected 4 channels, found 3"):
        read_image(write(tmp_path / "a.png", picture()), 4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, kind: str, orientation: int) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255  # one bright corner
    path = tmp_path / "a"
    image = Image.fromarray(pixels)
    if kind == "TIFF":
        image.save(path, kind, tiffinfo={274: orientation})
    else:
        exif = Image.Exif()
        exif[274] = orientation
        image.save(path, kind, exif=exif)
    # where Exif 2.32 says that the stored corner belongs: row, column
    place = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}
    shape = (16, 32) if orientation < 5 else (32, 16)
    read = read_image(path)
    assert image_shape(path) == read.shape[:2] == shape
    corners = read[[[2], [-3]], [[2, -3]], 0] > 128
    expected = np.zeros((2, 2), bool)
    expected[place[orientation]] = True
    assert np.array_equal(corners, expected)


@pytest.mark.filterwarnings("ignore")  # Pillow's remarks about the cut
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff", ".webp", ".bmp"])
def test_truncated_file_is_refused_and_trailing_bytes_are_not(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    path = write(tmp_path / f"a{suffix}", rng.integers(0, 256, (64, 64, 3)).astype(np.uint8))
    whole = path.read_bytes()
    extra = whole + b"\0" * 70_000
    path.write_bytes(extra)
    assert image_shape(path) == read_image(path).shape[:2] == (64, 64)
    assert path.read_bytes() == extra
    path.write_bytes(whole[: len(whole) * 6 // 10])
    for read in (image_shape, read_image):
        with pytest.raises(DataError, match=r"a\.\w+: .*(truncated|not a readable image)"):
            read(path)


def test_jpeg_preview_does_not_hide_truncation(tmp_path: Path) -> None:
    preview = cv2.imencode(".jpg", picture())[1].tobytes()
    whole = cv2.imencode(".jpg", picture(64, 64))[1].tobytes()
    app = b"\xff\xe5" + struct.pack(">H", len(preview) + 2) + preview
    path = tmp_path / "a.jpg"
    path.write_bytes(whole[:2] + app + whole[2:])
    assert image_shape(path) == (64, 64)
    path.write_bytes(whole[:2] + app + whole[2:-40])
    with pytest.raises(DataError, match="truncated"):
        image_shape(path)


@pytest.mark.filterwarnings("ignore")  # Pillow's remarks about mangled headers
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"no image at all", "no format that is known"),
        (b"II*\0\xff\xff\xff\x7f", "not a readable image"),
        (b"\x93NUMPY\1\0", "not a readable image"),
        (b"\xff\xd8\xff\xe0", "not a readable image"),
    ],
)
def test_unusable_bytes(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"a.png: .*{reason}"):
        image_shape(path)
    with pytest.raises(DataError, match=reason):
        read_image(data)


def test_pickled_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npy: .*expected an array"):
        read_image(tmp_path / "a.npy", 4)


def test_bomb_is_refused_before_decoding() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    side = int(MAX_PIXELS**0.5) + 10
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(DataError, match="make it smaller"):
        read_image(data)
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"shape": (10**6, 10**6), "fortran_order": False, "descr": "|u1"}
    )
    with pytest.raises(DataError, match="1000000x1000000 pixels"):
        read_image(stream.getvalue())


SUFFIXES = [".jpg", ".png", ".tiff", ".webp", ".bmp", ".npy"]


def encoded(suffix: str) -> bytes:
    if suffix != ".npy":
        return cv2.imencode(suffix, picture())[1].tobytes()
    stream = io.BytesIO()
    np.save(stream, picture())
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore")  # Pillow's remarks about mangled headers
@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(SUFFIXES),
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), min_size=1, max_size=4),
    st.sampled_from([3, 1, 4]),
)
def test_mangled_header_gives_an_image_or_a_clear_error(
    suffix: str, changes: list[tuple[int, int]], channels: int
) -> None:
    data = bytearray(encoded(suffix))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        image = read_image(bytes(data), channels)
    except DataError:
        with pytest.raises(DataError, match=r"^image bytes: "):
            read_image(bytes(data), channels)
    else:
        assert image.shape[2] == channels


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such image"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(MissingFileError, match="no such image"):
        image_shape(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="can't be read"):
        read_image(tmp_path)


def test_16_bits_become_8() -> None:
    assert to_bgr8(np.full((1, 1, 1), 65535, np.uint16)).tolist() == [[[255, 255, 255]]]


@pytest.mark.processes
def test_absent_libgl_names_the_headless_package() -> None:
    code = "import sys; sys.modules['cv2'] = None\nimport yolo.data.images"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "MissingPackageError" in run.stderr
    assert "opencv-python-headless" in run.stderr
