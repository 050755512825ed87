# SPDX-License-Identifier: Apache-2.0
"""ONNX files in onnxruntime: what they say, how they fail."""

from __future__ import annotations

import numpy as np
import pytest

import exports
from yolo.backends import is_exported, open_backend
from yolo.errors import ConfigError, MissingFileError, MissingPackageError, ModelError

NAMES = {0: "a", 1: "b"}


@pytest.fixture
def file(tmp_path):
    return exports.write_onnx(
        tmp_path / "m.onnx", exports.detections(), task="detect", names=NAMES, stride=32
    )


def test_a_file_runs_and_says_what_it_is(file):
    backend = open_backend(file)
    assert (backend.task, backend.names, backend.imgsz) == ("detect", NAMES, (64, 64))
    assert (backend.dynamic, backend.metadata.batch) == (False, 1)
    (found,) = backend(np.full((3, 64, 64, 3), 255, np.uint8))
    np.testing.assert_allclose(found, [exports.detections() + 1] * 3)


def test_a_free_batch_is_seen(tmp_path):
    path = exports.write_onnx(
        tmp_path / "m.onnx", exports.detections(), ("batch", 3, 64, 64), task="detect", names=NAMES
    )
    backend = open_backend(path)
    assert backend.metadata.dynamic == "batch"
    assert backend(np.zeros((3, 64, 64, 3), np.uint8))[0].shape == (3, 6, 3)


def test_a_damaged_file_is_refused(file):
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ModelError, match=r"m\.onnx: no sound ONNX file"):
        open_backend(file)


def test_no_file_and_no_metadata(tmp_path):
    with pytest.raises(MissingFileError, match="no such exported model"):
        open_backend(tmp_path / "m.onnx")
    bare = exports.write_onnx(tmp_path / "m.onnx", exports.detections())
    with pytest.raises(ModelError, match="lack 'task' and 'names'"):
        open_backend(bare)
    assert open_backend(bare, task="detect", names=["a", "b"]).names == NAMES


def test_a_device_that_the_runtime_lacks(file):
    open_backend(file, "cpu")
    for device in ("cuda", 0, "cuda:1", "tpu"):
        with pytest.raises(ConfigError, match="device="):
            open_backend(file, device)


def test_the_missing_package_is_named(file, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'plainyolo\[onnx\]'"):
        open_backend(file)


def test_exported_files_are_known_by_their_names():
    known = ("a.onnx", "b/c.torchscript", "d.pt2", "e_openvino_model/", "f.engine")
    assert all(map(is_exported, known))
    assert not any(map(is_exported, ("a.pt", "yolov8n.yaml", "b.safetensors", "onnx")))
