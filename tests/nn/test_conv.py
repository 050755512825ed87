# SPDX-License-Identifier: Apache-2.0
"""Convolutions: sizes, folding, shared activation. Their golden outputs are in test_block."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from golden_weights import fill
from yolo.nn.conv import (
    Concat,
    Conv,
    DWConv,
    GhostConv,
    PiecewiseConv2d,
    PiecewiseLinear,
    class_pieces,
)
from yolo.nn.layer import BuildContext


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_default_padding_keeps_the_size(kernel, dilation):
    conv = Conv(3, 8, kernel, dilation=dilation)
    assert conv(torch.zeros(2, 3, 20, 16)).shape == (2, 8, 20, 16)


@pytest.mark.parametrize("make", [Conv, DWConv, GhostConv])
def test_folding_keeps_outputs_and_mode(make):
    module = fill(nn.Sequential(make(8, 16, 3, 2)))
    x = torch.randn(2, 8, 12, 10, generator=torch.Generator().manual_seed(0))
    expected = module.eval()(x)
    folded = copy.deepcopy(module)
    for part in list(folded.modules()):
        if hasattr(part, "fuse"):
            part.fuse()
            part.fuse()  # a second time changes nothing
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert not any(part.training for part in folded.modules())
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5)


def test_one_activation_is_shared_after_copies_too():
    pair = nn.Sequential(Conv(3, 8), Conv(8, 8))
    for module in (pair, copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
        assert module[0].act is module[1].act


def test_activation_can_be_chosen():
    assert isinstance(Conv(3, 8, act=False).act, nn.Identity)
    assert isinstance(Conv(3, 8, act=nn.ReLU()).act, nn.ReLU)


def test_batch_norm_settings():
    norm = Conv(3, 8).bn
    assert (norm.eps, norm.momentum) == (1e-3, 0.03)


def test_concat_joins_channels():
    assert Concat()([torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4)]).shape == (1, 5, 4, 4)


@pytest.mark.parametrize(
    ("make", "plain", "shape"),
    [
        (PiecewiseConv2d, lambda: nn.Conv2d(64, 1, 1), (2, 64, 5, 7)),
        (PiecewiseLinear, lambda: nn.Linear(64, 1), (2, 64)),
    ],
)
def test_a_piece_is_computed_as_if_it_were_alone(make, plain, shape):
    alone, several = plain(), make(64, (1, 40, 3))
    with torch.no_grad():
        several.weight[:1], several.bias[:1] = alone.weight, alone.bias
    x = torch.rand(shape)
    found = several(x)
    assert torch.equal(found[:, :1], alone(x))
    whole = type(plain()).forward(several, x)  # the same function, but for the last bits
    torch.testing.assert_close(found, whole)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, (5,)), ([2, 3], (2, 3)), ([2, 2], (5,)), ([-1, 6], (5,)), ("5", (5,)), (["a"], (5,))],
)
def test_pieces_that_are_not_of_the_classes_do_not_count(given, expected):
    context = BuildContext(
        layer=nn.Identity, in_channels=(8,), repeats=1, num_classes=5, width=1.0,
        max_channels=64, options={} if given is None else {"class_pieces": given},
    )  # fmt: skip
    assert class_pieces(context) == expected
