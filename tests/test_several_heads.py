# SPDX-License-Identifier: Apache-2.0
"""docs/several_heads.md: boxes, masks and keypoints of the same objects, by one task."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import nano
from guard import GUARD
from yolo import YOLO
from yolo.cfg.load import read_yaml, write_yaml
from yolo.plugins import load_plugins
from yolo.tasks.spec import TASKS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "several_heads.md").read_text(encoding="utf-8")


@pytest.fixture
def figures(tmp_path, monkeypatch, own_layers):
    """The page's file, imported."""
    monkeypatch.setattr(TASKS, "_parts", dict(TASKS._parts))
    monkeypatch.setattr("yolo.plugins._LOADED", {})  # or later tests' ranks would load it, too
    text = re.search(r"^```python\n(# figures\.py\n.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1]
    (tmp_path / "figures.py").write_text(text, encoding="utf-8")
    (module,) = load_plugins(tmp_path / "figures.py")
    return module


@pytest.fixture
def network(tmp_path):
    """The package's pose network, small, with the page's row in the place of its last."""
    path = nano.task_network(tmp_path, TASKS["pose"])
    content = read_yaml(path)
    row = re.search(r"^  - (\[\[15.*Figure.*)$", PAGE, re.MULTILINE)[1]
    assert row == "[[15, 18, 21], 1, Figure, [nc, 32, 256]]"
    content["head"][-1] = [[15, 18, 21], 1, "Figure", ["nc", 8, 64]]
    write_yaml(path, content)
    return path


@pytest.fixture
def data(tmp_path):
    """Rows with keypoints, each followed by the outline of the same figure."""
    posed = nano.task_data(tmp_path, TASKS["pose"])
    outlined = nano.task_data(tmp_path, TASKS["segment"])
    GUARD.protected.remove(str(posed.parent))
    for file in (posed.parent / "labels").rglob("*.txt"):
        rings = (outlined.parent / file.relative_to(posed.parent)).read_text().splitlines()
        rows = zip(file.read_text().splitlines(), rings, strict=True)
        file.write_text("".join(f"{row} {ring.partition(' ')[2]}\n" for row, ring in rows))
    return posed


def test_it_trains_validates_predicts_and_comes_back(figures, network, data, tmp_path, monkeypatch):
    model = YOLO(network)
    assert model.task == "figure"
    options = nano.options(tmp_path, "run", epochs=2, nbs=4)
    metrics = model.train(data=str(data), **options, multi_scale=0.5)
    (header, *rows) = (tmp_path / "run" / "results.csv").read_text().splitlines()
    for name in ("box", "seg", "pose", "kobj", "cls", "dfl"):
        assert {f"train/{name}_loss", f"val/{name}_loss"} <= {*header.split(",")}
    assert all(np.isfinite(float(number)) for row in rows for number in row.split(","))
    assert [part.letter for part in metrics.parts] == ["B", "M", "P"]

    again = YOLO(tmp_path / "run" / "weights" / "best.pt")
    monkeypatch.setattr(figures.FigureMetrics, "plot", lambda *_: [])  # its curves take seconds
    place = {"project": str(tmp_path), "name": "scores", "workers": 0, "verbose": False}
    scores = again.val(data=str(data), save_json=True, save_txt=True, **place)
    assert scores.results_dict == pytest.approx(metrics.results_dict, abs=1e-4)
    made = {path.name for path in (tmp_path / "scores").iterdir()}
    assert made >= {"predictions.json", "labels", "val_batch0_labels.jpg", "val_batch0_pred.jpg"}
    image = np.full((90, 120, 3), 80, np.uint8)
    (result,) = again.predict(image, conf=0.0, max_det=20, verbose=False)
    assert len(result.boxes) == len(result.masks) == len(result.keypoints) > 1
    assert result.plot().shape == image.shape
    assert {"box", "segments", "keypoints"} <= result.summary()[0].keys()


def test_every_term_is_what_its_own_task_says(figures, network, data, tmp_path):
    model = YOLO(network).model
    head, images = model.head, torch.rand(2, 3, 64, 64)
    raw = model.raw(images)
    from yolo.nn.losses import Targets

    targets = Targets(
        classes=torch.zeros(2, 1, dtype=torch.int64),
        boxes=torch.tensor([[[8.0, 8, 40, 40]], [[20, 10, 60, 50]]]),
        mask=torch.ones(2, 1, dtype=torch.bool),
        size=(64, 64),
        extras={
            "masks": (torch.rand(2, 16, 16) > 0.5).to(torch.uint8),
            "keypoints": torch.rand(2, 1, *head.kpt_shape) * 40 + 10,
        },
    )
    shape = {"kpt_shape": head.kpt_shape}
    whole = figures.FigureCriterion(model.nc, model.stride, **shape)(raw, targets).parts
    masked = TASKS["segment"].criterion(model.nc, model.stride)(raw, targets).parts
    posed = TASKS["pose"].criterion(model.nc, model.stride, **shape)(raw, targets).parts
    assert whole.keys() == masked.keys() | posed.keys()
    for part in (masked, posed):
        assert {k: float(whole[k]) for k in part} == pytest.approx(
            {k: float(v) for k, v in part.items()}
        )
    assert all(float(value) > 0 for value in whole.values())


def test_a_row_says_what_it_should_hold(figures, data):
    label = next((data.parent / "labels").rglob("*.txt"))
    text = label.read_text().splitlines()
    label.write_text("\n".join([*text, " ".join(text[0].split()[:17])]) + "\n")
    from yolo.data.check import check_dataset

    (problem,) = check_dataset(str(data), figures.FigureLabels).problems
    expected = "17 columns (class cx cy w h, then x y v for each of 4 keypoints), then an outline"
    assert expected in str(problem)
    assert str(problem).endswith("found 17 columns")
