# SPDX-License-Identifier: Apache-2.0
"""What files say of themselves: familiar keys alone, readable by the familiar means and by ours."""

from __future__ import annotations

import ast
import json

import pytest
import torch

import exports
from yolo.backends.metadata import read_metadata
from yolo.cfg.schema import ExportConfig
from yolo.export.metadata import as_text, describe, digest
from yolo.tasks.spec import TASKS

KEYS = {
    "description", "author", "version", "task", "stride", "batch", "imgsz", "names", "channels",
    "args", "end2end", "yolo_info", "kpt_shape",
}  # fmt: skip


@pytest.mark.parametrize("spec", TASKS.values(), ids=TASKS)
def test_what_is_written_is_read(spec):
    model = exports.network(spec)
    config = ExportConfig(batch=2, dynamic="batch", conf=0.3)
    facts = describe(config, spec, model, (64, 96), nms=True)
    assert facts.keys() <= KEYS
    for found in (as_text(facts), json.loads(json.dumps(facts))):
        read = read_metadata(found, "x")
        assert (read.task, read.names, read.imgsz) == (spec.name, model.names, (64, 96))
        assert (read.batch, read.channels, read.dynamic, read.nms) == (2, 3, "batch", True)
        assert read.kpt_shape == getattr(model, "kpt_shape", None)
        assert read.stride == max(model.stride)
        assert read.conf == 0.3


def test_text_is_in_pythons_notation():
    spec = next(iter(TASKS.values()))
    facts = describe(ExportConfig(), spec, exports.network(spec), (64, 64), nms=False)
    text = as_text(facts)
    assert text["stride"] == "8"
    for key in ("args", "names", "imgsz", "end2end"):
        assert ast.literal_eval(text[key]) == facts[key]
    assert ast.literal_eval(text["args"])["dynamic"] is False


def test_the_input_policy_can_be_read_without_this_package():
    spec = next(iter(TASKS.values()))
    model = exports.network(spec)
    info = json.loads(describe(ExportConfig(), spec, model, (64, 96), nms=False)["yolo_info"])
    assert info["names"] == exports.NAMES
    assert info["weights_sha256"] == digest(model)
    assert info["input"] == {
        "layout": "BCHW", "type": "float32", "colours": "RGB", "range": [0, 1],
        "fit": {
            "kind": "letterbox", "size": [64, 96], "stride": 8, "fill": 114, "centred": True,
            "interpolation": "bilinear",
        },
    }  # fmt: skip
    config = ExportConfig(preprocess="raw_rgb", postprocess=torch.nn.Identity())
    info = json.loads(describe(config, spec, model, (64, 64), nms=True)["yolo_info"])
    assert (info["preprocess"], info["postprocess"]) == ("raw_rgb", "Identity")
    assert (info["input"]["layout"], info["input"]["colours"]) == ("HWC", "RGB")


def test_the_digest_changes_with_any_weight():
    model = exports.network(next(iter(TASKS.values())))
    before = digest(model)
    assert digest(model) == before
    with torch.no_grad():
        model.model[0].conv.weight[0, 0, 0, 0] += 1e-6
    assert digest(model) != before
    assert digest(model.bfloat16()) != before
