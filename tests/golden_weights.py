# SPDX-License-Identifier: Apache-2.0
"""Weights that follow from their names, so that none need to be stored (golden/README.md)."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import nn


def fill(module: nn.Module, gain: float = 1.55, bias: float = 0.3) -> nn.Module:
    """Fill every float entry of the state dict from its key; return the module."""
    state = module.state_dict()
    for key, tensor in state.items():
        if not tensor.is_floating_point() or key.endswith("dfl.conv.weight"):
            continue
        x = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(tensor.shape))
        x, last = np.asarray(x, np.float32), key.rpartition(".")[2]
        if last == "running_mean":
            x = np.float32(0.1) * x
        elif last == "running_var":
            x = np.abs(x) + np.float32(0.5)
        elif last == "bias":
            x = np.float32(bias) * x
        elif tensor.ndim >= 2:
            x = x * np.float32(gain / np.sqrt(np.prod(tensor.shape[1:])))
        elif tensor.ndim == 1 and last == "weight":
            x = 1 + np.float32(0.1) * x
        else:
            continue
        tensor.copy_(torch.from_numpy(x))
    return module
