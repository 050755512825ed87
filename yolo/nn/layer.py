# SPDX-License-Identifier: Apache-2.0
"""Layers by name: the registry, and how a YAML row's arguments become a constructor's.

A layer joins with one decorator and says itself how it is built::

    from yolo.nn.layer import BuildContext, Plan, conv_like, layer

    @layer(plan=conv_like)                 # a ready-made planner: Sharp(c_in, c_out, *arguments)
    class Sharp(nn.Module): ...

    @layer                                 # or a plan of its own
    class Fork(nn.Module):
        @classmethod
        def plan(cls, args: Sequence[Any], ctx: BuildContext) -> Plan:
            c_out = ctx.scale_width(args[0])
            return Plan({"c_in": ctx.only_input, "c_out": c_out, "depth": ctx.repeats}, c_out)

Ready-made planners, for a row ``[from, repeats, Name, [a, b, ...]]``:

===================  ==============================================  =====================
planner              the constructor gets                            output channels
===================  ==============================================  =====================
``same_channels``    ``(a, b, ...)``                                 those of the input
``channelwise``      ``(c_in, a, b, ...)``                           those of the input
``conv_like``        ``(c_in, c_out, b, ...)``, c_out = scaled a     c_out
``stage_like``       ``(c_in, c_out, repeats, b, ...)``              c_out
``concat_channels``  ``(a, b, ...)``, several inputs as a list       sum of the inputs
===================  ==============================================  =====================

All but ``stage_like`` chain `repeats` copies in an ``nn.Sequential``.
"""

from __future__ import annotations

import inspect
import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, overload

from torch import nn

from yolo.errors import ConfigError, ModelError
from yolo.registry import Registry

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """How one row is built.

    Args:
        kwargs: exactly what the constructor receives, by keyword.
        out_channels: channels of the output; 0 for a head, whose output no row can read.
        stack: equal copies chained in ``nn.Sequential``.
    """

    kwargs: Mapping[str, Any]
    out_channels: int
    stack: int = 1


@dataclass(frozen=True, slots=True)
class BuildContext:
    """What a planner may know about its row and the network.

    Args:
        layer: the class that is being planned.
        in_channels: channels of each source, in the order of the row's `from`.
        repeats: the row's repeats after depth scaling, >= 1.
        num_classes: classes of the network.
        width: factor on channel counts.
        max_channels: cap on a channel count before `width`.
        options: the network YAML's own keys (`reg_max`, `kpt_shape`, ...), read-only. Rows whose
            channels are its key `unscaled` aren't scaled: see `yolo.engine.foreign`.
    """

    layer: type[nn.Module]
    in_channels: tuple[int, ...]
    repeats: int = 1
    num_classes: int = 80
    width: float = 1.0
    max_channels: float = math.inf
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def only_input(self) -> int:
        """Channels of the one source.

        Raises:
            ModelError: if the row has several sources.
        """
        if len(self.in_channels) != 1:
            raise ModelError(
                f"{self.layer.__name__} takes one input, got {len(self.in_channels)} sources; "
                f"join them with a Concat row first"
            )
        return self.in_channels[0]

    def scale_width(self, channels: Any) -> int:
        """Apply the width rule: cap, scale, round up to a multiple of 8.

        Raises:
            ModelError: if `channels` isn't a positive number.
        """
        if isinstance(channels, bool) or not isinstance(channels, (int, float)) or channels <= 0:
            raise ModelError(f"expected a number of channels > 0, got {channels!r}")
        return math.ceil(min(channels, self.max_channels) * self.width / 8) * 8

    def name(self, *values: Any) -> dict[str, Any]:
        """Name positional values after the constructor's parameters, in order.

        Raises:
            ModelError: if there are more values than parameters, or the constructor has no
                parameters that can be named (`*args`).
        """
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = inspect.signature(self.layer).parameters.values()
        names = [p.name for p in parameters if p.kind in kinds]
        if len(values) > len(names):
            raise ModelError(
                f"{self.layer.__name__} takes at most {len(names)} arguments "
                f"({', '.join(names)}), got {len(values)}: {list(values)!r}"
            )
        return dict(zip(names, values, strict=False))


Planner = Callable[[Sequence[Any], BuildContext], Plan]
Side = bool | Literal["renew"]


@dataclass(frozen=True, slots=True)
class Layer:
    """A registered layer.

    Args:
        cls: the class.
        plan: turns a row's arguments into a `Plan`.
        side: whether the layer is called as ``layer(x, side)`` with the model's side input;
            "renew": and what it gives is the side input of later rows, but for the head.
    """

    cls: type[nn.Module]
    plan: Planner
    side: Side = False


LAYERS: Registry[Layer] = Registry("layer")

M = TypeVar("M", bound=type[nn.Module])


@overload
def layer(cls: M, /) -> M: ...
@overload
def layer(
    *, plan: Planner | None = None, name: str | None = None, side: Side | None = None
) -> Callable[[M], M]: ...
def layer(
    cls: M | None = None,
    /,
    *,
    plan: Planner | None = None,
    name: str | None = None,
    side: Side | None = None,
) -> M | Callable[[M], M]:
    """Register a class as a layer that a network YAML can name.

    Args:
        cls: the class, when used as a bare ``@layer``.
        plan: a planner ``(args, ctx) -> Plan``. Without it the class' own ``plan`` method
            counts, else what a registered base class uses.
        name: the name in a YAML; the class' name by default.
        side: as `Layer` has it; inherited from a registered base class when not given.

    Raises:
        ConfigError: if there is no planner, or another class has the name.
    """

    def register(cls: M) -> M:
        base = _registered_base(cls)
        planner = plan or getattr(cls, "plan", None) or (base.plan if base else None)
        if planner is None:
            raise ConfigError(
                f"layer {cls.__name__} doesn't say how a YAML row's arguments become those of its "
                f"constructor; write @layer(plan=conv_like) (or same_channels, channelwise, "
                f"stage_like, concat_channels from yolo.nn.layer), or give the class a "
                f"`plan(cls, args, ctx) -> Plan` classmethod"
            )
        inherited = base.side if base else False
        _add(name or cls.__name__, Layer(cls, planner, inherited if side is None else side))
        return cls

    return register if cls is None else register(cls)


def _registered_base(cls: type[nn.Module]) -> Layer | None:
    """Find the nearest class above `cls` (or `cls` itself) that is registered."""
    by_class = {entry.cls: entry for entry in LAYERS.values()}
    return next((by_class[base] for base in cls.__mro__ if base in by_class), None)


def _add(name: str, entry: Layer) -> None:
    """Register, letting a class replace an earlier run of its own definition."""
    known = LAYERS.get(name)
    if known is not None and known.cls is entry.cls:
        return
    if known is not None and _same_definition(known.cls, entry.cls):
        _LOG.info("layer %r is defined again; the new definition counts from now on", name)
        LAYERS.replace(name, entry)
    else:
        LAYERS.add(name, entry)


def _same_definition(old: type, new: type) -> bool:
    """Whether two classes are one: a notebook cell run twice, a file imported under two names."""
    if old.__qualname__ != new.__qualname__:
        return False
    files = [getattr(sys.modules.get(c.__module__), "__file__", None) for c in (old, new)]
    return old.__module__ == new.__module__ or (files[0] is not None and files[0] == files[1])


def same_channels(args: Sequence[Any], ctx: BuildContext) -> Plan:
    """Plan ``cls(*args)``: the output has the input's channels."""
    return Plan(ctx.name(*args), ctx.only_input, ctx.repeats)


def channelwise(args: Sequence[Any], ctx: BuildContext) -> Plan:
    """Plan ``cls(c_in, *args)``: the output has the input's channels."""
    return Plan(ctx.name(ctx.only_input, *args), ctx.only_input, ctx.repeats)


def conv_like(args: Sequence[Any], ctx: BuildContext) -> Plan:
    """Plan ``cls(c_in, c_out, *rest)``, where c_out is the width-scaled first argument.

    Raises:
        ModelError: if `repeats` copies can't be chained because c_in and c_out differ.
    """
    c_in, c_out = ctx.only_input, _scaled_out(args, ctx)
    if ctx.repeats > 1 and c_in != c_out:
        raise ModelError(
            f"{ctx.repeats} equal copies can't be chained: {c_in} channels in, {c_out} out; "
            f"write a row with repeats 1 for the change of channels"
        )
    return Plan(ctx.name(c_in, c_out, *args[1:]), c_out, ctx.repeats)


def stage_like(args: Sequence[Any], ctx: BuildContext) -> Plan:
    """Plan ``cls(c_in, c_out, repeats, *rest)``: the layer itself repeats its inner blocks."""
    c_out = _scaled_out(args, ctx)
    return Plan(ctx.name(ctx.only_input, c_out, ctx.repeats, *args[1:]), c_out)


def concat_channels(args: Sequence[Any], ctx: BuildContext) -> Plan:
    """Plan ``cls(*args)`` for a layer that takes a list and joins its channels."""
    return Plan(ctx.name(*args), sum(ctx.in_channels), ctx.repeats)


def _scaled_out(args: Sequence[Any], ctx: BuildContext) -> int:
    if not args:
        raise ModelError(f"{ctx.layer.__name__} needs its output channels as first argument")
    if type(args[0]) is int and 0 < args[0] == ctx.options.get("unscaled"):
        return args[0]
    return ctx.scale_width(args[0])
