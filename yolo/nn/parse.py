# SPDX-License-Identifier: Apache-2.0
"""From the rows of a network description to modules: look up, plan, build, the same for every row.

A row is ``[from, repeats, layer, arguments]``. `from` is a row number or a list of them; negative
counts back, and the first row's -1 is the image. An argument may be a number, a boolean, null,
a list, or a string: "nc", "None", "True", "False" and the network's own keys ("kpt_shape") stand
for their values, other strings for themselves. Nothing is evaluated as code.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from yolo.errors import ModelError, nearest
from yolo.nn import block, conv, guided  # noqa: F401 - imported so that their layers are registered
from yolo.nn.layer import LAYERS, BuildContext, Side

MAX_REPEATS = 1000  # a description may come from a stranger's file
IMAGE = -1  # the row number of the network's input
_PARTS = frozenset({"backbone", "head", "scales"})
_WORDS = {"None": None, "True": True, "False": False}


@dataclass(frozen=True, slots=True)
class Row:
    """What stays known of a row after building.

    Args:
        index: its number.
        sources: absolute numbers of the rows it reads; `IMAGE` is the input.
        kept: those of `sources` that the description names by more than "the row before" (-1).
        several: whether the layer gets a list of maps.
        side: whether the layer also gets the side input, or even renews it.
        repeats: its repeats after depth scaling.
        name: the layer's name.
        arguments: what the constructor got, as text for people.
    """

    index: int
    sources: tuple[int, ...]
    kept: tuple[int, ...]
    several: bool
    side: Side
    repeats: int
    name: str
    arguments: str


class Parsed(NamedTuple):
    """A network that was built: its layers, the rows whose output is kept, and the rows."""

    layers: nn.Sequential
    save: list[int]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class _Scaling:
    depth: float
    width: float
    max_channels: float


def parse_model(
    network: Mapping[str, Any],
    channels: int,
    num_classes: int,
    scale: str | None = None,
    source: str = "network",
) -> Parsed:
    """Build the modules of a network description, on torch's current default device.

    Args:
        network: keys `backbone`, `head`, optionally `scales` and options of layers.
        channels: channels of the image.
        num_classes: what "nc" stands for.
        scale: a key of `scales`; without scales, `depth_multiple` and `width_multiple` count.
        source: the file's name, for messages.

    Raises:
        ModelError: naming the file, the row's number and text, expected and found.
    """
    scaling = _scaling(network, scale, source)
    options = MappingProxyType({k: v for k, v in network.items() if k not in _PARTS})
    layers: list[nn.Module] = []
    rows: list[Row] = []
    widths: list[int] = []
    for index, text in enumerate(_rows(network, source)):
        try:
            module, row, width = _build_row(
                index, text, [*widths, channels], scaling, num_classes, options
            )
        except Exception as error:  # a user's layer may raise anything; its row must be named
            reason = error if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
            raise ModelError(f"{source}: row {index} {text!r}: {reason}") from error
        layers.append(module)
        rows.append(row)
        widths.append(width)
    kept = {i for row in rows for i in row.kept}
    return Parsed(nn.Sequential(*layers), sorted(kept), tuple(rows))


def _rows(network: Mapping[str, Any], source: str) -> list[Any]:
    parts = [network.get(key, []) for key in ("backbone", "head")]
    if not all(isinstance(part, Sequence) and not isinstance(part, str) for part in parts):
        raise ModelError(f"{source}: expected lists of rows under `backbone` and `head`")
    rows = [row for part in parts for row in part]
    if not rows:
        raise ModelError(
            f"{source}: no rows; expected `backbone` and `head` with rows "
            f"[from, repeats, layer, arguments], found keys {sorted(map(str, network))}"
        )
    return rows


def _scaling(network: Mapping[str, Any], scale: str | None, source: str) -> _Scaling:
    scales = network.get("scales")
    if not scales:
        factors = [network.get(f"{key}_multiple", 1.0) for key in ("depth", "width")]
        try:
            return _Scaling(float(factors[0]), float(factors[1]), math.inf)
        except (TypeError, ValueError):
            raise ModelError(
                f"{source}: expected depth_multiple and width_multiple as numbers, got {factors}"
            ) from None
    if scale not in scales:
        raise ModelError(f"{source}: scale {scale!r} isn't among {', '.join(map(str, scales))}")
    try:
        return _Scaling(*map(float, scales[scale]))
    except (TypeError, ValueError):
        raise ModelError(
            f"{source}: scale {scale!r}: expected [depth, width, max_channels], "
            f"got {scales[scale]!r}"
        ) from None


def _build_row(
    index: int,
    text: Any,
    widths: Sequence[int],
    scaling: _Scaling,
    num_classes: int,
    options: Mapping[str, Any],
) -> tuple[nn.Module, Row, int]:
    """Build one row; `widths` are the channels of all rows before it, then the image's."""
    sources, repeats, name, args = _check_row(index, text)
    if name not in LAYERS:
        raise ModelError(
            f"unknown layer {name!r}. {nearest(name, LAYERS)} "
            f"A layer of your own must be imported first (plugins=file.py). "
            f"Known: {', '.join(sorted(LAYERS))}"
        )
    entry = LAYERS[name]
    several = isinstance(text[0], Sequence)
    dead = [i for i in sources if widths[i] == 0]
    if dead:
        raise ModelError(f"expected feature maps, but row {dead[0]} is a head")
    if repeats > 1:
        repeats = max(round(repeats * scaling.depth), 1)
    if repeats > MAX_REPEATS:
        raise ModelError(f"expected at most {MAX_REPEATS} repeats, got {repeats}")
    context = BuildContext(
        layer=entry.cls,
        in_channels=tuple(widths[i] for i in sources),
        repeats=repeats,
        num_classes=num_classes,
        width=scaling.width,
        max_channels=scaling.max_channels,
        options=options,
    )
    plan = entry.plan([_resolve(arg, num_classes, options) for arg in args], context)
    if plan.stack > 1 and (several or entry.side):
        raise ModelError("a layer with several inputs can't be repeated; expected repeats 1")
    try:
        copies = [entry.cls(**plan.kwargs) for _ in range(plan.stack)]
    except TypeError as error:
        raise ModelError(f"{error}; expected {name}{inspect.signature(entry.cls)}") from error
    module = copies[0] if plan.stack == 1 else nn.Sequential(*copies)
    origins = text[0] if several else [text[0]]
    kept = tuple(i for i, one in zip(sources, origins, strict=True) if one != -1)
    arguments = ", ".join(f"{key}={value!r}" for key, value in plan.kwargs.items())
    row = Row(index, sources, kept, several, entry.side, context.repeats, name, arguments)
    return module, row, plan.out_channels


def _check_row(index: int, text: Any) -> tuple[tuple[int, ...], int, str, list[Any]]:
    """Check a row's form and make its sources absolute."""
    shape = "[from, repeats, layer, arguments]"
    if not isinstance(text, Sequence) or isinstance(text, str) or len(text) != 4:
        raise ModelError(f"expected {shape}")
    origin, repeats, name, args = text
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ModelError(f"expected repeats as a whole number >= 1 in {shape}, got {repeats!r}")
    if not isinstance(name, str):
        raise ModelError(f"expected a layer's name in {shape}, got {name!r}")
    if not isinstance(args, Sequence) or isinstance(args, str):
        raise ModelError(f"expected a list of arguments in {shape}, got {args!r}")
    origins = list(origin) if isinstance(origin, (list, tuple)) else [origin]
    sources = []
    for one in origins:
        if isinstance(one, bool) or not isinstance(one, int):
            raise ModelError(f"expected row numbers as `from` in {shape}, got {origin!r}")
        absolute = index + one if one < 0 else one
        if not (0 <= absolute < index or (absolute == IMAGE and index == 0)):
            raise ModelError(f"`from` {one} points at no earlier row (0 to {index - 1})")
        sources.append(absolute)
    if not sources:
        raise ModelError(f"expected at least one source as `from` in {shape}")
    return tuple(sources), repeats, name, list(args)


def _resolve(arg: Any, num_classes: int, options: Mapping[str, Any]) -> Any:
    """Replace a word by what it stands for."""
    if not isinstance(arg, str):
        return arg
    if arg == "nc":
        return num_classes
    return _WORDS.get(arg, options.get(arg, arg))
