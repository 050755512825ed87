# SPDX-License-Identifier: Apache-2.0
"""docs/migration.md keeps its word: its scripts and commands run.

They run as they stand, in a folder that has the files they name. So that they take seconds, the
weights are those of tiny networks, what is predicted is found by colour (tests/squares.py), and
`train` and `val` get small settings in the place of those written there.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import cv2
import pytest
import yaml

import exports
import nano
from peer_files import ARGS
from squares import FRAMES, Finder, frame, write_video
from yolo import YOLO
from yolo.backends.torch import TorchBackend
from yolo.cli import main
from yolo.data.shapes import write_shapes
from yolo.tasks.spec import TASKS

PAGE = Path(__file__).parents[1] / "docs" / "migration.md"
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("migration")
    for spec in TASKS.values():
        if spec.suffix:
            file = nano.task_network(folder, spec)
        else:
            file = nano.write_network(folder).rename(folder / "yolov8n.yaml")
        model = YOLO(file)
        exports.spread(model.model)
        model.save(folder / f"yolov8n{spec.suffix}.pt")
    data = write_shapes(folder / "set", train=6, val=4, size=(64, 64))
    content = yaml.safe_load(data.read_text()) | {"path": str(folder / "set")}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    (folder / "args.yaml").write_text(ARGS)
    image = frame((2, 30, 10, 24, 0.9), (0, 70, 50, 32, 0.6), shape=(96, 128))
    cv2.imwrite(str(folder / "image.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 100])
    write_video(folder / "video.avi", FRAMES)
    return folder


@pytest.fixture(autouse=True)
def _quickly(home, monkeypatch):
    train, val, reuse = YOLO.train, YOLO.val, TorchBackend.reuse
    small = {"imgsz": 64, "workers": 0, "device": "cpu", "plots": False}

    def shortly(self, trainer=None, **options):
        assert options.get("epochs", 3) >= 3
        epochs = 2 if options.get("resume") or options["epochs"] == 3 else 1
        return train(self, trainer, **{**options, **small, "batch": 4, "epochs": epochs})

    def find(backend, model, *args, **options):
        task = next(name for name, spec in TASKS.items() if type(model) is spec.model)
        if TASKS[task].outputs.boxes:
            return Finder(task)
        return reuse(backend, model, *args, **options)

    monkeypatch.setattr(YOLO, "train", shortly)
    monkeypatch.setattr(YOLO, "val", lambda self, **options: val(self, **{**options, **small}))
    monkeypatch.setattr(TorchBackend, "reuse", find)
    monkeypatch.chdir(home)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_every_script_runs(number):
    script = blocks("python")[number]
    for package in ("supervision", "PIL"):
        if f"import {package}" in script:
            pytest.importorskip(package)
    for word, package in ((".track(", "trackers"), ('format="onnx"', "onnxscript")):
        if word in script:
            pytest.importorskip(package)
    exec(compile(script, f"{PAGE.name}, script {number + 1}", "exec"), {"__name__": "script"})


def commands() -> list[str]:
    return [line for block in blocks("text") for line in block.splitlines()]


@pytest.mark.parametrize("line", commands())
def test_every_command_runs(line, capfd):
    if " track " in line:
        pytest.importorskip("trackers")
    words = shlex.split(line)
    assert words[0] == "yolo"
    given = [] if "epochs" in line or "train" not in line else ["epochs=7"]
    assert main([*words[1:], *given]) == 0, capfd.readouterr().err


def test_the_page_has_what_it_promises():
    assert len(blocks("python")) >= 10
    assert len(commands()) >= 6
    for script in blocks("python"):
        first = script.splitlines()[0]
        assert re.fullmatch(r"from yolo import YOLO.*  # was: from ultralytics import YOLO", first)
    assert not any(word in TEXT for word in ("TODO", "FIXME"))
    for name in re.findall(r"\]\((\w+\.md)\)", TEXT):
        assert (PAGE.parent / name).is_file()
