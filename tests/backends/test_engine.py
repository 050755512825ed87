# SPDX-License-Identifier: Apache-2.0
"""TensorRT files, with a stand-in for the package: where bytes go, and how it fails."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

import exports
import tensorrt_stand_in
from yolo.backends import engine, open_backend
from yolo.errors import ConfigError, MissingPackageError, ModelError

FACTS = {"task": "detect", "names": {"0": "a", "1": "b"}, "imgsz": [64, 64], "batch": 1}


@pytest.fixture
def tensorrt(monkeypatch):
    return tensorrt_stand_in.install(monkeypatch)


def file_of(tmp_path, shape=(1, 3, 64, 64), profile=None, facts=FACTS):
    onnx = exports.write_onnx(tmp_path / "m.onnx", exports.detections(), shape)
    plan = b"plan" + json.dumps(profile).encode() + b"\0" + onnx.read_bytes()
    path = tmp_path / "m.engine"
    path.write_bytes(engine.join(json.dumps(facts), plan) if facts else plan)
    return path


def test_a_file_runs_and_says_what_it_is(tmp_path, tensorrt):
    backend = open_backend(file_of(tmp_path), "cuda")
    assert (backend.task, backend.names, backend.imgsz) == ("detect", {0: "a", 1: "b"}, (64, 64))
    images = np.stack([np.full((64, 64, 3), level, np.uint8) for level in (0, 255, 51)])
    (found,) = backend(images)
    expected = [exports.detections() + add for add in (0, 1, 0.2)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_free_batch_is_as_large_as_the_file_was_built_for(tmp_path, tensorrt):
    profile = {"images": [[1, 3, 64, 64], [1, 3, 64, 64], [4, 3, 64, 64]]}
    backend = open_backend(file_of(tmp_path, ("b", 3, 64, 64), profile))
    assert backend.metadata.dynamic == "batch"
    (found,) = backend(np.full((4, 64, 64, 3), 51, np.uint8))
    np.testing.assert_allclose(found, [exports.detections() + 0.2] * 4, rtol=1e-5)
    with pytest.raises(ModelError, match=r"wasn't built for an input \(5, 3, 64, 64\)"):
        backend(np.zeros((5, 64, 64, 3), np.uint8))


def test_files_that_cannot_be_used(tmp_path, tensorrt):
    bare = file_of(tmp_path, facts=None)
    with pytest.raises(ModelError, match="lack 'task' and 'names'"):
        open_backend(bare)
    assert open_backend(bare, task="detect", names=["a", "b"]).names == {0: "a", 1: "b"}
    bare.write_bytes(b"something else")
    with pytest.raises(ModelError, match=r"TensorRT 10\.\S+ on cpu refuses the file"):
        open_backend(bare)


def test_metadata_stand_before_the_plan():
    data = engine.join('{"task": "é"}', b"\x01plan")
    assert data[:4] == bytes([14, 0, 0, 0])
    assert engine.split(data) == ({"task": "é"}, b"\x01plan")
    # Bare plans, and lengths and texts that are none.
    for plan in (b"", b"abc", b"plan" * 9, b"\xff" * 40, b"\x02\0\0\0[]plan", b"\x02\0\0\0{[plan"):
        assert engine.split(plan) == ({}, plan)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    path = tmp_path / "m.engine"
    path.write_bytes(b"plan")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingPackageError, match="pip install tensorrt"):
        open_backend(path)
    tensorrt_stand_in.install(monkeypatch, "8.6.1")
    with pytest.raises(MissingPackageError, match=r"version 10 or newer, found 8\.6\.1"):
        open_backend(path)


def test_only_gpus_that_are_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for asked, index in ((None, 0), ("cuda", 0), (1, 1), ("cuda:1", 1), ("1", 1)):
        assert engine.cuda_device(asked) == torch.device("cuda", index)
    with pytest.raises(ConfigError, match="device='cpu': TensorRT runs on NVIDIA"):
        engine.cuda_device("cpu")
    for asked in (2, "cuda:7", "gpu"):
        with pytest.raises(ConfigError, match=f"device={asked!r}"):
            engine.cuda_device(asked)
