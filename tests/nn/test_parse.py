# SPDX-License-Identifier: Apache-2.0
"""Rows to modules, and messages for bad rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from yolo.errors import ModelError
from yolo.nn.layer import channelwise, layer
from yolo.nn.parse import parse_model


def network(*rows, **keys):
    return {"backbone": list(rows), **keys}


def build(*rows, **keys):
    with torch.device("meta"):
        return parse_model(network(*rows, **keys), 3, 80, keys.pop("scale", None), "my.yaml")


CONV = [-1, 1, "Conv", [8, 3, 2]]


def test_rows_sources_and_kept_rows():
    parsed = build(CONV, CONV, [[-1, 0], 1, "Concat", [1]], [1, 1, "Conv", [16]])
    assert [row.sources for row in parsed.rows] == [(-1,), (0,), (1, 0), (1,)]
    assert parsed.save == [0, 1]
    assert [row.several for row in parsed.rows] == [False, False, True, False]
    assert parsed.layers[3].conv.in_channels == 8


@pytest.mark.parametrize(("repeats", "depth", "built"), [(3, 0.33, 1), (6, 0.33, 2), (5, 0.5, 2)])
def test_depth_scaling_rounds_half_to_even(repeats, depth, built):
    parsed = build([-1, repeats, "C2f", [8]], scales={"n": [depth, 1, 64]}, scale="n")
    assert len(parsed.layers[0].m) == built


def test_depth_never_scales_a_layer_away():
    parsed = build([-1, 1, "C2f", [8]], scales={"n": [0.1, 1, 64]}, scale="n")
    assert len(parsed.layers[0].m) == 1


def test_multiples_count_where_there_are_no_scales():
    parsed = build([-1, 4, "C2f", [64]], depth_multiple=0.5, width_multiple=0.25)
    assert len(parsed.layers[0].m) == 2
    assert parsed.layers[0].cv2.conv.out_channels == 16


def test_repeats_chain_copies():
    parsed = build(CONV, [-1, 3, "Bottleneck", [8]])
    assert isinstance(parsed.layers[1], nn.Sequential)
    assert len(parsed.layers[1]) == 3


def test_words_stand_for_values(own_layers):
    seen = {}

    @layer(plan=channelwise)
    class Echo(nn.Module):
        def __init__(self, channels, nc, none, flag, shape, text):
            super().__init__()
            seen.update(nc=nc, none=none, flag=flag, shape=shape, text=text)

    args = ["nc", "None", "False", "kpt_shape", "nearest"]
    build([-1, 1, "Echo", args], kpt_shape=[17, 3])
    assert seen == {"nc": 80, "none": None, "flag": False, "shape": [17, 3], "text": "nearest"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([-1, 1, "Cnov", [8]], "unknown layer 'Cnov'. Similar: 'Conv'"),
        ([-1, 1, "__import__('os')", []], "unknown layer"),
        ([-1, 1, "Conv"], r"expected \[from, repeats, layer, arguments\]"),
        ("Conv", r"expected \[from, repeats, layer, arguments\]"),
        ([-1, 0, "Conv", [8]], "repeats as a whole number >= 1"),
        ([-1, True, "Conv", [8]], "repeats as a whole number >= 1"),
        ([-1, 1, 5, [8]], "a layer's name"),
        ([-1, 1, "Conv", 8], "a list of arguments"),
        ([7, 1, "Conv", [8]], "`from` 7 points at no earlier row"),
        ([1, 1, "Conv", [8]], "`from` 1 points at no earlier row"),
        ([-3, 1, "Conv", [8]], "`from` -3 points at no earlier row"),
        (["a", 1, "Conv", [8]], "row numbers as `from`"),
        ([[], 1, "Concat", [1]], "at least one source"),
        ([-1, 1, "Conv", ["wide"]], "a number of channels > 0, got 'wide'"),
        ([-1, 1, "Conv", [8, 3, 2, 1, 1, 1, True, 9]], "Conv takes at most 8 arguments"),
        ([-1, 1, "Conv", [8, "big"]], r"expected Conv\(c_in: "),
        ([[-1, -1], 1, "Conv", [8]], "takes one input, got 2 sources"),
        ([[-1, -1], 2, "Concat", [1]], "can't be repeated"),
    ],
)
def test_bad_rows_name_file_number_and_text(row, message):
    with pytest.raises(ModelError, match=message) as caught:
        build(CONV, row)
    assert str(caught.value).startswith(f"my.yaml: row 1 {row!r}: ")


def test_a_layer_that_raises_is_named(own_layers):
    @layer(plan=channelwise)
    class Broken(nn.Module):
        def __init__(self, channels):
            raise RuntimeError("no luck")

    with pytest.raises(ModelError, match=r"row 0 .*Broken.*: RuntimeError: no luck"):
        build([-1, 1, "Broken", []])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "no rows"),
        ({"backbone": 5}, "expected lists of rows"),
        ({"backbone": [CONV], "scales": {"n": [1, 1]}}, "max_channels"),
        ({"backbone": [CONV], "depth_multiple": "deep"}, "expected depth_multiple and"),
        ({"backbone": [CONV], "scales": {"s": [1, 1, 64]}}, "scale 'n' isn't among s"),
    ],
)
def test_bad_networks(keys, message):
    with pytest.raises(ModelError, match=message):
        parse_model(keys, 3, 80, "n", "my.yaml")
