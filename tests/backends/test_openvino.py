# SPDX-License-Identifier: Apache-2.0
"""OpenVINO folders: what they say, how they run and fail."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import exports
from yolo.backends import open_backend
from yolo.backends.quiet import import_openvino
from yolo.cfg.load import write_yaml
from yolo.errors import ConfigError, MissingPackageError, ModelError

NAMES = {0: "a", 1: "b"}
ROOT = Path(__file__).parents[2]


def folder_of(tmp_path, shape=(1, 3, 64, 64), **metadata):
    """Write a folder whose outputs are `exports.detections()` plus the image's mean."""
    openvino = import_openvino()
    onnx = exports.write_onnx(tmp_path / "m.onnx", exports.detections(), shape)
    folder = tmp_path / "m_openvino_model"
    openvino.save_model(openvino.Core().read_model(str(onnx)), str(folder / "m.xml"))
    if metadata:
        write_yaml(folder / "metadata.yaml", metadata)
    return folder


@pytest.fixture
def folder(tmp_path):
    facts = {"task": "detect", "names": NAMES, "stride": 32, "date": "2026-01-01", "other": [1]}
    return folder_of(tmp_path, **facts)


def test_a_folder_runs_and_says_what_it_is(folder):
    backend = open_backend(folder)
    assert (backend.task, backend.names, backend.imgsz) == ("detect", NAMES, (64, 64))
    assert (backend.dynamic, backend.metadata.batch) == (False, 1)
    images = np.stack([np.full((64, 64, 3), level, np.uint8) for level in (0, 255, 51)])
    (found,) = backend(images)
    assert found.dtype == np.float32
    expected = [exports.detections() + add for add in (0, 1, 0.2)]
    np.testing.assert_allclose(found, expected, atol=0.01)  # saved with fp16 weights


def test_free_sizes_are_seen(tmp_path):
    facts = {"task": "detect", "names": NAMES}
    backend = open_backend(folder_of(tmp_path, ("b", 3, "h", "w"), imgsz=[96, 64], **facts))
    assert (backend.metadata.dynamic, backend.imgsz) == (True, (96, 64))
    for shape in ((1, 32, 64, 3), (3, 64, 32, 3)):
        assert backend(np.zeros(shape, np.uint8))[0].shape == (shape[0], 6, 3)
    backend = open_backend(folder_of(tmp_path, ("b", 3, 64, 64), **facts))
    assert backend.metadata.dynamic == "batch"


def test_threads_share_a_backend(folder):
    backend = open_backend(folder)
    levels = list(range(0, 200, 4))
    calls = [np.full((1, 64, 64, 3), level, np.uint8) for level in levels]
    with ThreadPoolExecutor(8) as pool:
        found = [outputs[0] for outputs in pool.map(backend, calls)]
    added = [float(rows[0, 4, 2] - exports.detections()[4, 2]) for rows in found]
    np.testing.assert_allclose(added, np.array(levels) / 255, atol=0.01)


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks are restored on Linux")
def test_a_model_may_end_in_another_thread(folder):
    """In a process of its own: what OpenVINO leaves behind kills it at the next signal."""
    code = f"""
import gc, signal, subprocess, threading
from yolo.backends import open_backend
signal.signal(signal.SIGCHLD, lambda *_: None)   # as torch's data loaders leave behind
models = [open_backend({str(folder)!r})]
thread = threading.Thread(target=lambda: (models.clear(), gc.collect()))
thread.start()
thread.join()
subprocess.run(["true"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_nothing_is_set_but_the_precision(folder):
    """The number of threads is as a user of OpenVINO finds it without this package."""
    openvino = import_openvino()
    compiled = open_backend(folder).compiled
    plain = openvino.Core().compile_model(str(folder / "m.xml"), "CPU")
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    for name in ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT", "CACHE_DIR"):
        if name in plain.get_property("SUPPORTED_PROPERTIES"):
            assert compiled.get_property(name) == plain.get_property(name)


def test_a_device_that_is_not_there(folder):
    open_backend(folder, "cpu")
    open_backend(folder, "intel:cpu")
    for device in ("cuda", 0, "tpu"):
        with pytest.raises(ConfigError, match=rf"device={device!r}: expected one of .*CPU"):
            open_backend(folder, device)


def test_what_is_missing_or_damaged_is_named(tmp_path, folder):
    weights = folder / "m.bin"
    data = weights.read_bytes()
    weights.write_bytes(data[:5])
    with pytest.raises(ModelError, match="no sound OpenVINO model"):
        open_backend(folder)
    weights.write_bytes(data)
    (folder / "metadata.yaml").write_text("names: [a\n", encoding="utf-8")
    with pytest.raises(ModelError, match=r"metadata\.yaml:"):
        open_backend(folder)
    (folder / "metadata.yaml").unlink()
    with pytest.raises(ModelError, match="lack 'task' and 'names'"):
        open_backend(folder)
    assert open_backend(folder, task="detect", names=["a", "b"]).names == NAMES
    (folder / "m.xml").unlink()
    with pytest.raises(ModelError, match=r"one \.xml file, found 0"):
        open_backend(folder)


def test_the_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'plainyolo\[openvino\]'"):
        open_backend(folder)


@pytest.mark.processes
def test_predicting_needs_no_torch(folder):
    code = f"""
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None   # importing them raises ImportError
import numpy as np
from yolo import YOLO
(result,) = YOLO({str(folder)!r})(np.zeros((64, 64, 3), np.uint8), verbose=False)
assert result.boxes.cls.tolist() == [0, 1], result.boxes.data
assert abs(result.boxes.conf - [0.9, 0.7]).max() < 0.01
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
