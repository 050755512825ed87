# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of a model: the weights that are validated, saved and used."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import nn

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
        parameters = [
            p.to(a.dtype) for p, a in zip(model.parameters(), self.ema.parameters(), strict=True)
        ]
        torch._foreach_lerp_(list(self.ema.parameters()), parameters, weight)
        for buffer, average in zip(model.buffers(), self.ema.buffers(), strict=True):
            if average.dtype.is_floating_point:
                # a step that was skipped may have left its mark on BatchNorm's statistics
                average.lerp_(torch.where(torch.isfinite(buffer), buffer, average), weight)

    @torch.no_grad()
    def repair(self, model: nn.Module) -> None:
        """Replace what isn't finite in the model's buffers by the average's values."""
        for buffer, average in zip(model.buffers(), self.ema.buffers(), strict=True):
            if buffer.dtype.is_floating_point:
                buffer.copy_(torch.where(torch.isfinite(buffer), buffer, average))
