# SPDX-License-Identifier: Apache-2.0
"""Registering layers, and the ready-made planners."""

from __future__ import annotations

import sys
import types

import pytest
from torch import nn

from yolo.errors import ConfigError, ModelError
from yolo.nn import layer as layers
from yolo.nn.conv import Conv
from yolo.nn.layer import LAYERS, BuildContext, Plan, layer

pytestmark = pytest.mark.usefixtures("own_layers")


class Toy(nn.Module):
    def __init__(self, first, second=2, third=3):
        super().__init__()


def context(**given):
    return BuildContext(**{"layer": Toy, "in_channels": (16,), **given})


@pytest.mark.parametrize(
    ("planner", "args", "kwargs", "out"),
    [
        (layers.same_channels, [7], {"first": 7}, 16),
        (layers.channelwise, [7], {"first": 16, "second": 7}, 16),
        (layers.conv_like, [64, 7], {"first": 16, "second": 32, "third": 7}, 32),
        (layers.stage_like, [64], {"first": 16, "second": 32, "third": 1}, 32),
        (layers.concat_channels, [1], {"first": 1}, 16),
    ],
)
def test_planners_name_the_arguments(planner, args, kwargs, out):
    plan = planner(args, context(width=0.5))
    assert (plan.kwargs, plan.out_channels, plan.stack) == (kwargs, out, 1)


def test_repeats_stack_or_reach_the_layer():
    assert layers.same_channels([1], context(repeats=3)).stack == 3
    assert layers.conv_like([16], context(repeats=2)).stack == 2
    plan = layers.stage_like([64], context(repeats=4))
    assert (plan.kwargs["third"], plan.stack) == (4, 1)


def test_concat_adds_channels():
    assert layers.concat_channels([1], context(in_channels=(16, 8))).out_channels == 24


@pytest.mark.parametrize(
    ("channels", "width", "cap", "expected"),
    [(64, 0.25, 1024, 16), (1024, 1.25, 512, 640), (100, 0.25, 1024, 32), (3, 1.0, 8, 8)],
)
def test_width_rule_caps_scales_and_rounds_up(channels, width, cap, expected):
    assert context(width=width, max_channels=cap).scale_width(channels) == expected


@pytest.mark.parametrize("channels", [0, -8, "64", None, True])
def test_width_rule_refuses(channels):
    with pytest.raises(ModelError, match="channels"):
        context().scale_width(channels)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layers.same_channels([1, 2, 3, 4], context()), "at most 3 arguments"),
        (lambda: layers.conv_like([], context()), "needs its output channels"),
        (lambda: layers.conv_like([64], context(repeats=2)), "can't be chained"),
        (lambda: layers.conv_like([64], context(in_channels=(8, 8))), "takes one input, got 2"),
    ],
)
def test_planners_explain(call, message):
    with pytest.raises(ModelError, match=message):
        call()


def test_decorator_needs_a_plan():
    with pytest.raises(ConfigError, match=r"@layer\(plan=conv_like\)"):
        layer(Toy)


def test_own_plan_and_other_name():
    @layer(name="odd")
    class Odd(nn.Module):
        @classmethod
        def plan(cls, args, ctx):
            return Plan({}, 5)

    assert LAYERS["odd"].cls is Odd
    assert LAYERS["odd"].plan([], context()).out_channels == 5


def test_subclass_inherits_planner_and_side_of_its_base():
    @layer(plan=layers.same_channels, side=True)
    class Base(Toy): ...

    @layer
    class Sub(Base): ...

    assert LAYERS["Sub"].plan is layers.same_channels
    assert LAYERS["Sub"].side
    assert not LAYERS["Conv"].side
    assert layer(name="Conv2")(type("Conv2", (Conv,), {})) is LAYERS["Conv2"].cls


def test_a_class_is_registered_once_but_another_under_its_name_is_refused():
    first = layer(plan=layers.same_channels)(Toy)
    assert layer(plan=layers.same_channels)(Toy) is first
    other = type("Toy", (nn.Module,), {"__module__": "elsewhere"})
    with pytest.raises(ConfigError, match="registered already"):
        layer(plan=layers.same_channels)(other)


def test_a_notebook_cell_or_file_may_run_twice(monkeypatch):
    """The same place in the source defines the class again: the new one counts."""
    for name in ("one", "two"):
        module = types.ModuleType(name)
        module.__file__ = "/somewhere/blocks.py"
        monkeypatch.setitem(sys.modules, name, module)
    for home in ("one", "one", "two"):
        cls = type("Cell", (nn.Module,), {"__module__": home})
        layer(plan=layers.same_channels)(cls)
        assert LAYERS["Cell"].cls is cls
