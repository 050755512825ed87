# SPDX-License-Identifier: Apache-2.0
"""Runtimes report nothing home: run in a fresh process, with a home that must stay empty.

A plain `import` of each leaves files there (checked by hand, since it sends reports as well).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from yolo.backends.quiet import import_onnxruntime, import_openvino
from yolo.errors import MissingPackageError

ROOT = Path(__file__).parents[2]

GUARD = """
import os, sys

def guard(event, args):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen",
                 "os.fork", "os.posix_spawn", "os.system", "urllib.Request"}:
        raise BaseException(f"tried {event}{args}")

sys.addaudithook(guard)
environment = dict(os.environ)
"""

RUN = """
import numpy as np
import onnx
from yolo.backends.quiet import import_onnxruntime, import_openvino

ort, ov = import_onnxruntime(), import_openvino()
assert dict(os.environ) == environment
assert "openvino_telemetry" not in sys.modules
assert import_openvino() is ov is sys.modules["openvino"]

kind, shape = onnx.TensorProto.FLOAT, [1, 3]
value = onnx.helper.make_tensor_value_info
graph = onnx.helper.make_graph(
    [onnx.helper.make_node("Relu", ["x"], ["y"])],
    "graph", [value("x", kind, shape)], [value("y", kind, shape)],
)
opset = [onnx.helper.make_opsetid("", 18)]
model = onnx.helper.make_model(graph, ir_version=10, opset_imports=opset)
data = model.SerializeToString()
x = np.array([[-1, 0, 2]], np.float32)
session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
assert session.run(None, {"x": x})[0].tolist() == [[0, 0, 2]]
core = ov.Core()
assert core.compile_model(core.read_model(data), "CPU")(x)[0].tolist() == [[0, 0, 2]]
ov.save_model(core.read_model(data), "model.xml")
"""


@pytest.mark.processes
def test_importing_and_running_runtimes_leaves_nothing_at_home(tmp_path):
    home, current = tmp_path / "home", tmp_path / "current"
    home.mkdir()
    current.mkdir()
    # These variables switch some of the reporting off.
    kept = {k: v for k, v in os.environ.items() if k not in {"CI", "TF_BUILD", "JENKINS_URL"}}
    kept = {k: v for k, v in kept.items() if "TELEMETRY" not in k and not k.startswith("XDG_")}
    done = subprocess.run(
        [sys.executable, "-c", GUARD + RUN],
        env={**kept, "HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=current,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(home.iterdir())
    assert sorted(path.name for path in current.iterdir()) == ["model.bin", "model.xml"]


@pytest.mark.parametrize("decided", [None, "0"])
def test_reporting_is_off_for_the_import_alone(decided, monkeypatch):
    """Nothing is imported here: a decision for reporting would hold for this whole process."""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    if decided:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", decided)
        monkeypatch.setitem(sys.modules, "openvino_telemetry", decided)
    environment, modules = dict(os.environ), dict(sys.modules)
    seen = []

    def look(name):
        variable = os.environ.get("ORT_DISABLE_TELEMETRY")
        seen.append((name, variable, sys.modules.get("openvino_telemetry", "importable")))

    monkeypatch.setattr("yolo.backends.quiet.importlib.import_module", look)
    import_onnxruntime()
    import_openvino()
    assert seen == [
        ("onnxruntime", decided or "1", decided or "importable"),
        ("openvino", decided, None),
    ]
    assert dict(os.environ) == environment
    assert dict(sys.modules) == modules


@pytest.mark.parametrize(
    ("load", "name", "extra"),
    [(import_onnxruntime, "onnxruntime", "onnx"), (import_openvino, "openvino", "openvino")],
)
def test_a_missing_runtime_is_named_with_its_install_line(load, name, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    environment = dict(os.environ)
    with pytest.raises(MissingPackageError, match=rf"(?s){name}.*'plainyolo\[{extra}\]'"):
        load()
    assert dict(os.environ) == environment
    assert "openvino_telemetry" not in sys.modules or sys.modules["openvino_telemetry"]
