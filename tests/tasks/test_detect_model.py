# SPDX-License-Identifier: Apache-2.0
"""The detector as a class of its own; tests/nn/test_model.py has the networks themselves."""

from __future__ import annotations

import torch

from yolo.nn.model import BaseModel
from yolo.tasks.detect.model import DetectionModel


def test_without_arguments_it_is_the_smallest_detector():
    with torch.device("meta"):
        model = DetectionModel()
    assert isinstance(model, BaseModel)
    assert (model.nc, model.num_channels, model.stride) == (80, 3, (8, 16, 32))
    assert sum(p.numel() for p in model.parameters()) == 3157200


def test_classes_and_channels_are_arguments():
    with torch.device("meta"):
        model = DetectionModel("yolov8s.yaml", 1, 7)
    assert (model.nc, model.num_channels, model.head.nc) == (7, 1, 7)
    assert model.model[0].conv.in_channels == 1
