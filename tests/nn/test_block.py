# SPDX-License-Identifier: Apache-2.0
"""Blocks against stored outputs of the reference builds."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from golden_weights import fill
from yolo.nn import block, conv

KEYWORDS = {"g": "groups", "d": "dilation", "e": "expansion"}
CASES = [
    "bottleneck",
    "bottleneck_noshort",
    "bottleneck_c1nec2",
    "c2",
    "c2_noshort",
    "c2f",
    "c2f_n2_short",
    "c3",
    "c3ghost",
    "ghostbottleneck_s1",
    "ghostbottleneck_s2",
    "sppf",
    "dfl",
    "proto",
    "conv_k1",
    "conv_k3s2",
    "conv_k3g4_noact",
    "conv_k3d2",
    "conv_k6s2p2",
    "dwconv",
    "ghostconv",
    "concat",
]


def build(facts):
    kwargs = {KEYWORDS.get(key, key): value for key, value in facts["kwargs"].items()}
    home = block if hasattr(block, facts["cls"]) else conv
    return getattr(home, facts["cls"])(*facts["args"], **kwargs)


@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_golden_outputs(name, golden):
    facts, arrays = golden("modules.json")[name], golden("modules.npz")
    module = build(facts)
    shapes = {key: list(value.shape) for key, value in module.state_dict().items()}
    assert shapes == facts["state"]
    if facts["cls"] != "DFL":  # its weights are the bin values
        fill(module)
    inputs = [torch.from_numpy(arrays[f"{name}/in{i}"]) for i in range(len(facts["inputs"]))]
    given = inputs if facts["cls"] == "Concat" else inputs[0]

    def check(out, key, tolerance):
        if key in arrays:
            expected = torch.from_numpy(arrays[key])
            torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)

    with torch.no_grad():
        check(module.eval()(given), f"{name}/out0", 1e-4)
        check(copy.deepcopy(module).train()(given), f"{name}/train_out0", 1e-3)
        for part in list(module.modules()):
            if hasattr(part, "fuse"):
                part.fuse()
        check(module(given), f"{name}/out0", 1e-4)
        check(module(given), f"{name}/fused_out0", 1e-4)


def test_dfl_is_float32_under_autocast_and_in_half_precision():
    dfl = block.DFL(16)
    logits = torch.randn(2, 64, 9)
    expected = dfl(logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = dfl(logits)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    half = dfl.half()(logits.half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, atol=2e-2, rtol=0)


def test_dfl_of_a_certain_bin_is_that_bin():
    logits = torch.full((1, 4, 16, 3), -1e4)
    logits[:, :, 5] = 0
    assert torch.equal(block.DFL(16)(logits.view(1, 64, 3)), torch.full((1, 4, 3), 5.0))


def test_json_of_cases_is_complete(golden):
    """Every case whose class exists here is among the cases."""
    facts = golden("modules.json")
    ours = {
        name
        for name, fact in facts.items()
        if isinstance(fact, dict) and (hasattr(block, fact["cls"]) or hasattr(conv, fact["cls"]))
    }
    assert ours == set(CASES), json.dumps(sorted(ours ^ set(CASES)))
