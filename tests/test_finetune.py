# SPDX-License-Identifier: Apache-2.0
"""The commonest use: a trained detector goes on with other classes."""

from __future__ import annotations

import logging

import pytest
import yaml

from yolo import YOLO
from yolo.data.shapes import write_shapes

# nbs=16: these sets are too small to gather 64 images for a step
OPTIONS = {"imgsz": 128, "batch": 16, "nbs": 16, "device": "cpu", "plots": False, "verbose": True}


def with_two_classes(folder):
    """Rewrite a set of five classes into two others: 0, 2, 4 -> 1 and 1, 3 -> 0."""
    data = write_shapes(folder, train=96, val=48, size=128, seed=1)
    for label in folder.glob("labels/*/*.txt"):
        rows = [line.split(" ", 1) for line in label.read_text().splitlines()]
        label.write_text("".join(f"{1 - int(c) % 2} {rest}\n" for c, rest in rows))
    content = yaml.safe_load(data.read_text()) | {"names": {0: "odd", 1: "even"}}
    content.pop("nc", None)
    data.write_text(yaml.safe_dump(content))
    return data


@pytest.mark.slow
def test_fine_tuning_beats_training_from_scratch_after_five_epochs(tmp_path, caplog):
    first = write_shapes(tmp_path / "first", train=320, val=48, size=128)
    other = with_two_classes(tmp_path / "other")
    model = YOLO("yolov8n.yaml")
    model.train(data=str(first), epochs=24, project=str(tmp_path), name="base", **OPTIONS)
    common = {"data": str(other), "epochs": 5, "project": str(tmp_path), **OPTIONS}
    with caplog.at_level(logging.INFO, "yolo"):
        best = tmp_path / "base" / "weights" / "best.pt"
        tuned = YOLO(best).train(name="tuned", **common)
    scratch = YOLO("yolov8n.yaml").train(name="scratch", **common)
    assert "took" in caplog.text
    assert "model.22.cv3.0.2" in caplog.text  # the class branch's last layer is new
    assert tuned.box.map > scratch.box.map + 0.05
    assert YOLO(tmp_path / "tuned" / "weights" / "best.pt").names == {0: "odd", 1: "even"}
