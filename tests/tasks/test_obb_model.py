# SPDX-License-Identifier: Apache-2.0
"""The whole network of oriented boxes: stored outputs."""

from __future__ import annotations

import copy

import pytest
import torch

from golden_weights import fill
from yolo.tasks.obb.head import OBB
from yolo.tasks.obb.model import OBBModel
from yolo.tasks.spec import TASKS, task_of_network


@pytest.mark.golden
def test_golden_forward(golden):
    arrays = golden("forward_obb.npz")
    model = fill(OBBModel("yolov8n-obb.yaml", nc=15)).eval()
    x = torch.from_numpy(arrays["nonsq_b2/x"])
    with torch.no_grad():
        raw, y, fused = model.raw(x), model(x), copy.deepcopy(model).fuse()(x)
    for key in ("boxes", "scores", "angle"):
        expected = torch.from_numpy(arrays[f"nonsq_b2/eval/{key}"])
        torch.testing.assert_close(raw[key], expected, rtol=1e-4, atol=1e-4)
    for found, key in ((y, "eval/y"), (fused, "fused/y")):
        expected = torch.from_numpy(arrays[f"nonsq_b2/{key}"])
        torch.testing.assert_close(found[:, :4], expected[:, :4], rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(found[:, 4:], expected[:, 4:], rtol=1e-4, atol=1e-4)


@pytest.mark.golden
def test_golden_training_forward_and_statistics(golden):
    arrays = golden("forward_obb.npz")
    model = fill(OBBModel("yolov8n-obb.yaml", nc=15)).train()
    raw = model(torch.from_numpy(arrays["nonsq_b2/x"]))
    for key in ("boxes", "scores", "angle"):
        expected = torch.from_numpy(arrays[f"nonsq_b2/train/{key}"])
        torch.testing.assert_close(raw[key], expected, rtol=1e-3, atol=1e-3)
    state = model.state_dict()
    for key in (key for key in arrays if "/after/" in key):
        found = state[key.rpartition("/")[2]]
        torch.testing.assert_close(found, torch.from_numpy(arrays[key]), rtol=1e-3, atol=1e-3)


def test_its_networks_are_known_by_their_head():
    with torch.device("meta"):
        model = OBBModel()
    assert isinstance(model.head, OBB)
    assert task_of_network(model.yaml) is TASKS["obb"]
