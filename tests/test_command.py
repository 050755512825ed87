# SPDX-License-Identifier: Apache-2.0
"""The command from end to end: real processes for what is done, this one for what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import nano
import yolo
from yolo import YOLO
from yolo.cfg.load import read_yaml
from yolo.cli import main
from yolo.data.shapes import write_shapes

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder as a user has it: a network, a dataset, a picture, weights."""
    folder = tmp_path_factory.mktemp("command")
    nano.write_network(folder)
    write_shapes(folder / "set", train=6, val=4, size=(64, 64))
    cv2.imwrite(str(folder / "photo.jpg"), np.zeros((48, 64, 3), np.uint8))
    torch.manual_seed(0)
    YOLO(folder / "nano.yaml").save(folder / "made.pt")
    (folder / "notes.pt").write_text("not weights")
    (folder / "broken.yaml").write_text("epochs: [3\n")
    (folder / "gone.yaml").write_text("path: .\ntrain: no/images\nval: no/images\nnames: [a]\n")
    return folder


def run(folder, line):
    return subprocess.run(
        [sys.executable, "-m", "yolo", *line.split()],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.processes
@pytest.mark.slow
def test_train_then_predict_then_val_in_processes(home):
    options = "epochs=2 imgsz=64 batch=4 device=cpu workers=0 exist_ok"
    done = run(home, f"detect train model=nano.yaml data=set/data.yaml {options}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    folder = home / "runs" / "detect" / "train"
    assert f"weights, curves and pictures: {folder}" in done.stderr
    assert "mAP50-95" in done.stderr.splitlines()[-2]
    assert "\x1b" not in done.stderr + done.stdout, "control codes in a log file"
    left = {path.name for path in folder.iterdir()}
    assert left >= {"weights", "results.csv", "args.yaml", "results.png", "labels.jpg"}
    again = read_yaml(folder / "args.yaml")
    assert (again["epochs"], again["imgsz"], again["batch"]) == (2, 64, 4)

    best = "model=runs/detect/train/weights/best.pt"
    done = run(home, f"predict {best} source=photo.jpg conf=1e-7 save_txt project=. name=seen")
    assert done.returncode == 0, done.stderr
    assert "48x64" in done.stderr
    assert {path.name for path in (home / "seen").iterdir()} == {"photo.jpg", "labels"}

    done = run(home, f"val {best} data=set/data.yaml save_json project=. name=scored workers=0")
    assert done.returncode == 0, done.stderr
    assert json.loads((home / "scored" / "predictions.json").read_text()) is not None


def test_check_in_process_and_out(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    assert main(["check", "set/data.yaml"]) == 0
    capsys.readouterr()
    label = next((home / "set" / "labels" / "train").glob("*.txt"))
    before = label.read_text()
    label.write_text(f"{before}9 0.5 0.5 0.1 0.1\n")
    try:
        assert main(["check", "set/data.yaml"]) == 1
    finally:
        label.write_text(before)
    line = len(before.splitlines()) + 1
    assert f"{label}:{line}: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("help", "yolo [TASK] MODE key=value"),
        ("version", yolo.__version__),
        ("checks", "torch"),
        ("cfg train", "epochs"),
    ],
)
def test_what_needs_no_data(line, words, capsys):
    assert main(line.split()) == 0
    out, err = capsys.readouterr()
    assert words in out
    assert err == ""


TRAIN = "train model=nano.yaml data=set/data.yaml device=cpu imgsz=64 workers=0 plots=False "


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (TRAIN + "epochz=3", "Similar: 'epochs'"),
        (TRAIN + "epochs=0", "epochs"),
        (TRAIN + "epochs=many", "epochs"),
        (TRAIN + "optimizer=sgdd", "'SGD'"),
        (TRAIN + "freeze=99", "model.0 to model."),
        (TRAIN + "monitor=metrics/mAP51", "metrics/mAP50"),
        (TRAIN + "device=99", "device="),
        (TRAIN + "plugins=gone.py", "no plugin file 'gone.py'"),
        (TRAIN + "cfg=broken.yaml", "broken.yaml:"),
        (TRAIN + "resume=made.pt", "last.pt"),
        ("train model=nano.yaml data=nothing.yaml", "nothing.yaml"),
        ("train model=nano.yaml data=gone.yaml", "gone.yaml"),
        ("train model=nanoo.yaml data=set/data.yaml", "nanoo.yaml"),
        ("val model=made.pt data=set/data.yaml split=test", "test"),
        ("val model=made.pt", "val needs data="),
        ("predict model=gone.pt source=photo.jpg", "gone.pt: no such file"),
        ("segment predict model=made.pt source=photo.jpg", "a model for 'detect', not 'segment'"),
        ("pose val task=obb model=made.pt data=set/data.yaml", "one task, found obb, pose"),
        ("segment " + TRAIN, "expected a network for 'segment', found one for 'detect'"),
        (TRAIN + "retina_masks", "'retina_masks' belongs to segment predict, not to train"),
        ("predict model=notes.pt source=photo.jpg", "notes.pt"),
        ("predict model=made.pt source=phot.jpg", "phot.jpg"),
        ("predict model=made.pt source=photo.jpg conf=2", "conf"),
        ("predict model=made.pt source=photo.jpg classes=7", "no class 7"),
        ("check nothing.yaml", "nothing.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(home, monkeypatch, capsys, line, words):
    monkeypatch.chdir(home)
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("error: ") == 1
    message = err[err.index("error: ") :]
    assert words in message.splitlines()[0]
    assert message.count("\n") <= 3  # further lines list what there is
    assert "Traceback" not in err
