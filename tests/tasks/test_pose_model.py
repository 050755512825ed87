# SPDX-License-Identifier: Apache-2.0
"""Whole pose networks against stored outputs."""

from __future__ import annotations

import copy

import pytest
import torch

from golden_weights import fill
from yolo.tasks.pose.model import PoseModel


def close(found, expected, nc=1):
    """Compare decoded outputs; boxes and keypoints are pixels, scores are shares."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)
    scores = slice(4, 4 + nc)
    torch.testing.assert_close(found[:, scores], expected[:, scores], rtol=1e-4, atol=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize("name", ["forward_pose.npz", "forward_pose_k5x2.npz"])
def test_golden_forward(golden, name):
    arrays = golden(name)
    network = PoseModel().yaml if name == "forward_pose.npz" else PoseModel(nc=2).yaml
    if name == "forward_pose_k5x2.npz":
        network["kpt_shape"] = [5, 2]
    model = fill(PoseModel(network)).eval()

    def array(key):
        return torch.from_numpy(arrays[f"nonsq_b2/{key}"])

    with torch.no_grad():
        raw = model.raw(array("x"))
        for key in ("boxes", "scores", "kpts"):
            torch.testing.assert_close(raw[key], array(f"eval/{key}"), rtol=1e-4, atol=1e-4)
        close(model(array("x")), array("eval/y"), model.nc)
        close(copy.deepcopy(model).fuse()(array("x")), array("fused/y"), model.nc)
    raw = model.train()(array("x"))
    for key in ("boxes", "scores", "kpts"):
        torch.testing.assert_close(raw[key], array(f"train/{key}"), rtol=1e-3, atol=1e-3)


@pytest.mark.golden
def test_golden_forward_with_a_fourth_level(golden):
    arrays = golden("forward_extra.npz")
    model = fill(PoseModel("yolov8n-pose-p6.yaml")).eval()
    with torch.no_grad():
        found = model(torch.from_numpy(arrays["yolov8n-pose-p6/x"]))
    close(found, torch.from_numpy(arrays["yolov8n-pose-p6/eval/y"]))


def test_it_says_its_keypoints():
    model = PoseModel()
    assert model.kpt_shape == (17, 3)
    assert PoseModel({**model.yaml, "kpt_shape": [4, 2]}).kpt_shape == (4, 2)
