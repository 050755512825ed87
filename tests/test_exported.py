# SPDX-License-Identifier: Apache-2.0
"""The facade on exported files: export, predict, val, without torch, refusals, nothing altered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import exports
import nano
from benchmarks import cold_start
from yolo import YOLO
from yolo.cli import main
from yolo.errors import ConfigError, MissingFileError, ModelError
from yolo.tasks.spec import TASKS

ROOT = Path(__file__).parents[1]
FIRST = next(iter(TASKS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def models(folder):
    """Return for each task a checkpoint, written once."""
    known = {}

    def get(task):
        if task not in known:
            known[task] = exports.checkpoint(folder, TASKS[task])
        return known[task]

    return get


@pytest.fixture(scope="module")
def onnx_file(folder):
    rows = exports.detections()
    names = {0: "a", 1: "b"}
    return exports.write_onnx(folder / "hand.onnx", rows, task=FIRST, names=names)


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=[] if t == "segment" else pytest.mark.slow) for t in TASKS]
)
def test_a_file_predicts_and_validates_as_the_model_does(models, tmp_path, task):
    model = YOLO(models(task))
    model.model.train().get_submodule("model.0.bn").eval()
    next(model.model.parameters()).requires_grad_(False)
    before = nano.state_of(model)
    path = model.export(imgsz=64, batch=2, verbose=False)
    assert path == str(models(task).with_suffix(".torchscript"))
    file = YOLO(path)
    assert (file.task, file.names, file.device, file.model) == (task, model.names, None, path)

    options = {"imgsz": 64, "rect": False, "verbose": False, "conf": 0.1, "iou": 0.9}
    wanted = model.predict(exports.images(), **options)
    found = file.predict(exports.images(), batch=3, **options)
    for one, other in zip(wanted, found, strict=True):
        mine, theirs = exports.parts(one), exports.parts(other)
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_allclose(mine[name], theirs[name], atol=1e-2)
    assert max(len(result) for result in wanted) > 3

    data = nano.task_data(tmp_path, TASKS[task])
    scored = {"data": str(data), "plots": task == "segment", "verbose": False, "workers": 0}
    scored |= {"project": str(tmp_path), "batch": 3}
    mine = model.val(imgsz=64, rect=False, **scored).results_dict
    theirs = file.val(**scored).results_dict
    assert theirs == pytest.approx(mine, abs=1e-6)
    assert nano.state_of(model) == before


def test_files_with_suppression_or_raw_images(models, folder):
    model, images = YOLO(models("segment")), exports.images()
    given = {"conf": 0.1, "verbose": False, "retina_masks": True}
    wanted = model.predict(images, imgsz=64, rect=False, **given)
    for options in ({"nms": True}, {"preprocess": "raw"}):
        file = YOLO(model.export(imgsz=64, verbose=False, conf=0.1, **options))
        found = file.predict(images, **given)
        for one, other in zip(wanted, found, strict=True):
            mine, theirs = exports.parts(one), exports.parts(other)
            assert mine.keys() == theirs.keys()
            np.testing.assert_allclose(mine["boxes"], theirs["boxes"], atol=1e-2)
            if len(one):
                assert (mine["masks"] != theirs["masks"]).mean() < 1e-3
    assert any(map(len, wanted))
    with pytest.raises(ConfigError, match="prepares images itself"):
        file.val(data="shapes", workers=0)
    with pytest.raises(ConfigError, match="all_scores"):
        file.predict(images, all_scores=True)


def test_a_floor_below_the_files_is_told(models, caplog):
    file = YOLO(YOLO(models(FIRST)).export(imgsz=64, nms=True, conf=0.5, verbose=False))
    file.predict(exports.images()[:1], conf=0.1, verbose=False)
    assert "exported with nms=True, conf=0.5" in caplog.text


def test_imgsz_of_the_training_is_the_default_and_the_current_folder_of_a_yaml(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model = YOLO(nano.write_network(tmp_path))
    model.overrides["imgsz"] = (64, 96)
    path = model.export(verbose=False, format="TorchScript".lower())
    assert path == "nano.torchscript"
    assert YOLO(path).imgsz == (64, 96)


WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "matplotlib"}:
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import numpy as np
from yolo import YOLO
from yolo.cli import main

model = YOLO("hand.onnx")
(result,) = model.predict(np.zeros((40, 64, 3), np.uint8), verbose=False)
assert result.boxes.cls.tolist() == [0, 1], result.boxes.cls
assert result.boxes.xyxy[0].cpu().numpy().round().tolist() == [22, 15, 42, 25]
assert model.names == {0: "a", 1: "b"}
command = ["predict", "model=hand.onnx", "source=image.png", "project=runs", "save_txt=True"]
assert main(command) == 0
assert not [name for name in sys.modules if name.startswith(("torch", "matplotlib"))]
"""


@pytest.mark.processes
def test_predicting_from_onnx_needs_no_torch(onnx_file, folder):
    cv2.imwrite(str(folder / "image.png"), exports.images()[1])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "runs" / "predict" / "image.jpg").is_file()
    assert len((folder / "runs/predict/labels/image.txt").read_text().splitlines()) == 2


@pytest.mark.processes
def test_the_first_boxes_need_nothing_heavy(onnx_file, folder):
    cv2.imwrite(str(folder / "image.png"), exports.images()[1])
    told = cold_start.report(onnx_file, folder / "image.png", 1)
    assert "; 2 objects;" in told
    assert told.endswith("heavy ones: none")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m: m.train(data="shapes"), "trained"),
        (lambda m: m.export(format="onnx"), "exported"),
        (lambda m: m.info(), "looked into"),
        (lambda m: m.fuse(), "fused"),
        (lambda m: m.save(), "saved"),
        (lambda m: m.load("a.pt"), "loaded with weights"),
        (lambda m: m.reset_weights(), "given fresh weights"),
        (lambda m: m.to("cpu"), "moved"),
        (lambda m: m.eval(), "put into a mode"),
    ],
)
def test_what_needs_a_network_is_refused(onnx_file, call, text):
    with pytest.raises(TypeError, match=rf"an exported file can't be {text}.*load the checkpoint"):
        call(YOLO(onnx_file))


def test_files_that_do_not_say_enough(folder):
    bare = exports.write_onnx(folder / "bare.onnx", exports.detections())
    with pytest.raises(ModelError, match=r"bare\.onnx: its metadata lack 'task' and 'names'"):
        YOLO(bare)
    with pytest.raises(ModelError, match="lack 'names'"):
        YOLO(bare, task=FIRST)
    assert YOLO(bare, task=FIRST, names=["a", "b"]).names == {0: "a", 1: "b"}
    wrong = YOLO(bare, task=FIRST, names=["a"])
    with pytest.raises(ModelError, match=r"expected 5 numbers a prediction.*found 6"):
        wrong.predict(exports.images(), verbose=False)
    odd = exports.write_onnx(folder / "odd.onnx", exports.detections(), task="depth", names=["a"])
    with pytest.raises(ModelError, match="'depth'; known are"):
        YOLO(odd)
    with pytest.raises(MissingFileError, match=r"gone\.onnx: no such exported model"):
        YOLO(folder / "gone.onnx")


def test_another_task_or_device_is_refused(onnx_file):
    with pytest.raises(ModelError, match="is a model for"):
        YOLO(onnx_file, task="pose")
    with pytest.raises(ConfigError, match="device='cuda:3'"):
        YOLO(onnx_file).predict(exports.images(), device="cuda:3")


def test_the_command_exports(models, capfd):
    path = models(FIRST)
    assert main(["export", f"model={path}", "format=torchscript", "imgsz=64", "dynamic=batch"]) == 0
    assert f"exported to {path.with_suffix('.torchscript')}" in capfd.readouterr().err
    assert main(["export", f"model={path}", "format=torchscrip"]) == 2
    assert "Similar: 'torchscript'" in capfd.readouterr().err
    assert main(["export", f"model={path}", "nms", "conf=2"]) == 2
    assert "conf" in capfd.readouterr().err
