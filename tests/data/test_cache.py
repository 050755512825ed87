# SPDX-License-Identifier: Apache-2.0
"""The image store: right pixels in every mode, one copy for all, room checked, files bounded."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import shutil
from collections import namedtuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from painted import Index, write
from yolo.data import cache, slots
from yolo.data.cache import ImageStore, fitted_shapes
from yolo.data.letterbox import fit_shape, resize
from yolo.data.sample import Instances
from yolo.errors import ConfigError, DataError

SHAPES = [(30, 40), (80, 50), (64, 64), (20, 200)]


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (*shape, 3), dtype=np.uint8) for shape in SHAPES]


@pytest.fixture
def index(tmp_path, images):
    folder = tmp_path / "images"
    folder.mkdir()
    paths = write(folder, images)
    return Index([Instances.empty()] * len(images), np.array(SHAPES), paths)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 900), st.integers(1, 900))
def test_shapes_of_many_are_the_shapes_of_each(h, w, a, b):
    assert tuple(fitted_shapes(np.array([[h, w]], np.int32), (a, b))[0]) == fit_shape(
        (h, w), (a, b)
    )


@pytest.mark.parametrize("mode", [False, "ram", "disk"])
def test_every_mode_gives_the_same_pixels(index, images, mode, tmp_path):
    store = ImageStore(index, (64, 96), mode=mode, cache_dir=tmp_path / "cache")
    for _ in range(2):
        for i, image in enumerate(images):
            loaded = store.load(i)
            shape = fit_shape(SHAPES[i], (64, 96))
            assert loaded.shape[:2] == store.loaded_shape(i) == shape
            np.testing.assert_array_equal(loaded, resize(image, shape))
            with pytest.raises(ValueError, match="read-only"):
                loaded[0, 0] = 0
    assert store.cached == bool(mode)
    store.close()


def test_files_are_read_once(index, monkeypatch, tmp_path):
    read = []
    real = cache.read_image
    monkeypatch.setattr(cache, "read_image", lambda p, c: read.append(p) or real(p, c))
    store = ImageStore(index, (64, 64), mode="ram")
    read.clear()  # one look at the first image tells the bit depth
    for _ in range(3):
        for i in range(4):
            store.load(i)
    assert len(read) == 4
    small = ImageStore(index, (64, 64), recent_bytes=64 * 64 * 3 * 2)
    read.clear()
    for i in (0, 1, 0, 1, 2, 1):
        small.load(i)
    assert len(read) == 3
    assert small.kept.used <= small.kept.room


def test_disk_cache_serves_the_next_run_and_notices_changes(index, tmp_path):
    folder = tmp_path / "cache"
    first = ImageStore(index, (64, 64), mode="disk", cache_dir=folder)
    kept = first.load(1).copy()
    first.close()
    (file,) = folder.iterdir()
    second = ImageStore(index, (64, 64), mode="disk", cache_dir=folder)
    assert second.kept.get(1) is not None
    assert second.kept.get(0) is None
    np.testing.assert_array_equal(second.load(1), kept)
    assert list(folder.iterdir()) == [file]
    ImageStore(index, (32, 64), mode="disk", cache_dir=folder)
    assert len(list(folder.iterdir())) == 2
    shutil.copy(index.paths[0], index.paths[2])
    os.utime(index.paths[2], ns=(1, 1))
    ImageStore(index, (64, 64), mode="disk", cache_dir=folder)
    assert len(list(folder.iterdir())) == 3


def _load_elsewhere(store, results):
    store.load(3)
    results.put(store.load(0).sum())


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_one_cache_for_all_processes(index, start):
    store = ImageStore(index, (64, 64), mode="ram")
    expected = store.load(0).sum()
    context = multiprocessing.get_context(start)
    results = context.Queue()
    worker = context.Process(target=_load_elsewhere, args=(store, results))
    worker.start()
    assert results.get(timeout=60) == expected
    worker.join(60)
    assert worker.exitcode == 0
    assert store.kept.get(3) is not None  # filled by the other process
    store.close()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_what_one_worker_has_decoded_no_other_reads(index, images, start, monkeypatch):
    store = ImageStore(index, (64, 64))
    store.share_recent(count=10, workers=2)
    context = multiprocessing.get_context(start)
    results = context.Queue()
    worker = context.Process(target=_load_elsewhere, args=(store, results))
    worker.start()
    results.get(timeout=60)
    worker.join(60)
    with monkeypatch.context() as patch:
        patch.delattr(cache, "read_image")
        for i in (0, 3):
            shape = store.loaded_shape(i)
            np.testing.assert_array_equal(store.load(i), resize(images[i], shape))
    store.load(1)
    store.close()


@pytest.mark.parametrize("keep", ["recent", "shared", "ram"])
def test_a_closed_store_reads_files_and_closes_again(index, images, keep):
    store = ImageStore(index, (64, 64), mode="ram" if keep == "ram" else False)
    if keep == "shared":
        store.share_recent(count=3, workers=2)
    store.load(0)
    store.close()
    np.testing.assert_array_equal(store.load(0), resize(images[0], store.loaded_shape(0)))
    store.close()


def test_shared_images_are_bounded_and_only_where_they_can_be(index, tmp_path, monkeypatch):
    store = ImageStore(index, (64, 64))
    store.share_recent(count=3, workers=2)
    assert store.kept.places == 3
    monkeypatch.setattr(cache, "RECENT_BYTES", 64 * 64 * 3)
    store.share_recent(count=3, workers=2)
    assert store.kept.places == 2
    monkeypatch.setattr(cache, "free_memory", lambda: 100)
    for other in (
        ImageStore(index, (64, 64)),
        ImageStore(index, (64, 64), mode="disk", cache_dir=tmp_path / "cache"),
        ImageStore(index, (64, 64), channels=1),
        ImageStore(index, (64, 64), fit=False),
    ):
        before = other.kept
        other.share_recent(count=3, workers=2)
        assert other.kept is before


def test_pickle_without_a_cache_leaves_images_behind(index):
    store = ImageStore(index, (64, 64))
    store.load(0)
    copy = pickle.loads(pickle.dumps(store))
    assert copy.kept.get(0) is None
    np.testing.assert_array_equal(copy.load(0), store.load(0))
    gone = ImageStore(index, (64, 64), mode="ram")
    frozen = pickle.dumps(gone)
    gone.close()
    with pytest.raises(DataError, match=r"image cache .* can't be opened"):
        pickle.loads(frozen)


def test_memory_is_given_back(index):
    before = set(os.listdir("/proc/self/fd"))
    store = ImageStore(index, (64, 64), mode="ram")
    view = store.load(0)
    assert len(set(os.listdir("/proc/self/fd")) - before) == 2  # the file, and mmap's own door
    del store, view
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_no_room_means_no_cache(index, mode, monkeypatch, caplog, tmp_path):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(slots, "free_memory", lambda: 1000)
    monkeypatch.setattr(slots.shutil, "disk_usage", lambda _: usage(1000))
    with caplog.at_level("WARNING"):
        store = ImageStore(index, (64, 64), mode=mode, cache_dir=tmp_path / "cache")
    assert f"cache='{mode}': 0.00 GB of images can't be cached" in caplog.text
    assert "going on without" in caplog.text
    assert not store.cached
    assert store.load(0).shape == (48, 64, 3)


def test_a_read_only_folder_means_no_cache(index, caplog, tmp_path):
    (tmp_path / "file").write_text("")
    store = ImageStore(index, (64, 64), mode="disk", cache_dir=tmp_path / "file" / "cache")
    assert not store.cached
    assert "going on without" in caplog.text


@pytest.mark.parametrize("mode", [False, "ram"])
def test_images_that_changed_are_named(index, mode):
    store = ImageStore(index, (64, 64), mode=mode)
    shutil.copy(index.paths[0], index.paths[1])
    with pytest.raises(DataError, match=r"1\.png: expected 80x50 pixels .* found 30x40"):
        store.load(1)
    with open(index.paths[2], "wb") as file:
        file.write(b"\x89PNG nothing")
    with pytest.raises(DataError, match=r"2\.png"):
        store.load(2)


def test_bad_modes(index):
    with pytest.raises(ConfigError, match="expected False, 'ram' or 'disk'"):
        ImageStore(index, (64, 64), mode="rom")
    with pytest.raises(ConfigError, match="set cache_dir"):
        ImageStore(index, (64, 64), mode="disk")


def test_an_empty_index_needs_no_cache():
    store = ImageStore(Index([], np.zeros((0, 2), int)), (64, 64), mode="ram")
    assert not store.cached
