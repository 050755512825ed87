# SPDX-License-Identifier: Apache-2.0
"""Programs of torch.export, and packages of AOTInductor."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import exports
from yolo.backends import open_backend
from yolo.cfg.schema import ExportConfig
from yolo.errors import ExportError, MissingPackageError, ModelError
from yolo.export.exporter import Exporter
from yolo.export.torch_export import check_compiler
from yolo.tasks.spec import TASKS

SPEC = next(iter(TASKS.values()))


OPTIONS = [
    {},
    {"dynamic": "batch"},
    {"preprocess": "raw"},
    {"preprocess": "raw", "dynamic": True},
]


def export(folder, spec=SPEC, **options):
    config = ExportConfig(format="torch_export", imgsz=64, verbose=False, **options)
    return Exporter(config, spec, exports.network(spec), folder / "best").run()


@pytest.mark.slow
def test_a_program_with_free_sizes(tmp_path):
    path = export(tmp_path, dynamic=True)
    assert path.name == "best.pt2"
    backend = open_backend(path)
    assert backend.dynamic
    assert backend(np.zeros((3, 96, 32, 3), np.uint8))[0].shape == (3, 9, 240)
    assert backend(np.zeros((1, 8, 40, 3), np.uint8))[0].shape == (1, 9, 25)  # maps of one row


@pytest.mark.slow
@pytest.mark.parametrize("spec", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_task(tmp_path, spec, options):
    export(tmp_path, spec, nms=spec.outputs.boxes and "preprocess" not in options, **options)


def test_compiling_needs_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(MissingPackageError, match=r"needs a C\+\+ compiler .*g\+\+ and clang\+\+"):
        check_compiler()
    monkeypatch.setenv("CXX", "my-c++")
    with pytest.raises(MissingPackageError, match=r"my-c\+\+"):
        export(tmp_path, compile=True)
    assert not list(tmp_path.iterdir())


def test_what_the_compiler_says_is_told(monkeypatch, tmp_path):
    def fails(*_, **__):
        raise RuntimeError("C++ compile error\n\nCommand: g++\nx.cpp:1: error: no <Python.h>\n")

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fails)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    with pytest.raises(ExportError, match=r"error: no <Python\.h>; .*python3-dev"):
        export(tmp_path, compile=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_package_agrees_and_is_not_opened(tmp_path):
    path = export(tmp_path, compile=True)
    assert path.name == "best_aoti.pt2"
    with pytest.raises(ModelError, match="machine code"):
        open_backend(path)
