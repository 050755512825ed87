# SPDX-License-Identifier: Apache-2.0
"""The segmentation network: golden outputs, training statistics, fusing."""

from __future__ import annotations

import copy

import pytest
import torch

from golden_weights import fill
from yolo import YOLO
from yolo.tasks.segment.model import SegmentationModel

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.mark.golden
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_golden_forward(golden, memory):
    arrays = golden("forward_segment.npz")
    stored = {key: torch.from_numpy(value) for key, value in arrays.items()}
    model = fill(SegmentationModel()).eval()
    x = stored["x"].contiguous(memory_format=memory)
    with torch.no_grad():
        raw, (y, proto) = model.raw(x), model(x)
        fused = copy.deepcopy(model).fuse()(x)[1]
    for key in ("mask_coefficient", "proto"):
        torch.testing.assert_close(raw[key], stored[f"eval/{key}"], **CLOSE)
    torch.testing.assert_close(y[:, :4], stored["eval/y"][:, :4], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(y[:, 4:], stored["eval/y"][:, 4:], **CLOSE)
    torch.testing.assert_close(proto, stored["eval/proto"], **CLOSE)
    torch.testing.assert_close(fused, stored["fused/proto"], **CLOSE)


@pytest.mark.golden
def test_golden_training_forward(golden):
    arrays = golden("forward_segment.npz")
    raw = fill(SegmentationModel()).train()(torch.from_numpy(arrays["x"]))
    for key in ("mask_coefficient", "proto"):
        stored = torch.from_numpy(arrays[f"train/{key}"])
        torch.testing.assert_close(raw[key], stored, rtol=1e-3, atol=1e-3)


def test_the_suffix_names_the_task():
    model = YOLO("yolov8n-seg-p6.yaml")
    assert model.task == "segment"
    assert type(model.model) is SegmentationModel
    assert model.model.stride == (8, 16, 32, 64)
    assert model.model.head.proto.cv1.conv.out_channels == 64
