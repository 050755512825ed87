# SPDX-License-Identifier: Apache-2.0
"""ONNX files: operator sets, names of sizes, metadata, precision; each export proves itself."""

from __future__ import annotations

import ast

import numpy as np
import pytest

import exports
from yolo.backends import open_backend
from yolo.cfg.schema import ExportConfig
from yolo.errors import ConfigError, MissingPackageError
from yolo.export.exporter import Exporter
from yolo.export.onnx import DEFAULT_OPSET, OPSETS
from yolo.tasks.spec import TASKS

SPECS = {spec.head_names[0]: spec for spec in TASKS.values()}


def export(folder, head="Detect", **options):
    spec = SPECS[head]
    config = ExportConfig(**{"format": "onnx", "imgsz": 64, "verbose": False, **options})
    done = Exporter(config, spec, exports.network(spec), folder / "best")
    done.run()
    return done


def described(path):
    import onnx

    model = onnx.load(str(path))
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    return model, shapes


def test_a_static_file(tmp_path):
    done = export(tmp_path, batch=2)
    model, shapes = described(done.file)
    assert done.file == tmp_path / "best.onnx"
    assert shapes == {"images": [2, 3, 64, 64], "output0": [2, 9, 320]}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", DEFAULT_OPSET)]
    assert model.ir_version <= 10
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert ast.literal_eval(facts["names"]) == dict(enumerate(exports.NAMES))
    text = str(model.graph)  # the exporter notes where its code lies
    assert "site-packages" not in text
    assert "/work" not in text
    assert done.agreement.matched == done.agreement.boxes >= 20
    assert open_backend(done.file)(np.zeros((3, 64, 64, 3), np.uint8))[0].shape == (3, 9, 320)


@pytest.mark.slow
def test_free_sizes_have_the_familiar_names(tmp_path):
    done = export(tmp_path, "Segment", dynamic=True, opset=OPSETS[-1], simplify=False)
    model, shapes = described(done.file)
    assert shapes["images"] == ["batch", 3, "height", "width"]
    assert shapes["output0"] == ["batch", 17, "anchors"]
    assert shapes["output1"] == ["batch", 8, "mask_height", "mask_width"]
    assert model.opset_import[0].version == OPSETS[-1]
    rows, proto = open_backend(done.file)(np.zeros((2, 96, 32, 3), np.uint8))
    assert rows.shape == (2, 17, 240)
    assert proto.shape[2:] == (48, 16)


@pytest.mark.slow
def test_suppression_with_a_free_batch_in_half_precision(tmp_path):
    done = export(tmp_path, "Detect", dynamic="batch", nms=True, half=True, max_det=30)
    model, shapes = described(done.file)
    assert shapes["images"] == ["batch", 3, 64, 64]
    assert shapes["output0"] == ["batch", 30, 6]
    types = {weights.data_type for weights in model.graph.initializer if len(weights.dims) == 4}
    assert types == {10}  # FLOAT16
    assert done.agreement.boxes >= 20


@pytest.mark.slow
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("head", sorted(SPECS))
def test_every_task_in_every_operator_set(tmp_path, head, opset):
    nms = SPECS[head].outputs.boxes
    done = export(tmp_path, head, dynamic=True, nms=nms, opset=opset)
    assert described(done.file)[0].opset_import[0].version == opset


@pytest.mark.slow
@pytest.mark.parametrize("head", sorted(SPECS))
@pytest.mark.parametrize(
    "options",
    [{}, {"dynamic": "batch"}, {"dynamic": True, "half": True}, {"preprocess": "raw"}],
    ids=str,
)
def test_every_task_in_every_shape(tmp_path, head, options):
    export(tmp_path, head, **options)


def test_other_operator_sets_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"opset=17: expected one of 18, 19, .*24"):
        export(tmp_path, opset=17)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match=r"onnxscript.*pip install 'plainyolo\[export\]'"):
        export(tmp_path)
