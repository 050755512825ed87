# SPDX-License-Identifier: Apache-2.0
"""The proof of agreement: a sound file passes, every kind of fault is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import exports
from yolo.errors import ExportError
from yolo.export.graph import ExportGraph
from yolo.export.nms import Suppression
from yolo.export.probes import probes
from yolo.export.proof import BOUNDS, MIN_BOXES, Bounds, Rules, floor_of, prove
from yolo.tasks.spec import TASKS, Outputs

INPUTS = probes((64, 64), 3, 8, 4, False)


@pytest.fixture(scope="module")
def graph():
    return ExportGraph(exports.network(next(iter(TASKS.values()))))


@pytest.fixture(scope="module")
def suppressing(graph):
    nms = Suppression(5, conf=0.02, iou=0.7, max_det=50)
    return ExportGraph(graph.network, nms=nms)


def rules(**changes):
    return Rules(Outputs(), 5, **changes)


def run(graph, change=lambda outputs: None):
    """Return what runs the graph and changes its outputs."""

    def call(x):
        with torch.no_grad():
            outputs = [output.numpy().copy() for output in graph(torch.from_numpy(x))]
        change(outputs)
        return outputs

    return call


def test_what_is_equal_is_proved_on_enough_boxes(graph):
    found = prove(graph, run(graph), INPUTS, rules())
    assert found.images == 8
    assert found.boxes == found.matched >= MIN_BOXES
    assert found.worst == {"px": 0, "score": 0}
    assert f"{found.boxes} of {found.boxes} boxes" in str(found)


def test_a_difference_within_the_bounds_is_told(graph):
    def change(outputs):
        outputs[0][:, 0] += 0.25
        outputs[0][:, 4] += 1e-4

    found = prove(graph, run(graph, change), INPUTS, rules())
    assert found.worst["px"] == pytest.approx(0.25, abs=1e-3)
    assert found.worst["score"] == pytest.approx(1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("row", "by", "text"),
    [
        (0, 0.6, "output0 differs from torch's by 0.6 px, allowed is 0.5"),
        (3, -0.6, "differs from torch's by 0.6 px"),
        (5, 2e-3, r"by 0.002 score, allowed is 0.001"),
        (4, np.nan, "isn't finite"),
    ],
)
def test_one_number_out_of_bounds_is_enough(graph, row, by, text):
    def change(outputs):
        outputs[0][0, row, 100] += by

    with pytest.raises(ExportError, match=text):
        prove(graph, run(graph, change), INPUTS, rules())


def test_another_shape_is_refused(graph):
    with pytest.raises(ExportError, match=r"for an input .* it gives"):
        prove(graph, lambda x: [a[:, :-1] for a in run(graph)(x)], INPUTS, rules())


def test_half_precision_has_looser_bounds_and_may_miss_a_few(graph):
    def change(outputs):
        outputs[0][:, 0] += 1
        outputs[0][0, 1, :3] += 50

    found = prove(graph, run(graph, change), INPUTS, rules(bounds=BOUNDS["fp16"]))
    assert found.worst["px"] == pytest.approx(50, abs=1)
    with pytest.raises(ExportError):
        prove(graph, run(graph, change), INPUTS, rules())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rows: rows[:, 0].__imul__(0), "torch has a box"),
        (lambda rows: rows[:, 1].__iadd__(rows[:, 0] - rows[:, 1]), "the file has a box"),
        (lambda rows: rows[:, 1, :4].__iadd__(0.7), "the file has a box"),
        (lambda rows: rows[:, 0, 5].__iadd__(1), "torch has a box"),
    ],
)
def test_finished_rows_are_compared_as_boxes(suppressing, change, text):
    nms = rules(nms=True, conf=0.02, max_det=50)
    found = prove(suppressing, run(suppressing), INPUTS, nms)
    assert found.boxes == found.matched >= MIN_BOXES
    assert found.worst == {"px": 0, "score": 0}
    with pytest.raises(ExportError, match=text):
        prove(suppressing, run(suppressing, lambda o: change(o[0])), INPUTS, nms)


def test_the_floor_sinks_until_there_are_enough_boxes(graph):
    predictions = [p for x in INPUTS for p in run(graph)(x)[0]]
    floor = floor_of(predictions, rules(conf=0.999))
    assert 0 < floor < 0.999
    best = np.concatenate([p[4:].max(0) for p in predictions])
    assert np.abs(best - floor).min() > 1e-6
    assert (best > floor).sum() >= MIN_BOXES


def test_units_follow_the_tasks_layout():
    further = ("px", "px", "score")
    assert Rules(Outputs(extra=further), 2, 3).units(12)[4:] == ["score"] * 2 + [*further] * 2
    assert Rules(Outputs(extra=further), 1, 2).units(9)[5:] == ["px"] * 4
    assert Rules(Outputs(boxes=False), 3).units(3) == ["score"] * 3


def test_outputs_of_ones_own_module_are_compared_as_numbers(graph):
    class Means(torch.nn.Module):
        def forward(self, outputs):
            return outputs[0].mean(2), (outputs[0][:, 4] > 0.5).long()

    own = ExportGraph(graph.network, postprocess=Means())
    prove(own, run(own), INPUTS, rules(opaque=True))
    with pytest.raises(ExportError, match="value"):
        prove(own, run(own, lambda o: o[0].__iadd__(5)), INPUTS, rules(opaque=True))
    with pytest.raises(ExportError, match="whole numbers"):
        prove(own, run(own, lambda o: o[1].__iadd__(1)), INPUTS, rules(opaque=True))


def test_small_numbers_of_ones_own_are_not_lost_among_large_ones(graph):
    class Both(torch.nn.Module):
        def forward(self, outputs):
            return outputs[0] + torch.tensor([1e4])[:, None] * (torch.arange(9) < 4)[:, None]

    own = ExportGraph(graph.network, postprocess=Both())
    with pytest.raises(ExportError, match=r"by 0.01 value"):
        prove(own, run(own, lambda o: o[0][:, 5].__iadd__(0.01)), INPUTS, rules(opaque=True))


def test_bounds_are_those_that_are_promised():
    assert Bounds() == BOUNDS["fp32"] == Bounds(px=0.5, score=1e-3, share=1.0)
