# SPDX-License-Identifier: Apache-2.0
"""Which epoch is the best so far, and when to give up waiting for a better one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from yolo.errors import ConfigError, nearest


@dataclass
class BestEpoch:
    """Follow one metric over the epochs.

    Attributes:
        monitor: name of the metric, a key of the epoch's metrics.
        larger: True if larger is better.
        patience: epochs without improvement after which to stop; 0 means never.
        value: best value so far, None before the first.
        epoch: 0-based epoch of the best value.
    """

    monitor: str
    larger: bool
    patience: int
    value: float | None = None
    epoch: int = -1

    @classmethod
    def for_metric(
        cls, monitor: str, mode: str | None, patience: int, known: Iterable[str]
    ) -> BestEpoch:
        """Build from options; without a mode, losses shall fall and all else shall rise.

        Raises:
            ConfigError: if no such metric exists.
        """
        names = list(known)
        short = {n.split("/")[-1].split("(")[0]: n for n in reversed(names)}
        asked = monitor.removeprefix("val/").removeprefix("metrics/")
        full = monitor if monitor in names else short.get(asked)
        if full is None or (monitor.startswith("val/") and full.startswith("train/")):
            raise ConfigError(
                f"monitor={monitor!r} is no metric of this task. {nearest(monitor, names)} "
                f"Expected one of {', '.join(names)}"
            )
        return cls(full, mode == "max" if mode else "loss" not in full, patience)

    def update(self, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Take an epoch's metrics; return True if it is the best so far (ties: the first)."""
        value = float(metrics[self.monitor])
        if math.isnan(value):
            return False
        better = self.value is None or (value > self.value if self.larger else value < self.value)
        if better:
            self.value, self.epoch = value, epoch
        return better

    def exhausted(self, epoch: int) -> bool:
        """Return True if patience has run out at `epoch`."""
        return self.patience > 0 and self.value is not None and epoch - self.epoch >= self.patience
