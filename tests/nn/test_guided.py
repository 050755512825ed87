# SPDX-License-Identifier: Apache-2.0
"""Blocks that words guide: stored outputs, the scaling of their rows, words shared or apart."""

from __future__ import annotations

import copy

import pytest
import torch

from golden_weights import fill
from yolo.errors import ModelError
from yolo.nn import guided
from yolo.nn.layer import LAYERS, BuildContext

KEYWORDS = {"ec": "embed", "nh": "heads", "gc": "text_width", "ct": "text_width"}
CASES = ["maxsigmoidattn", "c2fattn", "imagepoolingattn", "contrastivehead", "bncontrastivehead"]


def build(facts):
    kwargs = {KEYWORDS.get(key, key): value for key, value in facts["kwargs"].items()}
    if facts["cls"] == "MaxSigmoidAttnBlock":
        assert kwargs.pop("embed") == facts["args"][0]  # the only width that networks have
    return getattr(guided, facts["cls"])(*facts["args"], **kwargs)


def golden_case(golden, name):
    facts, arrays = golden("modules.json")[name], golden("modules.npz")
    *maps, text = (torch.from_numpy(arrays[f"{name}/in{i}"]) for i in range(len(facts["inputs"])))
    return facts, arrays, maps if len(maps) > 1 else maps[0], text


@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_golden_outputs(name, golden):
    facts, arrays, x, text = golden_case(golden, name)
    module = build(facts)
    assert {k: list(v.shape) for k, v in module.state_dict().items()} == facts["state"]
    fill(module)

    def check(out, key, tolerance):
        if key in arrays:
            expected = torch.from_numpy(arrays[key])
            torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)

    with torch.no_grad():
        check(module.eval()(x, text), f"{name}/out0", 1e-4)
        check(copy.deepcopy(module).train()(x, text), f"{name}/train_out0", 1e-3)


@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_words_for_all_images_are_those_of_each(name, golden):
    facts, _, x, text = golden_case(golden, name)
    module, shared = fill(build(facts)).eval(), text[:1]
    with torch.no_grad():
        each = module(x, shared.expand(2, -1, -1))
        torch.testing.assert_close(module(x, shared), each, rtol=1e-5, atol=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("name", ["maxsigmoidattn", "c2fattn"])
def test_the_order_of_words_makes_no_difference_to_the_image(name, golden):
    facts, _, x, text = golden_case(golden, name)
    module = fill(build(facts)).eval()
    with torch.no_grad():
        torch.testing.assert_close(module(x, text.flip(1)), module(x, text))


@pytest.mark.parametrize(("embed", "heads"), [(12, 2), (16, 3)])
def test_another_width_to_compare_in(embed, heads):
    with pytest.raises(ModelError, match=f"the 16 channels .* the {heads} heads, got {embed}"):
        guided.C2fAttn(8, 32, 1, embed, heads)


@pytest.mark.parametrize(
    ("width", "most", "planned"),
    [(0.25, 1024, (256, 128, 4)), (0.75, 768, (576, 288, 9)), (1.25, 512, (640, 320, 10))],
)
def test_rows_are_scaled(width, most, planned):
    ctx = BuildContext(guided.C2fAttn, (96,), repeats=2, width=width, max_channels=most)
    kwargs = LAYERS["C2fAttn"].plan([1024, 512, 16], ctx).kwargs
    assert (kwargs["c_out"], kwargs["embed"], kwargs["heads"]) == planned
    assert (kwargs["c_in"], kwargs["repeats"]) == (96, 2)


def test_a_row_without_its_three_arguments():
    with pytest.raises(ModelError, match=r"expected \[c_out, embed, heads"):
        guided.C2fAttn.plan([512], BuildContext(guided.C2fAttn, (96,)))


@pytest.mark.parametrize("size", [(7, 8), (2, 3), (20, 9)])
def test_grid_max_is_adaptive_pooling(size):
    x = torch.randn(2, 3, *size)
    expected = torch.nn.functional.adaptive_max_pool2d(x, 3)
    assert torch.equal(guided.GridMax(3)(x), expected)
