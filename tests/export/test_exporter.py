# SPDX-License-Identifier: Apache-2.0
"""The export as a whole, in the format that is quickly written: files, proofs, refusals."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import exports
import nano
from yolo.backends import open_backend
from yolo.cfg.schema import ExportConfig
from yolo.engine.events import Callbacks
from yolo.errors import ConfigError, ExportError, UnknownNameError
from yolo.export import torchscript
from yolo.export.exporter import Exporter
from yolo.export.metadata import digest
from yolo.tasks.spec import TASKS

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
SPEC = next(iter(TASKS.values()))
BOXES = [spec for spec in TASKS.values() if spec.outputs.boxes]


def exporter(folder, spec=SPEC, callbacks=None, model=None, **options):
    config = ExportConfig(**{"imgsz": 64, "verbose": False, **options})
    return Exporter(config, spec, model or exports.network(spec), folder / "best", callbacks)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("spec", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_each_task_exports_and_agrees(tmp_path, spec, dynamic):
    done = exporter(tmp_path, spec, dynamic=dynamic, batch=2)
    assert done.run() == tmp_path / "best.torchscript"
    assert names(tmp_path) == ["best.torchscript"]
    assert done.agreement.images >= 8
    assert done.agreement.matched == done.agreement.boxes
    assert done.agreement.boxes >= (20 if spec.outputs.boxes else 0)
    assert max(done.agreement.worst.values()) < 1e-3
    backend = open_backend(done.file)
    assert (backend.task, backend.dynamic, backend.metadata.batch) == (spec.name, dynamic, 2)


def with_slow(specs, quick):
    """Leave the tasks beyond `quick` to the slow run: the suppression is tested by itself."""
    return [
        pytest.param(spec, id=spec.name, marks=() if spec.name in quick else pytest.mark.slow)
        for spec in specs
    ]


@pytest.mark.parametrize("spec", with_slow(BOXES, {"pose"}))
def test_suppression_in_the_file(tmp_path, spec):
    done = exporter(tmp_path, spec, nms=True, conf=0.6, max_det=40)
    backend = open_backend(done.run())
    assert backend.nms
    assert done.agreement.boxes >= 20  # found with a lower floor
    rows = backend(np.zeros((1, 64, 64, 3), np.uint8))[0]
    further = {"segment": 8, "pose": 12, "obb": 1}.get(spec.name, 0)
    assert rows.shape == (1, 40, 6 + further)
    assert not rows[rows[..., 4] <= 0.6].any()


@pytest.mark.parametrize("spec", with_slow(TASKS.values(), {"classify", "segment"}))
def test_raw_images(tmp_path, spec):
    done = exporter(tmp_path, spec, preprocess="raw")
    backend = open_backend(done.run())
    assert backend.raw
    assert done.nms == spec.outputs.boxes
    backend(np.zeros((1, 50, 80, 3), np.uint8))


class Brighter(nn.Module):
    """Takes levels 0..255 as whole numbers."""

    def __init__(self):
        super().__init__()
        self.example = torch.full((1, 3, 64, 64), 9, dtype=torch.uint8)

    def forward(self, x):
        return x.float() / 255


class Best(nn.Module):
    def forward(self, outputs):
        return outputs[0][:, 4:].amax((1, 2))


def test_modules_of_ones_own(tmp_path):
    done = exporter(tmp_path, preprocess=Brighter(), postprocess=Best())
    backend = open_backend(done.run())
    assert (backend.metadata.preprocess, backend.metadata.postprocess) == ("Brighter", "Best")
    (found,) = backend.run(np.zeros((1, 3, 64, 64), np.uint8))
    assert found.shape == (1,)


@pytest.fixture
def spoil(monkeypatch):
    """Let the writer write another graph than it was given."""

    def install(change):
        original = torchscript.write

        def write(graph, example, path, job):
            other = copy.deepcopy(graph)
            with torch.no_grad():
                change(other.network.head)
            original(other, example, path, job)

        monkeypatch.setattr(torchscript, "write", write)

    return install


@pytest.mark.parametrize(
    ("change", "options", "text"),
    [
        (lambda h: h.cv2[0][-1].weight[0, 0].add_(3), {}, r"output0 differs .* px, allowed is 0"),
        (lambda h: h.cv3[1][-1].bias.add_(0.1), {}, r"output0 differs .* score, allowed is 0\.001"),
        (lambda h: h.cv2[0][-1].bias[0].add_(3), {"nms": True}, "image .: .* a box"),
        (lambda h: h.cv3[1][-1].bias.add_(1), {"preprocess": "raw"}, "image .: .* a box"),
        (lambda h: h.cv3[1][-1].bias.add_(2), {"half": True}, "score, allowed is 0.01 for all but"),
    ],
)
def test_a_file_that_disagrees_leaves_what_was_there(tmp_path, spoil, change, options, text):
    (tmp_path / "best.torchscript").write_bytes(b"of before")
    spoil(change)
    done = exporter(tmp_path, **options)
    with pytest.raises(ExportError, match=rf"best\.torchscript: not written, since .*{text}"):
        done.run()
    assert names(tmp_path) == ["best.torchscript"]
    assert (tmp_path / "best.torchscript").read_bytes() == b"of before"
    assert done.file is None


def test_a_writer_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torchscript, "write", lambda *_: 1 / 0)
    with pytest.raises(ExportError, match=r"'torchscript': the model can't be written .ZeroDiv"):
        exporter(tmp_path).run()
    assert names(tmp_path) == []


def test_half_precision_keeps_to_its_bounds(tmp_path):
    done = exporter(tmp_path, half=True)
    backend = open_backend(done.run())
    assert 0 < done.agreement.worst["score"] < 0.01
    assert backend(np.zeros((1, 64, 64, 3), np.uint8))[0].dtype == np.float32


def test_the_model_stays_as_it_is(tmp_path):
    model = exports.network(SPEC).train()
    model.model[0].conv.weight.requires_grad_(False)

    def state():
        return (
            digest(model),
            [(p.dtype, p.device, p.requires_grad, p.data_ptr()) for p in model.parameters()],
            [module.training for module in model.modules()],
        )

    before = state()
    exporter(tmp_path, model=model, nms=True, half=True).run()
    assert state() == before


def test_a_file_that_fails_to_run_is_no_export(tmp_path, monkeypatch):
    monkeypatch.setattr(Exporter, "_runner", lambda *_: lambda x: 1 / 0)
    with pytest.raises(ExportError, match=r"not written.*ZeroDivisionError"):
        exporter(tmp_path).run()
    assert names(tmp_path) == []


def test_a_file_of_8_bits_that_disagrees_says_how_many_images_it_was_measured_on(
    tmp_path, monkeypatch
):
    def write(graph, example, path, job):
        assert len(list(job.calibration())) == 3
        torchscript.write(graph, example, path, job)

    monkeypatch.setattr("yolo.export.openvino.write", write)
    monkeypatch.setattr(Exporter, "_runner", lambda *_: lambda x: [])
    data = nano.task_data(tmp_path / "data", SPEC, val=3)
    with pytest.raises(ExportError, match=r"8-bit scales were measured on 3 images, try more"):
        exporter(tmp_path, format="openvino", int8=True, data=str(data), workers=0).run()


def test_callbacks_get_the_exporter(tmp_path):
    seen = []
    events = {
        "on_export_start": [lambda e: seen.append(e.file)],
        "on_export_end": [lambda e: seen.append((e.file, e.format.name))],
    }
    done = exporter(tmp_path, callbacks=Callbacks(events))
    assert seen == []
    file = done.run()
    assert seen == [None, (file, "torchscript")]


def test_the_line_tells_the_worst(tmp_path, caplog):
    caplog.set_level("INFO", "yolo")
    exporter(tmp_path, verbose=True).run()
    assert "proved on 8 images, largest differences from torch: px" in caplog.text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"int8": True}, "'torchscript' doesn't take int8; use format='openvino' or 'engine'"),
        ({"format": "openvino", "int8": True}, "needs data="),
        ({"format": "openvino", "int8": True, "half": True, "data": "x"}, "choose one"),
        ({"compile": True}, "doesn't take compile; use format='torch_export'"),
        ({"preprocess": "fast"}, "expected a torch module, raw or raw_rgb"),
        ({"preprocess": 3}, "expected a torch module"),
        ({"postprocess": "raw"}, "postprocess: expected a torch module"),
        ({"preprocess": "raw", "batch": 2}, "takes one image a call"),
        ({"preprocess": "raw", "dynamic": "batch"}, "takes one image a call"),
    ],
)
def test_what_cannot_be_had_is_refused_at_once(tmp_path, options, text):
    with pytest.raises(ConfigError, match=text):
        exporter(tmp_path, **options)
    assert names(tmp_path) == []


def test_suppression_needs_boxes_and_formats_have_names(tmp_path):
    (images,) = [spec for spec in TASKS.values() if not spec.outputs.boxes]
    with pytest.raises(ConfigError, match="has no boxes"):
        exporter(tmp_path, images, nms=True)
    with pytest.raises(UnknownNameError, match=r"'tflite'.*Known: "):
        exporter(tmp_path, format="tflite")
    with pytest.raises(ConfigError, match="doesn't say its outputs"):
        exporter(tmp_path, dataclasses.replace(SPEC, outputs=None), model=exports.network(SPEC))


def test_options_without_effect_on_the_file_are_harmless(tmp_path):
    exporter(tmp_path, opset=17, simplify=True, workspace=4.0)
