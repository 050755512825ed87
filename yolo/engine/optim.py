# SPDX-License-Identifier: Apache-2.0
"""Parameter groups, the choice of an optimizer, and the schedule of its rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from yolo.errors import ConfigError, nearest

GROUPS = ("bias", "weight", "norm")
"""Names of the parameter groups, in the order of `lr/pg0`, `lr/pg1`, `lr/pg2`."""

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": torch.optim.SGD,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "Adamax": torch.optim.Adamax,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "RMSProp": torch.optim.RMSprop,
}
_FUSED = {"SGD", "Adam", "AdamW"}
_BETAS = {"Adam", "AdamW", "Adamax", "NAdam", "RAdam"}


def split_parameters(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Sort parameters into the groups that get their own rate and decay.

    Returns:
        `bias` (any parameter with "bias" in its name), `norm` (weights of normalisation layers and
        logit scales) and `weight` (the rest, the only ones that decay), each a list of
        (name, parameter).
    """
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in GROUPS}
    norms = tuple(v for k, v in vars(nn).items() if "Norm" in k and isinstance(v, type))
    for module_name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{leaf}" if module_name else leaf
            if "bias" in name:
                groups["bias"].append((name, parameter))
            elif isinstance(module, norms) or leaf == "logit_scale":
                groups["norm"].append((name, parameter))
            else:
                groups["weight"].append((name, parameter))
    return groups


FRESH_ADAM_LR = 0.003
"""Learning rate of AdamW for networks that start from random weights."""


@dataclass(frozen=True, slots=True)
class OptimizerChoice:
    """An optimizer with the rates that belong to it."""

    name: str
    lr: float
    momentum: float
    warmup_bias_lr: float


def choose_optimizer(iterations: int, num_classes: int, fresh: bool) -> OptimizerChoice:
    """Pick an optimizer for `optimizer=auto`.

    Args:
        iterations: optimizer steps of the whole run at the nominal batch.
        num_classes: classes of the data; when trained weights are tuned further, more classes ask
            for smaller Adam steps, because their new branches start with large gradients.
        fresh: the network starts from random weights.

    Returns:
        AdamW for runs of up to 10,000 steps, SGD for longer ones. Fresh weights get larger steps
        than trained ones: a short run has few of them (docs/bccd.md has the measurement).
    """
    if iterations > 10_000:
        return OptimizerChoice("SGD", 0.01, 0.9, 0.0)
    lr = FRESH_ADAM_LR if fresh else round(0.002 * 5 / (4 + num_classes), 6)
    return OptimizerChoice("AdamW", lr, 0.9, 0.0)


def build_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    factors: Mapping[nn.Parameter, float] = MappingProxyType({}),
) -> Optimizer:
    """Build an optimizer with one parameter group for each of `GROUPS`, and each factor of rates.

    The groups at the plain rates come first, even those that `factors` has left empty.

    Args:
        model: whose parameters are optimized.
        name: a key of `OPTIMIZERS`, in any case.
        lr: learning rate.
        momentum: SGD's and RMSProp's momentum, the Adam family's first beta.
        weight_decay: for the `weight` group alone.
        factors: what the rates of some parameters are multiplied by.

    Raises:
        ConfigError: if the name is unknown.
    """
    by_lower = {key.lower(): key for key in OPTIMIZERS}
    key = by_lower.get(name.lower())
    if key is None:
        raise ConfigError(
            f"optimizer={name!r} is unknown. {nearest(name, OPTIMIZERS)} "
            f"Expected auto or one of {', '.join(OPTIMIZERS)}"
        )
    options: dict[str, Any] = {"lr": lr}
    if key in _BETAS:
        options["betas"] = (momentum, 0.999)
    else:
        options["momentum"] = momentum
    if key == "SGD":
        options["nesterov"] = momentum > 0
    if key in _FUSED and next(model.parameters()).device.type in {"cpu", "cuda"}:
        options["fused"] = True
    split = split_parameters(model)
    groups: list[dict[str, Any]] = []
    for factor in (1.0, *sorted({*factors.values()} - {1.0})):
        for group in GROUPS:
            chosen = [p for _, p in split[group] if factors.get(p, 1.0) == factor]
            if chosen or (factor == 1 and split[group]):
                decay = weight_decay if group == "weight" else 0.0
                own = {"name": group, "factor": factor, "lr": lr * factor, "weight_decay": decay}
                groups.append({"params": chosen, **own})
    return OPTIMIZERS[key](groups, **options)


@dataclass(frozen=True, slots=True)
class Rates:
    """What the schedule sets before one iteration."""

    lr_bias: float
    lr: float
    momentum: float
    accumulate: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate, momentum and accumulation as functions of the iteration alone.

    Warm-up runs linearly over the iterations 0 to `warmup_steps`: the rate rises from 0 (from
    `warmup_bias_lr` for biases) to the epoch's, the momentum from `warmup_momentum`, the number of
    accumulated batches from 1 to `accumulate`.

    Attributes:
        lr0: initial rate.
        lrf: final rate as a share of `lr0`.
        epochs: length of the run.
        cosine: half a cosine instead of a straight line.
        warmup_steps: iterations of the warm-up, 0 for none.
        accumulate: batches an optimizer step at the nominal batch.
    """

    lr0: float
    lrf: float
    epochs: int
    cosine: bool
    warmup_steps: int
    warmup_bias_lr: float
    momentum: float
    warmup_momentum: float
    accumulate: int

    def factor(self, epoch: int) -> float:
        """Return the share of `lr0` that holds in `epoch` (0-based)."""
        if self.cosine:
            return (1 - math.cos(epoch * math.pi / self.epochs)) / 2 * (self.lrf - 1) + 1
        return max(1 - epoch / self.epochs, 0) * (1 - self.lrf) + self.lrf

    def at(self, iteration: int, epoch: int) -> Rates:
        """Return the rates of `iteration` (0-based, over the whole run), which lies in `epoch`."""
        lr = self.lr0 * self.factor(epoch)
        if self.warmup_steps <= 0 or iteration > self.warmup_steps:
            return Rates(lr, lr, self.momentum, self.accumulate)
        share = iteration / self.warmup_steps
        return Rates(
            lr_bias=self.warmup_bias_lr + share * (lr - self.warmup_bias_lr),
            lr=share * lr,
            momentum=self.warmup_momentum + share * (self.momentum - self.warmup_momentum),
            accumulate=max(1, round(1 + share * (self.accumulate - 1))),
        )


def apply_rates(optimizer: Optimizer, rates: Rates) -> None:
    """Write `rates` into the optimizer's groups."""
    for group in optimizer.param_groups:
        rate = rates.lr_bias if group.get("name") == "bias" else rates.lr
        group["lr"] = rate * group.get("factor", 1.0)
        if "betas" in group:
            group["betas"] = (rates.momentum, group["betas"][1])
        elif "momentum" in group:
            group["momentum"] = rates.momentum


def warmup_steps(warmup_epochs: float, epochs: int, batches: int) -> int:
    """Return the iterations of a warm-up, which never takes a run's last epoch.

    The classic build's floor of 100 iterations is left out: a run of fewer iterations than that
    would end inside its own warm-up.
    """
    return round(min(warmup_epochs, epochs - 1) * batches)
