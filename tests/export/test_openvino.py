# SPDX-License-Identifier: Apache-2.0
"""OpenVINO folders as they are written, in three precisions. The whole grid is slow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import exports
import nano
from yolo import TASKS, YOLO
from yolo.backends import open_backend
from yolo.backends.quiet import import_openvino
from yolo.cfg.load import read_yaml
from yolo.cfg.schema import ExportConfig
from yolo.errors import ConfigError
from yolo.export import onnx, openvino
from yolo.export.exporter import Exporter
from yolo.export.formats import Job
from yolo.export.graph import ExportGraph
from yolo.export.metadata import describe

ROOT = Path(__file__).parents[2]
DETECT = TASKS["detect"]
SIZE = (64, 64)
AXES = {"images": {0: "batch", 2: "height", 3: "width"}, "output0": {0: "batch", 2: "anchors"}}


def calibration():
    rng = np.random.default_rng(0)
    return iter([rng.random((1, 3, *SIZE), dtype=np.float32) for _ in range(4)])


@pytest.fixture(scope="module")
def graph():
    return ExportGraph(exports.network(DETECT))


@pytest.fixture(scope="module")
def write(graph, tmp_path_factory):
    """Write the same graph, traced once, with options; give the folder."""
    network = exports.network(DETECT)
    example = torch.zeros(2, 3, *SIZE)

    def job_of(**options):
        config = ExportConfig(format="openvino", dynamic=True, **options)
        facts = describe(config, DETECT, network, SIZE, False)
        return Job(config, facts, axes=AXES, calibration=calibration if config.int8 else None)

    traced = onnx.make(graph, example, job_of())

    def written(**options):
        kind = "_int8" if options.get("int8") else ""
        folder = tmp_path_factory.mktemp("out") / f"tiny_v1{kind}_openvino_model"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(openvino, "make", lambda *_: traced)
            openvino.write(graph, example, folder, job_of(**options))
        return folder

    return written


def differences(graph, folder, shape=(3, 3, 96, 32)):
    """Return the largest difference of boxes (pixels) and scores, and the mean of the latter."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    (found,) = open_backend(folder).run(x.numpy())
    with torch.no_grad():
        wanted = graph(x)[0].numpy()
    assert found.dtype == np.float32
    apart = np.abs(found - wanted)
    return apart[:, :4].max(), apart[:, 4:].max(), apart[:, 4:].mean()


def test_a_folder_holds_graph_weights_and_metadata(write, graph):
    folder = write()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["metadata.yaml", "tiny_v1.bin", "tiny_v1.xml"]
    facts = read_yaml(folder / "metadata.yaml")
    assert (facts["task"], facts["imgsz"], facts["stride"]) == ("detect", [64, 64], 8)
    assert facts["names"] == dict(enumerate(exports.NAMES))
    assert facts["args"]["dynamic"] is True
    info = import_openvino().Core().read_model(str(folder / "tiny_v1.xml")).get_rt_info
    assert info(["model_info", "labels"]).astype(str) == "arrow drop magnet mark ring"
    assert info(["model_info", "scale_values"]).astype(str) == "255"
    px, score, _ = differences(graph, folder)
    assert px < 0.01
    assert score < 1e-5


def test_half_stores_weights_in_half_the_room(write, graph):
    whole, half = write(), write(half=True)
    size = [(folder / "tiny_v1.bin").stat().st_size for folder in (whole, half)]
    assert size[1] < 0.6 * size[0]
    px, score, _ = differences(graph, half)
    assert 1e-5 < px < 1
    assert 1e-6 < score < 0.02


def test_int8_convolves_in_8_bits(write, graph):
    folder = write(int8=True, data="x")
    assert folder.name == "tiny_v1_int8_openvino_model"
    assert (folder / "tiny_v1.xml").is_file()
    compiled = open_backend(folder).compiled
    layers = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
    convolutions = [x for x in layers if x["layerType"].astype(str) == "Convolution"]
    kinds = [x["runtimePrecision"].astype(str) for x in convolutions]
    assert len(kinds) == sum(isinstance(m, torch.nn.Conv2d) for m in graph.network.modules()) - 1
    assert set(kinds) <= {"u8", "i8"}
    _, worst, mean = differences(graph, folder)
    assert mean < 0.01 < 10 * worst < 3


def test_own_preparation_and_int8_are_refused_before_any_work(graph, tmp_path):
    config = ExportConfig(format="openvino", int8=True, data="x", preprocess=torch.nn.Identity())
    with pytest.raises(ConfigError, match="found Identity"):
        openvino.write(graph, torch.zeros(1, 3, *SIZE), tmp_path / "a", Job(config, {}))
    assert not list(tmp_path.iterdir())


GRID = (
    {},
    {"dynamic": "batch"},
    {"dynamic": True},
    {"batch": 2, "nms": True},
    {"dynamic": True, "nms": True},
    {"preprocess": "raw"},
    {"half": True},
    {"int8": True},
    {"int8": True, "preprocess": "raw"},
)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("options", GRID, ids=str)
def test_every_task_proves_itself(task, options, tmp_path):
    spec = TASKS[task]
    if options.get("nms") and not spec.outputs.boxes:
        pytest.skip("has no boxes")
    if options.get("int8"):
        options = {**options, "data": str(nano.task_data(tmp_path, spec, val=64))}
    config = spec.export_config(format="openvino", imgsz=64, **options)
    exporter = Exporter(config, spec, exports.network(spec), tmp_path / "tiny")
    folder = exporter.run()
    assert exporter.agreement.images >= 8
    if not options.get("preprocess"):
        assert len(YOLO(folder)(exports.images(), verbose=False)) == 3


@pytest.mark.processes
@pytest.mark.slow
def test_a_whole_export_leaves_nothing_at_home(tmp_path):
    home, current = tmp_path / "home", tmp_path / "current"
    home.mkdir()
    current.mkdir()
    exports.checkpoint(current, DETECT)
    data = nano.task_data(tmp_path, DETECT, val=64)
    code = f"""
import sys

def guard(event, args):
    if event in {{"socket.getaddrinfo", "urllib.Request"}} or (
        event == "socket.connect" and isinstance(args[1], tuple)
    ):
        raise BaseException(f"tried {{event}}{{args}}")

sys.addaudithook(guard)
from yolo import YOLO
model = YOLO("detect.pt")
for options in ({{}}, {{"half": True}}, {{"int8": True, "data": {str(data)!r}}}):
    folder = model.export(format="openvino", imgsz=64, workers=0, **options)
    YOLO(folder).val(data={str(data)!r}, plots=False, workers=0)
"""
    kept = {k: v for k, v in os.environ.items() if not re.search("TELEMETRY|^XDG_|^CI$", k)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=current,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not [
        path for path in home.rglob("*") if path.is_file() and "matplotlib" not in str(path)
    ]
    made = {path.name for path in current.iterdir()}
    assert {"detect_openvino_model", "detect_int8_openvino_model", "detect.pt"} <= made
