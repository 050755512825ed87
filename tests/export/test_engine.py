# SPDX-License-Identifier: Apache-2.0
"""What TensorRT is asked to build, with a stand-in for the package that runs what it is given."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

import exports
import nano
import tensorrt_stand_in
from yolo import TASKS
from yolo.backends import open_backend
from yolo.cfg.schema import ExportConfig
from yolo.errors import ExportError, MissingPackageError
from yolo.export import engine
from yolo.export.exporter import Exporter
from yolo.export.formats import Job

FACTS = {"task": "detect", "names": {0: "a", 1: "b"}, "imgsz": [64, 96], "stride": 32}
FREE = {"images": {0: "batch", 2: "height", 3: "width"}, "output0": {0: "batch"}}


@pytest.fixture
def tensorrt(monkeypatch):
    return tensorrt_stand_in.install(monkeypatch)


@pytest.fixture
def written(tensorrt, tmp_path, monkeypatch):
    """Write a graph made by hand, with options; give the file and the builder."""

    def write(shape=(1, 3, 64, 96), axes=None, mark="", **options):
        import onnx

        model = onnx.load(exports.write_onnx(tmp_path / "m.onnx", exports.detections(), shape))
        model.doc_string = mark
        monkeypatch.setattr(engine, "make", lambda *_: model)
        path = tmp_path / "m.engine"
        example = torch.zeros(2 if axes else 1, 3, 64, 96)
        job = Job(ExportConfig(format="engine", **options), FACTS, axes=axes or {})
        engine.write(None, example, path, job)
        return path, tensorrt.Builder.last

    return write


def test_a_file_runs(written):
    path, builder = written(workspace=0.5)
    data = path.read_bytes()
    length = int.from_bytes(data[:4], "little")
    assert json.loads(data[4 : 4 + length])["task"] == "detect"
    assert builder.workspace == 2**29
    assert builder.profile is None
    assert [flag.name for flag in builder.cleared] == ["TF32"]
    (found,) = open_backend(path)(np.full((2, 64, 96, 3), 255, np.uint8))
    np.testing.assert_allclose(found, [exports.detections() + 1] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "largest"), [({}, 16), ({"batch": 32}, 32), ({"preprocess": "raw"}, 16)]
)
def test_free_sizes_get_a_profile(written, options, largest):
    path, builder = written(("b", 3, "h", "w"), FREE, **options)
    growth = 8 if options.get("preprocess") else 2
    usual = options.get("batch", 1)
    least, middle, most = (1, 3, 32, 32), (usual, 3, 64, 96), (largest, 3, growth * 64, growth * 96)
    assert builder.profile == {"images": (least, middle, most)}
    assert open_backend(path).metadata.dynamic is True


def test_refusals_are_told(written, monkeypatch):
    with pytest.raises(ExportError, match="can't read the graph: In node 0: unsupported"):
        written(mark="refuse me")
    with pytest.raises(ExportError, match="can't build the graph"):
        written(workspace=2**-30)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingPackageError, match="pip install tensorrt"):
        written()


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("options", [{}, {"dynamic": True}, {"int8": True}], ids=str)
def test_every_task_proves_itself(task, options, tmp_path, tensorrt):
    spec = TASKS[task]
    if options.get("int8"):
        options = {**options, "data": str(nano.task_data(tmp_path, spec, val=64))}
    config = spec.export_config(format="engine", imgsz=64, **options)
    exporter = Exporter(config, spec, exports.network(spec), tmp_path / "tiny")
    exporter.run()
    assert exporter.agreement.images >= 8
