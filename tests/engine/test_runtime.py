# SPDX-License-Identifier: Apache-2.0
"""Device, precision and seeds."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from yolo.engine.runtime import autocast_dtype, reproducible, select_device
from yolo.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize("device", ["cpu", "CPU", torch.device("cpu"), ["cpu"]])
def test_the_cpu_by_any_name(device):
    assert select_device(device) == CPU


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:99", 99, "1.5", "cpu,0"])
def test_what_is_no_device_is_refused(device):
    with pytest.raises(ConfigError, match="device="):
        select_device(device)


def test_amp_on_the_cpu_is_float32_unless_asked_by_name():
    assert autocast_dtype(True, CPU) is None
    assert autocast_dtype("fp32", CPU) is None
    assert autocast_dtype("bf16", CPU) is torch.bfloat16
    with pytest.raises(ConfigError, match="amp='bf16'"):
        autocast_dtype("fp16", CPU)


def test_seeding_leaves_the_users_generators_alone():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = draw()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    with reproducible(0, deterministic=True):
        first = draw()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert draw() == expected
    assert not torch.are_deterministic_algorithms_enabled()
    with reproducible(0, deterministic=False):
        assert draw() == first
