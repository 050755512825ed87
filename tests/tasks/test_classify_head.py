# SPDX-License-Identifier: Apache-2.0
"""The classification head: golden outputs, decoding, its row in a network."""

from __future__ import annotations

import pytest
import torch

from golden_weights import fill
from yolo.errors import ModelError
from yolo.nn.layer import BuildContext
from yolo.tasks.classify.head import Classify
from yolo.tasks.classify.model import ClassificationModel


@pytest.mark.golden
def test_golden_head(golden):
    facts, arrays = golden("modules.json")["classify"], golden("modules.npz")
    made = Classify(*facts["args"])
    assert {k: list(v.shape) for k, v in made.state_dict().items()} == facts["state"]
    x = torch.from_numpy(arrays["classify/in0"])
    trained = fill(made).train()(x)["logits"]
    expected = torch.from_numpy(arrays["classify/train_out0"])
    torch.testing.assert_close(trained, expected, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        raw = fill(made).eval()(x)
    for found, key in ((made.decode(raw), "out0"), (raw["logits"], "out1")):
        expected = torch.from_numpy(arrays[f"classify/{key}"])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_probabilities_are_float32_and_sum_to_one():
    made = Classify(8, 3).eval()
    raw = {"logits": made(torch.rand(4, 8, 2, 3))["logits"].half()}
    probs = made.decode(raw)
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs.sum(1), torch.ones(4))


def test_dropout_acts_in_training_alone():
    made = Classify(8, 3, dropout=0.5)
    x = torch.rand(2, 8, 4, 4)
    made.conv.bn.eval()
    assert not torch.equal(made(x)["logits"], made(x)["logits"])
    made.eval()
    assert torch.equal(made(x)["logits"], made(x)["logits"])


def test_the_class_count_is_the_network_s():
    context = BuildContext(Classify, (16,), num_classes=7)
    assert dict(Classify.plan([7], context).kwargs) == {"c_in": 16, "nc": 7}
    with pytest.raises(ModelError, match="nc as the network has it, 7, got 5"):
        Classify.plan([5], context)


def test_class_layers_have_a_row_a_class():
    model = ClassificationModel(nc=4)
    assert [layer.out_features for layer in model.head.class_layers] == [4]
