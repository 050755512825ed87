# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of a model: the weights that are validated, saved and used."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Decay = Callable[[int], float]


def saturating_decay(limit: float = 0.9999, tau: float = 2000.0) -> Decay:
    """Return decay(u) = limit * (1 - exp(-u / tau)) for u = 1, 2, ... optimizer steps.

    With the default constants it suits runs of tens of thousands of steps; in a run of a few
    hundred the average is the last few steps alone.
    """
    return lambda updates: limit * (1.0 - math.exp(-updates / tau))


def power_decay(width: float = 0.1, limit: float = 0.9999) -> Decay:
    """Return a decay whose averaging window is a fixed share of the steps taken so far.

    decay(u) = min(limit, (1 - 1/u) ** (gamma + 1)), with gamma such that the profile's standard
    deviation is `width` times the number of steps: short runs are averaged as well as long ones.

    Args:
        width: relative standard deviation of the averaging profile, in (0, 0.28].
        limit: largest decay, which bounds the window of very long runs.

    Source: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models,
        arXiv:2312.02696, section 3 and appendix C.
    """
    roots = torch.linalg.eigvals(
        torch.tensor(
            # companion matrix of g^3 + 7 g^2 + (16 - w^-2) g + (12 - w^-2)
            [
                [-7.0, -(16.0 - width**-2), -(12.0 - width**-2)],
                [1.0, 0.0, 0.0],
                [0.0, 1.0, 0.0],
            ],
            dtype=torch.float64,
        )
    )
    gamma = float(roots.real.max())
    return lambda updates: min(limit, (1.0 - 1.0 / max(updates, 1)) ** (gamma + 1.0))


class ModelEMA:
    """Keep a moving average of every float entry of a model's state, BatchNorm's included.

    Integer entries are copied once and not averaged.

    Args:
        model: the model in training; it is deep-copied.
        decay: decay as a function of the number of updates, counted from 1.
    """

    def __init__(self, model: nn.Module, decay: Decay) -> None:
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards `model`. Call once after every optimizer step."""
        self.updates += 1
        weight = 1.0 - self.decay(self.updates)
        buffers, averages = self._buffers(model)
        values = [*model.parameters(), *_finite(buffers, averages)]
        averages = [*self.ema.parameters(), *averages]
        values = [value.to(a.dtype) for value, a in zip(values, averages, strict=True)]
        torch._foreach_lerp_(averages, values, weight)

    @torch.no_grad()
    def repair(self, model: nn.Module) -> None:
        """Replace what isn't finite in the model's buffers by the average's values."""
        buffers, averages = self._buffers(model)
        if buffers:
            torch._foreach_copy_(buffers, _finite(buffers, averages))

    def _buffers(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Return the buffers that are averaged, and their averages."""
        pairs = zip(model.buffers(), self.ema.buffers(), strict=True)
        averaged = [pair for pair in pairs if pair[1].dtype.is_floating_point]
        return [buffer for buffer, _ in averaged], [average for _, average in averaged]


def _finite(buffers: list[Tensor], averages: list[Tensor]) -> list[Tensor]:
    """Return the buffers with what isn't finite replaced by the averages.

    A step that was skipped may have left its mark on BatchNorm's statistics. There are two small
    buffers a layer, so all are looked at as one: on CUDA the number of calls is what takes time.
    """
    if not buffers:
        return []
    new, old = (torch.cat([part.flatten() for part in parts]) for parts in (buffers, averages))
    kept = torch.where(torch.isfinite(new), new, old).split([part.numel() for part in buffers])
    return [part.view_as(buffer) for part, buffer in zip(kept, buffers, strict=True)]
