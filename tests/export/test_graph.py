# SPDX-License-Identifier: Apache-2.0
"""The graph that is exported: what it computes, in which order, and that it alters nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import exports
from yolo.export.graph import ExportGraph
from yolo.export.metadata import digest
from yolo.tasks.spec import TASKS


class Halve(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return x * self.factor, (x.shape[2],)

    def restore(self, outputs, state):
        return (*outputs, torch.tensor(state))


class Last(nn.Module):
    def forward(self, outputs):
        return outputs[-1]


@pytest.mark.parametrize("spec", TASKS.values(), ids=TASKS)
def test_it_computes_what_the_model_does(spec):
    model, x = exports.network(spec), torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        wanted = model(x)
    found = ExportGraph(model)(x)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    assert len(found) == len(wanted) == len(spec.outputs.names) == len(spec.outputs.axes)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    halved = ExportGraph(model, half=True)(x)
    assert all(output.dtype == torch.float32 for output in halved)
    torch.testing.assert_close(halved[0], wanted[0], rtol=0.1, atol=0.5)


def test_own_modules_stand_around_the_network():
    model, x = exports.network(next(iter(TASKS.values()))), torch.rand(1, 3, 64, 64)
    plain = ExportGraph(model)
    found = ExportGraph(model, preprocess=Halve())(x)
    torch.testing.assert_close(found[0], plain(x / 2)[0])
    assert found[1].item() == 64
    (last,) = ExportGraph(model, preprocess=Halve(), postprocess=Last())(x)
    assert last.item() == 64


def test_model_and_modules_stay_as_they_are():
    model, own = exports.network(next(iter(TASKS.values()))).train(), Halve().train()
    before = digest(model), [p.requires_grad for p in model.parameters()]
    graph = ExportGraph(model, preprocess=own, half=True)
    assert (digest(model), [p.requires_grad for p in model.parameters()]) == before
    assert model.training
    assert own.training
    assert own.factor.requires_grad
    assert not any(p.requires_grad for p in graph.parameters())
    assert not any(module.training for module in graph.modules())
