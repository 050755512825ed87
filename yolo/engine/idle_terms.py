# SPDX-License-Identifier: Apache-2.0
"""Loss terms that cost something and teach nothing: a mistake that no curve shows.

Looked for once an epoch: one batch's terms are run backward one by one, as far as the head's
outputs (or the features that a distiller compares), which is a small part of a step. Terms that
show no gradient there are looked at again in the 2nd, 4th, 8th, ... batch of the epoch. No step
waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yolo.engine.late import LateReader
from yolo.errors import ConfigError

if TYPE_CHECKING:
    from yolo.engine.ranks import Ranks
    from yolo.nn.losses import LossReport

SCALE = 1024.0
"""Factor of the gradients looked at, so that half precision doesn't round them to nothing."""

NOTHING = 1e-8
"""Up to this value a term had nothing to learn: no object for it, a gain of 0, a perfect answer."""


class IdleTerms:
    """Watches the calls of a criterion in training.

    Args:
        criterion: its reports name their `live` terms; others aren't judged.
        watch: look at all. Where modules are frozen a term may have nobody to teach; where ranks
            share BatchNorm, none may run backward by itself.
    """

    def __init__(self, criterion: nn.Module, watch: bool = True) -> None:
        self._start()
        if watch:
            criterion.register_forward_hook(self._look)

    def _start(self) -> None:
        self.batches = 0
        self.seen: dict[str, Tensor] = {}  # a term was above 0, and had a gradient: bool, (2,)
        self._reader = LateReader()

    @property
    def teaching(self) -> set[str]:
        """Terms that have shown a gradient in this epoch, as far as the host knows."""
        known = self._reader.latest() or [0.0] * len(self.seen)
        return {name for name, teaches in zip(self.seen, known, strict=False) if teaches}

    def _look(self, criterion: nn.Module, given: tuple[Any, ...], report: LossReport) -> None:
        if not (torch.is_grad_enabled() and report.total.requires_grad):
            return
        self.batches += 1
        if self.batches & (self.batches - 1):
            return
        stages = getattr(given[0], "inputs", (given[0],))
        teaching = self.teaching
        for name, term in report.live.items():
            if name not in teaching:
                costs = term.detach().abs() > NOTHING
                now = torch.stack((costs, costs & _has_gradient(term, stages)))
                self.seen[name] = self.seen.get(name, now) | now
        if self.seen:
            self._reader.push(torch.stack([flags[1] for flags in self.seen.values()]))

    def end_epoch(self, ranks: Ranks) -> None:
        """Judge the epoch, and start the next.

        Raises:
            ConfigError: naming the terms that weren't 0 and had no gradient.
        """
        found = {name for name, flags in self.seen.items() if flags.tolist() == [True, False]}
        idle = set.intersection(*ranks.gather(found))
        self._start()
        if idle:
            raise ConfigError(
                f"loss: expected every term to teach something, found {', '.join(sorted(idle))} "
                "above 0 but without any gradient for a whole epoch; look for what detaches it "
                "from the network's outputs (no_grad, detach, item, round, argmax), or set its "
                "gain to 0"
            )


def _has_gradient(term: Tensor, stages: Any) -> Tensor:
    """Tell, as a 0-d bool tensor, whether a term depends on any of the tensors in a tree."""
    inputs = [x for x in _tensors(stages) if x.requires_grad]
    if not (inputs and term.requires_grad):
        return torch.zeros_like(term, dtype=torch.bool)
    slopes = torch.autograd.grad(
        term, inputs, torch.full_like(term, SCALE), retain_graph=True, allow_unused=True
    )
    some = [slope.any() for slope in slopes if slope is not None]
    return torch.stack(some).any() if some else torch.zeros_like(term, dtype=torch.bool)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a tree."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
