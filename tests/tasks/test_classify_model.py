# SPDX-License-Identifier: Apache-2.0
"""The classifier as a whole: golden outputs, and its backbone as the start of a detector."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from golden_weights import fill
from yolo import YOLO
from yolo.engine.network import take_weights
from yolo.tasks.classify.model import ClassificationModel


@pytest.mark.golden
@pytest.mark.parametrize("case", ["sq_b2", "nonsq_b1"])
def test_golden_forward(golden, case):
    arrays = golden("forward_classify.npz")
    model = fill(ClassificationModel("yolov8n-cls.yaml")).eval()
    x = torch.from_numpy(arrays[f"{case}/x"])
    with torch.no_grad():
        found = {
            "eval/logits": model.raw(x)["logits"],
            "eval/probs": model(x),
            "fused/probs": copy.deepcopy(model).fuse()(x),
        }
    for key, value in found.items():
        expected = torch.from_numpy(arrays[f"{case}/{key}"])
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.golden
def test_golden_training_forward_and_statistics(golden):
    arrays = golden("forward_classify.npz")
    model = fill(ClassificationModel("yolov8n-cls.yaml")).train()
    logits = model(torch.from_numpy(arrays["sq_b2/x"]))["logits"]
    expected = torch.from_numpy(arrays["sq_b2/train/logits"])
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    state = model.state_dict()
    stored = [key for key in arrays if "/after/" in key]
    assert stored
    for key in stored:
        found = state[key.rpartition("/")[2]]
        torch.testing.assert_close(found, torch.from_numpy(arrays[key]), rtol=1e-3, atol=1e-3)


def test_names_and_input_size():
    model = YOLO("yolov8s-cls.yaml")
    assert model.task == "classify"
    assert model.model.yaml["scale"] == "s"
    assert model.spec.defaults_for("predict") == {"imgsz": 224}


def test_the_backbone_starts_a_detector(tmp_path, caplog):
    """Rows 0 to 8 are the same; the head, and the detector's SPPF and neck, are not."""
    classifier = YOLO("yolov8n-cls.yaml")
    classifier.save(tmp_path / "cls.pt")
    detector = YOLO("yolov8n.yaml")
    fresh = copy.deepcopy(detector.model.state_dict())
    with caplog.at_level(logging.INFO, logger="yolo"):
        detector.load(tmp_path / "cls.pt", partial=True)
    given, now = classifier.model.state_dict(), detector.model.state_dict()
    shared = {key for key in now if int(key.split(".")[1]) < 9}
    assert len(shared) > 100
    for key, value in now.items():
        assert torch.equal(value, given[key] if key in shared else fresh[key]), key
    assert f"took {len(shared)} of {len(now)} entries" in caplog.text
    assert "new: model.12" in caplog.text  # what is left is listed


def test_rows_of_known_classes_are_kept():
    old, new = ClassificationModel(nc=3), ClassificationModel(nc=2)
    old.names, new.names = ["cat", "dog", "hen"], ["hen", "owl"]
    before = new.head.linear.weight.clone()
    text = take_weights(new, old.state_dict(), "old.pt", old.names)
    assert "classes known already: hen" in text
    assert torch.equal(new.head.linear.weight[0], old.head.linear.weight[2])
    assert torch.equal(new.head.linear.weight[1], before[1])
