# SPDX-License-Identifier: Apache-2.0
"""Every kind of source, and what happens to the bad ones."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from yolo.data.sources import Source
from yolo.errors import ConfigError, DataError, MissingFileError

COLOURS = {"a": 10, "b": 60, "c": 110}


@pytest.fixture
def folder(tmp_path):
    """Three images of one grey level each, a nested one, a note."""
    root = tmp_path / "pics"
    (root / "deep").mkdir(parents=True)
    for name, level in COLOURS.items():
        cv2.imwrite(str(root / f"{name}.png"), np.full((12, 16, 3), level, np.uint8))
    cv2.imwrite(str(root / "deep" / "d.png"), np.full((12, 16, 3), 200, np.uint8))
    (root / "notes.md").write_text("no image")
    return root


@pytest.fixture
def video(tmp_path):
    """Ten frames of rising brightness."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for i in range(10):
        writer.write(np.full((48, 64, 3), 20 * i, np.uint8))
    writer.release()
    return path


def levels(frames):
    return [int(frame.image[0, 0, 0]) for frame in frames]


def read(source, **options):
    return list(Source(source, **options))


def test_file_gives_its_absolute_path(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for given in ("a.png", Path("a.png")):
        (frame,) = read(given)
        assert frame.path == str(folder / "a.png")
        assert (frame.place, frame.total, frame.number) == (1, 1, 0)
        assert frame.seconds > 0
        assert not frame.is_video


def test_folder_is_sorted_and_not_recursive(folder):
    source = Source(str(folder))
    frames = list(source)
    assert levels(frames) == [10, 60, 110]
    assert [frame.place for frame in frames] == [1, 2, 3]
    assert source.kinds == {"image"}
    assert source.total == 3


def test_glob(folder):
    assert levels(read(str(folder / "[ab].png"))) == [10, 60]
    assert sorted(levels(read(str(folder / "**" / "*")))) == [10, 60, 110, 200]
    with pytest.raises(MissingFileError, match="matches no image"):
        read(str(folder / "*.webp"))


def test_a_file_whose_name_looks_like_a_pattern(folder):
    (folder / "a.png").rename(folder / "a[1].png")
    assert levels(read(str(folder / "a[1].png"))) == [10]


def test_images_come_before_videos(folder, video):
    video.rename(folder / "aa.avi")
    frames = read(folder)
    assert [frame.is_video for frame in frames] == [False] * 3 + [True] * 10


def test_lists_may_be_mixed_and_nested(folder):
    array = np.full((5, 6, 3), 77, np.uint8)
    picture = Image.fromarray(np.full((5, 6, 3), 33, np.uint8))
    encoded = (folder / "b.png").read_bytes()
    tensor = torch.full((2, 3, 32, 32), 0.2)
    frames = read([folder / "a.png", array, (picture, encoded), tensor, [str(folder)]])
    assert levels(frames) == [10, 77, 33, 60, 51, 51, 10, 60, 110]
    names = [Path(frame.path).name for frame in frames]
    assert names[1:6] == [f"image{i}.jpg" for i in range(1, 6)]
    assert frames[0].total == 9


def test_pil_keeps_its_file_name(folder):
    with Image.open(folder / "c.png") as picture:
        (frame,) = read(picture)
    assert frame.path.endswith("c.png")


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_list_files(folder, suffix, monkeypatch):
    listing = folder / f"list{suffix}"
    heading = "path,label\n" if suffix == ".csv" else ""
    extra = ",7" if suffix == ".csv" else ""
    listing.write_text(f"{heading}./a.png{extra}\n\n{folder / 'c.png'}{extra}\n")
    monkeypatch.chdir(folder.parent)
    assert levels(read(listing)) == [10, 110]
    listing.write_text(f"./a.png\n./gone.png{extra}\n")
    with pytest.raises(MissingFileError, match=rf"list{suffix}:2: .*gone"):
        read(listing)


def test_tensor_frames_carry_the_tensor():
    tensor = torch.rand(2, 3, 32, 64)
    frames = read(tensor)
    assert [frame.path for frame in frames] == ["image0.jpg", "image1.jpg"]
    expected = (tensor[1] * 255).round().permute(1, 2, 0).flip(-1).numpy()
    assert np.array_equal(frames[1].image, expected)
    assert torch.equal(frames[1].tensor, tensor[1])


def test_video(video):
    frames = read(video)
    assert len(frames) == 10
    assert [frame.number for frame in frames] == list(range(1, 11))
    assert {frame.path for frame in frames} == {str(video)}
    assert frames[0].frames == 10
    assert frames[0].fps == pytest.approx(10)
    np.testing.assert_allclose(levels(frames), [20 * i for i in range(10)], atol=4)


def test_vid_stride_takes_every_nth_frame(video):
    frames = read(video, vid_stride=4)
    assert [frame.number for frame in frames] == [1, 5, 9]
    np.testing.assert_allclose(levels(frames), [0, 80, 160], atol=4)


def test_generators_are_read_one_at_a_time():
    asked = []

    def camera():
        for i in range(1000):
            asked.append(i)
            yield np.full((4, 4, 3), i % 250, np.uint8)

    frames = iter(Source(camera()))
    assert levels([next(frames), next(frames)]) == [0, 1]
    assert asked == [0, 1]
    assert next(frames).total == 0


def test_a_loader_class_is_lazy():
    class Loader:
        def __iter__(self):
            yield np.zeros((4, 4, 3), np.uint8)
            raise RuntimeError("read too far")

    frames = iter(Source(Loader()))
    assert next(frames).path == "image0.jpg"
    with pytest.raises(RuntimeError, match="too far"):
        next(frames)


def test_a_corrupt_image_is_skipped_and_named(folder, caplog):
    (folder / "b.png").write_bytes(b"\x89PNG broken")
    assert levels(read(folder)) == [10, 110]
    assert str(folder / "b.png") in caplog.text


def test_nothing_readable_is_an_error(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.png.*1 more"):
        read(tmp_path)


def test_a_broken_video_is_skipped_and_named(folder, caplog):
    (folder / "z.mp4").write_bytes(b"no video at all")
    assert len(read(folder)) == 3
    assert "z.mp4" in caplog.text
    with pytest.raises(DataError, match="codec"):
        read(folder / "z.mp4")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (None, ConfigError, r"model\.predict\('image\.jpg'\)"),
        ([], MissingFileError, "empty"),
        ((), MissingFileError, "empty"),
        (iter(()), MissingFileError, "empty"),
        ("no/such.jpg", MissingFileError, "no such file"),
        ("https://example.com/a.jpg", ConfigError, "nothing is downloaded"),
        ("screen 0", ConfigError, "screen"),
        ({"a": 1}, ConfigError, "got dict"),
        (3.5, ConfigError, "got float"),
        (True, ConfigError, "got True"),
        (np.zeros((1, 4, 4, 3), np.uint8), DataError, "list"),
        ([np.zeros((4, 4, 3), np.float64)], DataError, "uint8"),
    ],
)
def test_what_can_t_be_read_is_refused(source, error, message):
    with pytest.raises(error, match=message):
        read(source)


def test_folders_and_files_without_images(tmp_path):
    with pytest.raises(MissingFileError, match="no image or video in this folder"):
        read(tmp_path)
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(DataError, match=r"found \.doc"):
        read(tmp_path / "a.doc")


def test_a_missing_file_in_a_list_is_found_before_work_starts(folder):
    frames = iter(Source([folder / "a.png", folder / "gone.png"]))
    with pytest.raises(MissingFileError, match="gone"):
        next(frames)


class FakeCapture:
    """A camera with five frames."""

    opened = True

    def __init__(self, address):
        self.left = 5
        self.address = address

    def isOpened(self):  # noqa: N802 - OpenCV's name
        return self.opened

    def get(self, _):
        return 30.0

    def set(self, *_):
        return True

    def grab(self):
        self.left -= 1
        return self.left >= 0

    def retrieve(self):
        return True, np.full((4, 4, 3), self.left, np.uint8)

    def release(self):
        pass


@pytest.mark.parametrize("source", [0, "0", "rtsp://user:secret@host/stream"])
def test_cameras_and_streams(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    frames = read(source)
    assert levels(frames) == [4, 3, 2, 1, 0]
    assert all(frame.live for frame in frames)
    assert "secret" not in frames[0].path
    monkeypatch.setattr(FakeCapture, "opened", False)
    with pytest.raises(DataError, match="can't open this camera or stream") as caught:
        read(source)
    assert "secret" not in str(caught.value)


def test_models_of_other_channels(tmp_path):
    cube = np.random.default_rng(0).integers(0, 65535, (6, 8, 5), dtype=np.uint16)
    np.save(tmp_path / "cube.npy", cube)
    (frame,) = read(tmp_path / "cube.npy", channels=5)
    assert np.array_equal(frame.image, cube)
    (frame,) = read(cube, channels=5)
    assert frame.image.dtype == np.uint16
    with pytest.raises(DataError, match="5 channel"):
        read(np.zeros((6, 8, 3), np.uint8), channels=5)


def test_closing_early_releases_the_video(video, monkeypatch):
    released = []

    class Spy(FakeCapture):
        def release(self):
            released.append(1)

    monkeypatch.setattr(cv2, "VideoCapture", Spy)
    frames = iter(Source(str(video)))
    next(frames)
    frames.close()
    assert released == [1]


def test_a_file_that_vanishes_costs_only_itself(folder, caplog):
    frames = iter(Source(folder))
    assert next(frames).path.endswith("a.png")
    (folder / "b.png").unlink()
    assert [Path(frame.path).name for frame in frames] == ["c.png"]
    assert "b.png" in caplog.text


def test_patterns_pass_over_folders_that_are_named_like_images(folder):
    (folder / "deep" / "folder.png").mkdir()
    assert levels(read(str(folder / "**"))) == [10, 60, 110, 200]


def test_pil_images_are_timed(folder):
    with Image.open(folder / "a.png") as picture:
        assert read(picture)[0].seconds > 0
