# SPDX-License-Identifier: Apache-2.0
"""Tracking: ids that stay with their objects, one tracker a stream."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import nano
from squares import FRAMES, SIDE, found_by, frame, write_video
from yolo import YOLO, Tracker
from yolo.cli import main
from yolo.engine.results import Results
from yolo.engine.tracking import TRACKERS
from yolo.errors import ConfigError, MissingFileError, MissingPackageError
from yolo.tasks.spec import TASKS

pytest.importorskip("trackers")

BOX_TASKS = [name for name, spec in TASKS.items() if spec.outputs.boxes]


@pytest.fixture
def model(network, monkeypatch):
    return found_by(monkeypatch, YOLO(network))


def tops(result):
    """Return id -> y of the upper side, rounded."""
    rows = result.rows
    return {int(i): round(float(y)) for i, y in zip(rows.id, rows.xyxy[:, 1], strict=True)}


def result_of(*rows, image=None):
    image = np.zeros((SIDE, SIDE, 3), np.uint8) if image is None else image
    return Results(image, "x", {0: "a"}, boxes=np.array(rows, np.float32).reshape(-1, 6))


@pytest.mark.parametrize("name", TRACKERS)
def test_every_algorithm_follows_objects_past_each_other(model, name):
    results = model.track(FRAMES, tracker=name, verbose=False)
    assert all(tops(result) == {1: 6, 2: 40} for result in results)
    assert all(result.boxes.is_track for result in results)
    assert results[0].boxes.data.shape == (2, 7)
    assert results[0].boxes.id.dtype == torch.float32


@pytest.mark.parametrize("name", BOX_TASKS)
@pytest.mark.parametrize("tensors", [True, False])
def test_what_belongs_to_a_box_stays_with_it(name, tensors, tmp_path, monkeypatch):
    model = YOLO(nano.task_network(tmp_path, TASKS[name]))
    found_by(monkeypatch, model, tensors)
    weak = (1, 24, 24, 12, 0.12)  # found, never tracked: it comes once, and is too faint
    pictures = [*FRAMES[:3], frame((0, 17, 6, 16, 0.9), weak, (0, 29, 40, 16, 0.8)), *FRAMES[4:]]
    results = model.track(pictures, verbose=False)
    for result in results:
        assert tops(result) == {1: 6, 2: 40}
        assert len(result) == 2
        for i, y in enumerate(result.rows.xyxy[:, 1]):
            if result.masks is not None:
                assert result.masks.xy[i][:, 1].min() == pytest.approx(float(y), abs=2.5)
            if result.keypoints is not None:
                assert float(result.keypoints.xy[i, 0, 1]) == pytest.approx(float(y), abs=1e-3)
        assert [row["track_id"] for row in result.summary()] == result.rows.id.tolist()
    assert (results[0].masks is None) == (TASKS[name].label_format().kinds != {"polygons"})
    assert len(model.predict(pictures[3], verbose=False)[0]) == 2  # at 0.25
    assert len(model.predict(pictures[3], conf=0.1, verbose=False)[0]) == 3


def test_frames_one_by_one_need_persist(model):
    first = [model.track(f, persist=True, verbose=False)[0] for f in FRAMES[:4]]
    assert all(tops(result) == {1: 6, 2: 40} for result in first)
    later = frame((0, 30, 24, 14, 0.9))  # elsewhere
    (fresh,) = model.track(later, verbose=False)
    assert fresh.boxes.id.tolist() == [1]
    again = [model.track(f, persist=True, verbose=False)[0] for f in [later, *FRAMES[:3]]]
    assert again[0].boxes.id.tolist() == [1]
    assert set(tops(again[-1])) == {2, 3}  # ids are never used twice
    model.track(FRAMES[0], persist=True, tracker="bytetrack", verbose=False)
    assert model.track(FRAMES[1], tracker="bytetrack", persist=True, verbose=False)[0].boxes.id[0]


def test_interleaved_streams_are_runs_of_their_own(model):
    other = [frame((0, 10 + i, 20 + 2 * i, 16, 0.9)) for i in range(8)]
    expected = [model.track(s, verbose=False) for s in (FRAMES, other)]
    streams = [model.track(s, stream=True, verbose=False) for s in (FRAMES, other)]
    for results in zip(*streams, *expected, strict=True):
        a, b, *wanted = [result.boxes.id.tolist() for result in results]
        assert [a, b] == wanted
    mine = Tracker("bytetrack"), Tracker("bytetrack", lost_track_buffer=5)
    for f, g in zip(FRAMES, other, strict=True):
        (a,) = model.track(f, tracker=mine[0], verbose=False)
        (b,) = model.track(g, tracker=mine[1], verbose=False)
        assert (tops(a), b.boxes.id.tolist()) == ({1: 6, 2: 40}, [1])
    mine[0].reset()
    assert model.track(other[0], tracker=mine[0], verbose=False)[0].boxes.id.tolist() == [1]


def test_every_video_begins_afresh(model, tmp_path):
    clips = [write_video(tmp_path / f"{n}.avi", FRAMES[:4]) for n in "ab"]
    ids = [r.boxes.id.tolist() for r in model.track(clips, verbose=False)]
    assert ids == [[1, 2]] * 8
    tracker = Tracker()
    elsewhere = write_video(tmp_path / "c.avi", [frame((0, 48, 22, 12, 0.9))] * 3)
    runs = model.track([clips[0], elsewhere], tracker=tracker, verbose=False)
    assert set(runs[-1].boxes.id.tolist()) == {3}  # the caller's own goes on


def test_empty_frames_and_late_objects(model):
    empty, one = frame(), frame((2, 20, 20, 16, 0.9))
    results = model.track([empty, one, one, empty, one], tracker="bytetrack", verbose=False)
    assert [result.boxes.id.tolist() for result in results] == [[], [], [1], [], [1]]
    assert results[0].boxes.is_track
    assert results[0].boxes.data.shape == (0, 7)


def test_files_carry_ids(network, monkeypatch, tmp_path):
    model = found_by(monkeypatch, YOLO(network))
    write_video(tmp_path / "clip.avi", FRAMES)
    model.save(tmp_path / "model.pt")
    monkeypatch.chdir(tmp_path)
    line = "track model=model.pt source=clip.avi save_txt save_conf imgsz=64 tracker=bytetrack.yaml"
    assert main(line.split()) == 0
    run = tmp_path / "runs" / "detect" / "track"
    assert (run / "clip.avi").is_file()
    rows = [(run / "labels" / f"clip_{n}.txt").read_text().split("\n") for n in (1, 8)]
    assert [[row.split()[-1] for row in text[:-1]] for text in rows] == [["1", "2"]] * 2
    assert len(rows[0][0].split()) == 7


def test_callbacks_see_tracked_results(model):
    seen = []
    model.add_callback("on_predict_postprocess_end", lambda p: seen.extend(p.results))
    results = model.track(FRAMES[:2], batch=2, verbose=False)
    assert [r.boxes.is_track for r in seen] == [True, True]
    assert [r.boxes.id.tolist() for r in results] == [[1, 2], [1, 2]]
    model.predict(FRAMES[0], verbose=False)
    assert not seen[-1].boxes.is_track


# ---------------------------------------------------------------------- settings


def test_a_yaml_file_of_settings(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("tracker_type: bytetrack\nminimum_consecutive_frames: 4\n")
    strict, usual = Tracker(file), Tracker("bytetrack.yaml")
    row = (10, 10, 30, 30, 0.9, 0)
    for tracker in (strict, usual):
        tracker.update(result_of())
    ids = [[len(t.update(result_of(row))) for _ in range(4)] for t in (strict, usual)]
    assert ids == [[0, 0, 0, 1], [0, 1, 1, 1]]


def test_familiar_settings_are_translated(tmp_path, caplog):
    caplog.set_level("INFO", "yolo")
    file = tmp_path / "mine.yaml"
    file.write_text(
        "tracker_type: bytetrack\ntrack_high_thresh: 0.6\ntrack_low_thresh: 0.1\n"
        "new_track_thresh: 0.7\ntrack_buffer: 3\nmatch_thresh: 0.75\nfuse_score: true\n"
    )
    inner = Tracker(file)._tracker
    assert inner.high_conf_det_threshold == 0.6
    assert inner.track_activation_threshold == 0.7
    assert inner.maximum_frames_without_update == 3
    assert inner.minimum_iou_threshold == 0.25
    assert "'bytetrack': without effect here: track_low_thresh, fuse_score" in caplog.text
    assert Tracker("botsort", gmc_method="orb", match_thresh=0.9)


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("bytetracks", {}, r"='bytetracks': expected one of botsort, .*Similar: 'bytetrack'"),
        ("tracktrack.yaml", {}, r"tracker='tracktrack': expected one of"),
        ("bytetrack", {"lost_buffer": 3}, r"'lost_buffer'\. Similar: 'lost_track_buffer'"),
        ("botsort", {"cmc_method": "magic"}, r"tracker 'botsort': .*'magic'"),
    ],
)
def test_what_cannot_be_meant_is_refused(name, settings, text):
    with pytest.raises(ConfigError, match=text):
        Tracker(name, **settings)


def test_a_missing_file_and_one_that_names_nothing(tmp_path):
    with pytest.raises(MissingFileError, match=r"no/file\.yaml"):
        Tracker("no/file.yaml")
    (tmp_path / "a.yaml").write_text("track_buffer: 3\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: tracker_type: 'nothing': expected one of"):
        Tracker(tmp_path / "a.yaml")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'plainyolo\[track\]'"):
        Tracker()


def test_results_without_boxes_and_predict_with_track_s_options(model, tmp_path):
    classifier = YOLO(nano.task_network(tmp_path, TASKS["classify"]))
    with pytest.raises(ConfigError, match="track needs boxes to follow"):
        Tracker().update(Results(FRAMES[0], "x", {0: "a"}, probs=np.ones(1)))
    assert classifier.task == "classify"
    for option in ({"persist": True}, {"tracker": "sort"}):
        with pytest.raises(ConfigError, match="belongs to track, not to predict"):
            model.predict(FRAMES[0], **option)
