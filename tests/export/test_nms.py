# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from yolo.backends.quiet import import_onnxruntime
from yolo.engine.nms import non_max_suppression
from yolo.export.nms import Suppression, onnx_translations

CLASSES, BATCHES = 3, (1, 3, 7)
OPTIONS = {"conf": 0.3, "iou": 0.45, "max_det": 40}
OPERATORS = frozenset(
    {
        "Abs", "Add", "And", "ArgMax", "Cast", "Clip", "Concat", "Constant", "Cos", "Div", "Equal",
        "Exp", "Expand", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual",
        "Less", "Log", "Mul", "Neg", "NonMaxSuppression", "Pad", "Pow", "Range", "ReduceMax",
        "ReduceSum", "Reshape", "ScatterND", "Shape", "Sin", "Slice", "Sqrt", "Squeeze", "Sub",
        "TopK", "Transpose", "Trilu", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""The ONNX operators that graphs may be made of: TensorRT's parser reads them all."""


class Rows(nn.Module):
    """The suppression alone, as a graph of one input and one output."""

    def __init__(self, **options):
        super().__init__()
        self.suppression = Suppression(CLASSES, **(OPTIONS | options))

    def forward(self, x):
        return self.suppression((x,))[0]


def crowd(batch, anchors, rotated=False, further=2, seed=0, size=150.0):
    rng = np.random.default_rng(seed)
    parts = [
        rng.uniform(0, size, (batch, 2, anchors)),
        rng.uniform(5, size / 3, (batch, 2, anchors)),
        np.round(rng.uniform(0, 1, (batch, CLASSES, anchors)) ** 4, 2),  # ties are everywhere
        rng.uniform(-0.7, 2.3, (batch, 1 if rotated else further, anchors)),
    ]
    return torch.from_numpy(np.concatenate(parts, 1).astype(np.float32))


def assert_rows(found, pred, **options):
    """Hold padded rows against the engine's, in order and bit by bit but for rounding."""
    given = OPTIONS | options
    given.pop("candidates", None)
    wanted = non_max_suppression(pred, nc=CLASSES, **given)
    found = torch.as_tensor(found)
    assert found.shape == (len(pred), given["max_det"], pred.shape[1] - CLASSES + 2)
    assert found.dtype == torch.float32
    for rows, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(rows[: len(expected)], expected, rtol=0, atol=1e-5)
        assert not rows[len(expected) :].any()
    return [len(rows) for rows in wanted]


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("batch", BATCHES)
def test_rows_are_the_engines(batch, agnostic, rotated):
    pred = crowd(batch, 400, rotated)
    options = {"agnostic": agnostic, "rotated": rotated}
    counts = assert_rows(Rows(**options)(pred), pred, **options)
    assert min(counts) > 4
    assert (pred[:, 4:7].amax(1) > OPTIONS["conf"]).sum() > 2 * sum(counts)


@pytest.mark.parametrize("rotated", [False, True])
def test_few_anchors_few_rows_and_none_at_all(rotated):
    for pred in (crowd(2, 7, rotated), crowd(1, 300, rotated), crowd(2, 300, rotated) * 0.0):
        assert_rows(Rows(rotated=rotated)(pred), pred, rotated=rotated)
        assert_rows(Rows(rotated=rotated, max_det=3)(pred), pred, rotated=rotated, max_det=3)


@pytest.mark.parametrize("rotated", [False, True])
def test_only_the_surest_are_candidates(rotated):
    pred = crowd(2, 400, rotated)
    wanted = non_max_suppression(pred, nc=CLASSES, rotated=rotated, max_nms=45, **OPTIONS)
    found = Rows(rotated=rotated, candidates=45)(pred)
    for rows, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(rows[: len(expected)], expected, rtol=0, atol=1e-5)
        assert not rows[len(expected) :].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 3, 4, 7])
def test_what_is_not_finite_is_never_kept(bad, place):
    rotated = place == 7
    pred = crowd(1, 60, rotated)
    sure = pred[0, 4:7].amax(0).topk(8).indices
    pred[0, place, sure] = bad
    if place == 4 and bad > 0:
        pred[0, 4, sure] = -bad  # a network's scores end at 1
    assert_rows(Rows(rotated=rotated)(pred), pred, rotated=rotated)


def test_other_outputs_pass():
    pred, proto = crowd(1, 50), torch.rand(1, 2, 4, 4)
    rows, same = Suppression(CLASSES)((pred, proto))
    assert same is proto
    assert rows.shape == (1, 300, 8)


@pytest.mark.parametrize("rotated", [False, True])
def test_traced_and_exported_graphs_take_other_batches_and_sizes(rotated, tmp_path):
    graph, example = Rows(rotated=rotated, candidates=400), crowd(2, 100, rotated)
    torch.jit.trace(graph, example, check_trace=False).save(tmp_path / "a.torchscript")
    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    torch.export.save(
        torch.export.export(graph, (example,), dynamic_shapes=(free,)), tmp_path / "a.pt2"
    )
    files = (
        torch.jit.load(tmp_path / "a.torchscript"),
        torch.export.load(tmp_path / "a.pt2").module(),
    )
    for batch, anchors, some in ((1, 300, 1), (3, 20, 1), (2, 30, 0)):
        pred = crowd(batch, anchors, rotated, seed=batch) * some
        for run in files:
            assert_rows(run(pred), pred, rotated=rotated)


@pytest.mark.slow
@pytest.mark.parametrize("rotated", [False, True])
def test_onnx_has_known_operators_and_gives_the_same_rows(rotated):
    onnxruntime = import_onnxruntime()
    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        Rows(rotated=rotated, candidates=400).eval(),
        (crowd(2, 100, rotated),),
        dynamo=True,
        opset_version=18,
        dynamic_shapes=(free,),
        custom_translation_table=onnx_translations(),
        verbose=False,
    )
    model = program.model_proto
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    assert {node.op_type for node in model.graph.node} <= OPERATORS
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (name,) = (given.name for given in session.get_inputs())
    for batch, anchors in ((1, 400), (3, 20), (7, 100)):
        pred = crowd(batch, anchors, rotated, seed=batch)
        (rows,) = session.run(None, {name: pred.numpy()})
        assert_rows(rows, pred, rotated=rotated)
