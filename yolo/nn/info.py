# SPDX-License-Identifier: Apache-2.0
"""What can be known of a network without its weights: strides, operations, a table of layers."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yolo.errors import ModelError

if TYPE_CHECKING:
    from yolo.nn.model import BaseModel

_LOG = logging.getLogger(__name__)
NORM_FLOPS = 8  # subtract, divide, multiply, add; each counts two, like a multiply-add
PROBE_SIZE = 256  # side of the square image that strides are measured on, pixels


def meta_twin(model: BaseModel) -> BaseModel:
    """Copy a network in eval mode onto the meta device, without copying a weight."""
    memo: dict[int, object] = {}
    for p in model.parameters():
        empty = torch.empty_like(p, device="meta")
        memo[id(p)] = nn.Parameter(empty, requires_grad=p.requires_grad)
    for b in model.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    return copy.deepcopy(model, memo).eval()


def find_strides(model: BaseModel) -> tuple[int, ...]:
    """Measure the strides of the maps that reach the head.

    The network runs on a batch of no images, which costs nothing: shapes alone are worked out. (On
    the meta device it would do as well, but torch imports its compiler for that, which takes
    seconds.) A layer that can't work on nothing makes a real run on zeros necessary. Mode and
    statistics of the network stay as they are.

    Returns:
        Pixels of the image per cell, of each map.

    Raises:
        ModelError: naming the row that fails, or if a stride isn't a whole number.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        sizes = _head_sizes(model, images=0)
    except Exception as error:  # a user's layer may raise anything there
        _LOG.debug("no run without images (%s); running on zeros", error)
        sizes = _head_sizes(model, images=1)
    finally:
        for module, training in modes.items():
            module.training = training
    uneven = [h for h in sizes if PROBE_SIZE % h]
    if uneven:
        raise ModelError(
            f"the head's maps are {sizes} rows high for an image of {PROBE_SIZE}; expected "
            f"divisors of {PROBE_SIZE}. A convolution without padding before the head loses cells"
        )
    return tuple(PROBE_SIZE // h for h in sizes)


def _head_sizes(model: BaseModel, images: int) -> list[int]:
    """Run all rows but the head; give the heights of the maps that it would read."""
    head = model.rows[-1]
    device = next(model.parameters()).device
    image = torch.zeros(images, model.num_channels, PROBE_SIZE, PROBE_SIZE, device=device)
    reached: list[int] = []
    hooks = [
        module.register_forward_pre_hook(lambda _m, _x, i=row.index: reached.append(i))
        for row, module in zip(model.rows, model.model, strict=True)
    ]
    try:
        with torch.no_grad():
            feats = model.features(image, _example_side(model))
    except Exception as error:
        row = model.rows[reached[-1]]
        raise ModelError(f"row {row.index} {row.name}({row.arguments}): {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    maps: Sequence[Tensor] = feats if head.several else [feats]
    return [int(m.shape[-2]) for m in maps]


def _example_side(model: BaseModel) -> Any:
    """Return a side input of the right shape, where the head has an `example_side`."""
    return getattr(model.head, "example_side", None)


def count_flops(model: BaseModel, size: tuple[int, int]) -> tuple[int, list[int]]:
    """Count floating-point operations of one image, two per multiplication and addition.

    Convolutions and matrix products count, and batch normalisation with `NORM_FLOPS` per element;
    activations, pooling and copies don't. These are the numbers of the familiar tables
    (golden/models.json, `gflops_peer_8.4`).

    Args:
        model: the network; it isn't changed.
        size: (h, w) of the image, pixels.

    Returns:
        Operations of the whole network, and of each row.
    """
    from torch.utils.flop_counter import FlopCounterMode  # it brings Triton, which is slow to load

    twin = meta_twin(model)
    image = torch.zeros(1, model.num_channels, *size, device="meta")
    counts = [0] * len(twin.rows)

    def norm(_module: nn.Module, _given: object, out: Tensor, *, index: int) -> None:
        counts[index] += NORM_FLOPS * out.numel()

    for index, module in enumerate(twin.model):
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.register_forward_hook(partial(norm, index=index))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        twin(image, _example_side(twin))
    by_module = counter.get_flop_counts()
    rest = counter.get_total_flops()
    for index in range(len(counts)):
        row = sum(by_module.get(f"{type(twin).__name__}.model.{index}", {}).values())
        counts[index] += row
        rest -= row
    counts[-1] += rest  # the head decodes outside of its forward
    return sum(counts), counts


def report(
    model: BaseModel, size: tuple[int, int], detailed: bool, verbose: bool
) -> tuple[int, int, int, float]:
    """Count, and log the table of layers; see `BaseModel.info`."""
    try:
        flops, by_row = count_flops(model, size)
    except Exception as error:  # a user's layer may raise anything on meta
        _LOG.warning("operations can't be counted: %s", error)
        flops, by_row = 0, [0] * len(model.rows)
    layers = sum(1 for _ in model.modules())
    parameters = sum(p.numel() for p in model.parameters())
    gradients = sum(p.numel() for p in model.parameters() if p.requires_grad)
    gflops = flops / 1e9
    if verbose:
        _LOG.info("%s", "\n".join(_table(model, by_row)))
        if detailed:
            _LOG.info("%s", "\n".join(_parameters(model)))
        _LOG.info(
            "%s: %d layers, %s parameters, %s gradients, %.1f GFLOPs at %d x %d",
            type(model).__name__, layers, f"{parameters:,}", f"{gradients:,}", gflops, *size,
        )  # fmt: skip
    return layers, parameters, gradients, gflops


def _table(model: BaseModel, flops: Sequence[int]) -> list[str]:
    """Write a line for each row."""
    lines = [f"{'row':>3}  {'from':<16}{'n':>3}{'parameters':>12}{'GFLOPs':>9}  layer"]
    for row, module, count in zip(model.rows, model.model, flops, strict=True):
        size = sum(p.numel() for p in module.parameters())
        origin = ", ".join(map(str, row.sources))
        lines.append(
            f"{row.index:>3}  {origin:<16}{row.repeats:>3}{size:>12,}{count / 1e9:>9.3f}  "
            f"{row.name}({row.arguments})"
        )
    return lines


def _parameters(model: BaseModel) -> list[str]:
    """Write a line for each parameter."""
    return [
        f"{name:<48}{'x'.join(map(str, p.shape)):>18}{p.numel():>12,}"
        f"  {'' if p.requires_grad else 'frozen'}".rstrip()
        for name, p in model.named_parameters()
    ]
