# SPDX-License-Identifier: Apache-2.0
"""Convolutions in 8 bits: how close they come, what is left alone."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from yolo.backends.quiet import import_onnxruntime
from yolo.cfg.schema import ExportConfig
from yolo.errors import ConfigError, DataError
from yolo.export.formats import Job
from yolo.export.quantize import graph_inputs, quantize


def two_convolutions():
    """Return an ONNX model: convolution, ReLU, convolution, and a product that isn't one."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {
        "w0": rng.normal(size=(8, 3, 3, 3)) * np.geomspace(0.01, 1, 8)[:, None, None, None],
        "b0": rng.normal(size=8),
        "w1": rng.normal(size=(4, 8, 1, 1)),
        "b1": rng.normal(size=4),
        "times": np.full(1, 1e-4),
    }
    nodes = [
        helper.make_node("Conv", ["images", "w0", "b0"], ["c0"], name="c0", pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r"]),
        helper.make_node("Conv", ["r", "w1", "b1"], ["c1"], name="c1"),
        helper.make_node("Mul", ["c1", "times"], ["output0"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("images", TensorProto.FLOAT, [2, 3, 8, 8])],
        [value("output0", TensorProto.FLOAT, [2, 4, 8, 8])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def images(count=3):
    rng = np.random.default_rng(1)
    return [rng.random((2, 3, 8, 8), dtype=np.float32) for _ in range(count)]


def run(model, x):
    session = import_onnxruntime().InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"images": x})[0]


@pytest.mark.parametrize("symmetric", [False, True])
def test_8_bits_come_close_and_are_8_bits(symmetric):
    from onnx import numpy_helper

    model = two_convolutions()
    before = model.SerializeToString()
    small = quantize(model, images(), symmetric=symmetric)
    assert model.SerializeToString() == before
    wanted, found = run(model, images()[0]), run(small, images()[0])
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert 1e-6 < error < 0.03
    kinds = [node.op_type for node in small.graph.node]
    assert kinds.count("Conv") == 2
    assert kinds[kinds.index("Conv") + 1] == "Relu"  # sums stay in float
    tensors = {t.name: numpy_helper.to_array(t) for t in small.graph.initializer}
    zeros = [v for name, v in tensors.items() if name.endswith("zero_point")]
    assert {str(zero.dtype) for zero in zeros} <= {"int8", "uint8"}
    if symmetric:
        assert not any(zero.any() for zero in zeros)
        assert tensors["w0"].dtype == np.float32
    else:
        whole = next(v for name, v in tensors.items() if name.startswith("w0") and v.ndim == 4)
        assert whole.dtype == np.int8
        assert np.abs(whole.astype(int)).max() in (63, 64)  # 7 bits
        scales = next(v for name, v in tensors.items() if name == "w0_scale")
        assert scales.shape == (8,)  # one for each channel


def test_scales_come_from_the_images():
    model = two_convolutions()
    usual = quantize(model, images())
    dim = quantize(model, [x / 10 for x in images()])
    x = images()[0]
    error = [np.abs(run(m, x) - run(model, x)).mean() for m in (usual, dim)]
    assert error[1] > 10 * error[0]


def test_logging_stays_as_it_is_and_nothing_is_said(capfd):
    before = (logging.root.level, list(logging.root.handlers))
    quantize(two_convolutions(), images())
    assert (logging.root.level, list(logging.root.handlers)) == before
    assert capfd.readouterr() == ("", "")


def test_no_images():
    with pytest.raises(DataError, match="no images to measure"):
        quantize(two_convolutions(), [])


def job(batches, **options):
    config = ExportConfig(int8=True, data="x", **options)
    return Job(config, {}, calibration=lambda: iter(batches))


def test_images_fill_the_batches_of_the_graph():
    singles = [np.full((1, 3, 2, 2), i, np.float32) for i in range(5)]
    found = list(graph_inputs(job(singles), 2))
    assert [x.shape for x in found] == [(2, 3, 2, 2)] * 3
    assert [x[:, 0, 0, 0].tolist() for x in found] == [[0, 1], [2, 3], [4, 4]]


def test_a_graph_that_prepares_images_gets_pixels():
    red = np.zeros((1, 3, 4, 6), np.float32)
    red[:, 0] = 1
    for name, place in (("raw", 2), ("raw_rgb", 0)):
        (found,) = graph_inputs(job([red], preprocess=name), 1)
        assert (found.shape, found.dtype) == ((4, 6, 3), np.uint8)
        assert found.reshape(-1, 3).max(0).tolist() == [255 * (i == place) for i in range(3)]
        assert found.flags.c_contiguous


def test_images_cannot_be_made_for_a_module_of_ones_own():
    class Own(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(ConfigError, match=r"int8=True: expected no preprocess=.*found Own"):
        graph_inputs(job([], preprocess=Own()), 1)
