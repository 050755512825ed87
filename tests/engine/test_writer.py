# SPDX-License-Identifier: Apache-2.0
"""File names of a run; whole runs are tested in test_predictor.py."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from yolo.cfg.schema import PredictConfig
from yolo.data.sources import Frame
from yolo.engine.results import Results
from yolo.engine.writer import Writer
from yolo.errors import MissingPackageError

IMAGE = np.zeros((48, 64, 3), np.uint8)
BOXES = np.array([[5, 5, 20, 20, 0.9, 0]], np.float32)


def make(tmp_path, **options):
    return Writer(PredictConfig(project=str(tmp_path), name="run", **options), "toy")


def write(writer, path, place, boxes=BOXES, **frame):
    result = Results(IMAGE, path, {0: "cat"}, boxes=boxes)
    writer.write(Frame(IMAGE, path, place=place, **frame), result)
    return result


def test_stems_never_clash(tmp_path):
    writer = make(tmp_path, save=True)
    for place, path in enumerate(["x/a.png", "y/a.png", "a-2.png", "z/a.jpg"], start=1):
        write(writer, path, place)
    found = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert found == ["a-2-2.jpg", "a-2.jpg", "a-3.jpg", "a.jpg"]


def test_videos_one_after_the_other_get_a_file_each(tmp_path):
    writer = make(tmp_path, save=True)
    for path in ("x/clip.mp4", "y/clip.mp4"):  # of two calls: both are the first item
        for number in (1, 2):
            write(writer, path, 1, number=number)
    writer.close()
    for name in ("clip.avi", "clip-2.avi"):
        capture = cv2.VideoCapture(str(tmp_path / "run" / name))
        assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 2
        capture.release()


def test_stream_addresses_become_file_names(tmp_path):
    writer = make(tmp_path, save_txt=True)
    write(writer, "rtsp://host/cam", 1, number=7, live=True)
    assert (tmp_path / "run" / "labels" / "rtsp___host_cam_7.txt").is_file()


def test_no_label_file_without_objects(tmp_path):
    writer = make(tmp_path, save_txt=True)
    result = write(writer, "a.png", 1, boxes=BOXES[:0])
    assert list((tmp_path / "run").iterdir()) == []
    assert result.save_dir == str(tmp_path / "run")


def test_wanted(tmp_path):
    assert not make(tmp_path).wanted
    for option in ("save", "save_frames", "save_txt", "save_crop"):
        assert make(tmp_path, **{option: True}).wanted


def test_frame_rate_follows_the_stride(tmp_path):
    writer = make(tmp_path, save=True, vid_stride=2)
    for number in (1, 3, 5):
        write(writer, "clip.mp4", 1, number=number, fps=20.0)
    writer.close()
    capture = cv2.VideoCapture(str(tmp_path / "run" / "clip.avi"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 3
    capture.release()


def test_show_without_a_display_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise cv2.error("no GTK")

    monkeypatch.setattr(cv2, "imshow", refuse)
    result = Results(IMAGE, "a.png", {0: "cat"}, boxes=BOXES)
    with pytest.raises(MissingPackageError, match="save=True"):
        make(tmp_path, show=True).show(Frame(IMAGE, "a.png"), result)
