# SPDX-License-Identifier: Apache-2.0
"""Strides, operations and the table of layers, found without weights."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys

import pytest
import torch
from torch import nn

from nano import TINY
from yolo.errors import ModelError
from yolo.nn.info import count_flops, meta_twin
from yolo.nn.layer import channelwise, layer
from yolo.tasks.detect.model import DetectionModel


def test_a_twin_has_shapes_and_no_values():
    model = DetectionModel(TINY)
    model.model[0].requires_grad_(False)
    twin = meta_twin(model)
    assert {p.device.type for p in [*twin.parameters(), *twin.buffers()]} == {"meta"}
    assert [p.shape for p in twin.parameters()] == [p.shape for p in model.parameters()]
    assert [p.requires_grad for p in twin.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert model.training
    assert not twin.training


def test_operations_of_a_convolution_counted_by_hand():
    model = DetectionModel(TINY)
    total, rows = count_flops(model, (64, 32))
    products = 2 * 3 * 3 * 3 * 8 * (32 * 16)  # two a multiply-add, 3x3 window, 3 -> 8 maps
    norm = 8 * 8 * (32 * 16)  # eight an element
    assert rows[0] == products + norm
    assert sum(rows) == total
    assert count_flops(model, (128, 64))[1][0] == 4 * rows[0]


def test_a_layer_that_fails_on_no_images_is_run_on_zeros(own_layers):
    """Strides come out right, and the real run leaves statistics and mode alone."""

    @layer(plan=channelwise)
    class Reader(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.bn = nn.BatchNorm2d(channels)

        def forward(self, x):
            return self.bn(x) * (1 if x.amax().item() > -1e9 else 2)

    network = copy.deepcopy(TINY)
    network["backbone"].insert(1, [-1, 1, "Reader", []])
    network["head"][0][0] = [2, 3]
    model = DetectionModel(network)
    assert model.stride == (4, 8)
    assert model.training
    assert all(m.training for m in model.modules())
    assert int(model.model[1].bn.num_batches_tracked) == 0
    assert model.info(verbose=False)[3] == 0


def test_maps_that_do_not_fit_name_their_row():
    network = copy.deepcopy(TINY)
    network["backbone"].append([[1, 2], 1, "Concat", [1]])
    network["head"][0][0] = [1, 3]
    with pytest.raises(ModelError, match=r"network: row 3 Concat\(dim=1\)"):
        DetectionModel(network)


def test_a_stride_that_is_no_whole_number_is_refused():
    network = copy.deepcopy(TINY)
    network["backbone"][2] = [-1, 1, "Conv", [16, 3, 2, 0]]
    with pytest.raises(ModelError, match="expected divisors of 256"):
        DetectionModel(network)


def test_fused_yolov8n_has_the_familiar_counts():
    with torch.device("meta"):
        model = DetectionModel()
    layers, parameters, _, gflops = model.fuse().info(verbose=False)
    assert (layers, parameters, f"{gflops:.1f}") == (168, 3151904, "8.7")


def test_info_prints_a_table(caplog):
    with caplog.at_level(logging.INFO, "yolo"):
        DetectionModel("yolov8n.yaml", verbose=True)
    assert "225 layers, 3,157,200 parameters, 3,157,184 gradients, 8.9 GFLOPs" in caplog.text
    assert "SPPF(c_in=256, c_out=256, kernel=5)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "yolo"):
        DetectionModel(TINY).info(detailed=True, imgsz=(64, 32))
    assert "model.3.dfl.conv.weight" in caplog.text
    assert "64 x 32" in caplog.text


@pytest.mark.processes
def test_strides_are_found_without_torch_s_compiler():
    """Its import takes seconds and sets an environment variable."""
    code = (
        "import sys; from yolo.tasks.detect.model import DetectionModel\n"
        "assert DetectionModel('yolov8n-ghost-p2.yaml').stride == (4, 8, 16, 32)\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
