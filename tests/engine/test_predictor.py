# SPDX-License-Identifier: Apache-2.0
"""The prediction loop on a NumPy backend: order, batches, events, files, nesting, threads."""

from __future__ import annotations

import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from yolo.cfg.schema import PredictConfig
from yolo.engine.events import Callbacks
from yolo.engine.predictor import Predictor, class_filter
from yolo.engine.results import Results
from yolo.errors import ConfigError, DataError

SPEC = SimpleNamespace(name="toy")


class Backend:
    """Returns the mean of each canvas; remembers what it was given."""

    names = {0: "cat", 1: "dog"}  # noqa: RUF012 - read only
    stride = 32
    imgsz = (64, 64)
    channels = 3
    task = "toy"

    def __init__(self, dynamic=True):
        self.dynamic = dynamic
        self.shapes = []

    def __call__(self, images):
        self.shapes.append(images.shape)
        return images.reshape(len(images), -1).mean(1)


class Toy(Predictor):
    """One box over the whole image; its confidence is the backend's number."""

    def postprocess(self, outputs, prepared):
        results = []
        for value, item in zip(outputs, prepared, strict=True):
            height, width = item.canvas_shape
            canvas = np.array([[0, 0, width, height]], np.float32)
            box = np.append(item.placement.to_original(canvas), [[value / 255, 1]], 1)
            results.append(Results(item.image, item.frame.path, self.backend.names, boxes=box))
        return results


def make(backend=None, callbacks=None, **options):
    options = {"imgsz": 64, "verbose": False, **options}
    return Toy(PredictConfig(**options), SPEC, backend or Backend(), callbacks)


def image(height=48, width=64, level=100):
    return np.full((height, width, 3), level, np.uint8)


def test_results_in_order_and_in_original_pixels():
    sizes = [(48, 64), (200, 100), (48, 64), (30, 300), (64, 64)]
    results = make(batch=5)([image(*size, level=i) for i, size in enumerate(sizes)])
    assert [r.orig_shape for r in results] == sizes
    assert [int(r.orig_img[0, 0, 0]) for r in results] == [0, 1, 2, 3, 4]
    for result, (height, width) in zip(results, sizes, strict=True):
        assert result.boxes.xyxy[0].tolist() == [0, 0, width, height]


def test_results_don_t_depend_on_neighbours():
    rng = np.random.default_rng(0)
    sizes = [(48, 64), (200, 100), (64, 48), (48, 64), (31, 300)]
    images = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]
    alone = [make()(picture)[0].boxes.data for picture in images]
    for batch in (1, 2, 5, 16):
        together = make(batch=batch)(images)
        for one, other in zip(alone, together, strict=True):
            assert np.array_equal(one, other.boxes.data)


def test_batches_and_canvas_shapes():
    backend = Backend()
    make(backend, batch=4)([image()] * 3 + [image(64, 32)] + [image()])
    assert backend.shapes == [(3, 64, 64, 3), (1, 64, 32, 3), (1, 64, 64, 3)]
    backend = Backend()
    make(backend, batch=4, rect=False)([image()] * 3 + [image(64, 32)])
    assert backend.shapes == [(4, 64, 64, 3)]


def test_a_static_backend_forces_its_size():
    backend = Backend(dynamic=False)
    make(backend, imgsz=640)([image(20, 640)])
    assert backend.shapes == [(1, 64, 64, 3)]


def test_imgsz_is_rounded_up_and_may_be_a_pair(caplog):
    backend = Backend()
    make(backend, imgsz=(40, 100), rect=False)([image()])
    assert backend.shapes == [(1, 64, 128, 3)]
    assert "no multiple of the stride 32" in caplog.text


def test_stream_does_nothing_before_the_first_step():
    asked = []

    def source():
        for i in range(5):
            asked.append(i)
            yield image(level=i)

    stream = make()(source(), stream=True)
    assert asked == []
    assert int(next(stream).orig_img[0, 0, 0]) == 0
    assert asked == [0]
    assert len(list(stream)) == 4


def test_events_and_their_attributes():
    seen = []
    callbacks = Callbacks()

    def note(event):
        def callback(predictor):
            paths, images, lines = predictor.batch
            seen.append((event, len(paths), len(images), sum(map(bool, lines)), predictor.seen))

        return callback

    for event in ("start", "batch_start", "postprocess_end", "batch_end", "end"):
        callbacks.add(f"on_predict_{event}", note(event))
    predictor = make(callbacks=callbacks, batch=2)
    predictor([image()] * 3)
    assert seen == [
        ("start", 0, 0, 0, 0),
        ("batch_start", 2, 2, 0, 0),
        ("postprocess_end", 2, 2, 0, 2),
        ("batch_end", 2, 2, 2, 2),
        ("batch_start", 1, 1, 0, 2),
        ("postprocess_end", 1, 1, 0, 3),
        ("batch_end", 1, 1, 1, 3),
        ("end", 1, 1, 1, 3),
    ]
    assert predictor.source_type == {"array"}
    assert predictor.dataset.total == 3
    assert predictor.args.batch == 2
    assert predictor.model is predictor.backend


def test_a_callback_may_replace_results():
    callbacks = Callbacks()

    def replace(predictor):
        predictor.results = [f"mine {len(predictor.results)}"]

    callbacks.add("on_predict_batch_end", replace)
    assert make(callbacks=callbacks)([image()] * 2) == ["mine 1", "mine 1"]


def test_speed_is_milliseconds_of_three_stages():
    predictor = make(batch=2)
    results = predictor([image()] * 3)
    for result in results:
        assert list(result.speed) == ["preprocess", "inference", "postprocess"]
        assert all(value > 0 for value in result.speed.values())
    mean = np.mean([result.speed["inference"] for result in results])
    assert predictor.speed["inference"] == pytest.approx(mean)


def test_nested_calls_and_open_streams():
    stream = make()([image(level=i) for i in range(4)], stream=True)
    first = next(stream)
    inner = make()([image(level=200)])
    assert int(inner[0].orig_img[0, 0, 0]) == 200
    assert [int(r.orig_img[0, 0, 0]) for r in [first, *stream]] == [0, 1, 2, 3]


def test_threads_give_the_results_of_one():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (40 + i, 64, 3), dtype=np.uint8) for i in range(32)]
    backend = Backend()
    expected = [make(backend)(picture)[0].boxes.data for picture in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda picture: make(backend)(picture)[0].boxes.data, images))
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


def test_pickle():
    predictor = pickle.loads(pickle.dumps(make()))
    assert len(predictor([image()])) == 1


def test_a_broken_image_in_the_middle_is_skipped(tmp_path, caplog):
    for name in "abc":
        cv2.imwrite(str(tmp_path / f"{name}.png"), image())
    (tmp_path / "b.png").write_bytes(b"broken")
    results = make(batch=2)(str(tmp_path))
    assert [r.path[-5:] for r in results] == ["a.png", "c.png"]
    assert "b.png" in caplog.text


def test_log_lines(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    cv2.imwrite(str(tmp_path / "a.png"), image())
    make(verbose=True)(str(tmp_path))
    assert f"image 1/1 {tmp_path / 'a.png'}: 64x64 1 dog, " in caplog.text
    assert "ms preprocess" in caplog.text
    caplog.clear()
    make(verbose=False)(str(tmp_path))
    assert not caplog.text


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_nothing_is_written_unasked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predictor = make()
    (result,) = predictor([image()])
    assert result.save_dir is None
    assert predictor.save_dir is None
    assert files(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_files_of_images(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "same.png"), image())
    paths = [tmp_path / "x" / "same.png", tmp_path / "y" / "same.png", image()]
    options = {"save": True, "save_txt": True, "save_conf": True, "save_crop": True}
    for _ in range(2):  # label files are written anew, not appended to
        predictor = make(project=str(tmp_path / "runs"), name="p", exist_ok=True, **options)
        results = predictor(paths)
    run = tmp_path / "runs" / "p"
    assert predictor.save_dir == run
    assert predictor.txt_path == run / "labels" / "image2.txt"
    assert (predictor.plotted_img == results[2].plot()).all()
    assert results[0].save_dir == str(run)
    found = files(run)
    assert [name for name in found if "/" not in name] == ["image2.jpg", "same-2.jpg", "same.jpg"]
    assert [name for name in found if name.startswith("labels")] == [
        "labels/image2.txt",
        "labels/same-2.txt",
        "labels/same.txt",
    ]
    assert "crops/dog/same.jpg" in found
    lines = (run / "labels" / "same.txt").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("1 0.5 0.5 1 1 0.")
    assert cv2.imread(str(run / "same.jpg")).shape == (48, 64, 3)


def write_video(path, frames=5):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for i in range(frames):
        writer.write(image(level=20 * i))
    writer.release()


def test_files_of_videos(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    write_video(source / "one.avi")
    write_video(source / "two.avi", 3)
    backend = Backend()
    predictor = make(
        backend, project=str(tmp_path / "runs"), batch=4, save=True, save_txt=True, save_frames=True
    )
    results = predictor(str(source))
    assert len(results) == 8
    assert [shape[0] for shape in backend.shapes] == [4, 1, 3]  # never across videos
    run = predictor.save_dir
    for name, count in (("one", 5), ("two", 3)):
        capture = cv2.VideoCapture(str(run / f"{name}.avi"))
        assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == count
        assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
        capture.release()
        numbers = range(1, count + 1)
        for n in numbers:
            assert (run / "labels" / f"{name}_{n}.txt").is_file()
            assert (run / f"{name}_frames" / f"{name}_{n}.jpg").is_file()


def test_dropping_a_stream_finishes_the_video(tmp_path):
    write_video(tmp_path / "clip.avi")
    predictor = make(project=str(tmp_path / "runs"), save=True)
    stream = predictor(str(tmp_path / "clip.avi"), stream=True)
    next(stream)
    next(stream)
    stream.close()
    capture = cv2.VideoCapture(str(predictor.save_dir / "clip.avi"))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 2
    capture.release()


def test_a_long_stream_keeps_no_frames():
    import gc
    import weakref

    alive = []

    def source():
        for _ in range(50):
            yield image()

    for result in make(batch=4)(source(), stream=True):
        alive.append(weakref.ref(result))
    del result
    gc.collect()
    assert sum(ref() is not None for ref in alive) <= 4


def test_errors_reach_the_caller():
    with pytest.raises(ConfigError, match=r"model\.predict"):
        make()(None)
    with pytest.raises(DataError):
        make()(np.zeros((4, 4, 3), np.float32))


def test_class_filter():
    names = {0: "cat", 1: "dog"}
    assert class_filter(None, names) is None
    assert class_filter(1, names) == [1]
    assert class_filter([0, "dog"], names) == [0, 1]
    for wrong in (5, "fox", [-1]):
        with pytest.raises(ConfigError, match="has no class"):
            class_filter(wrong, names)
