# SPDX-License-Identifier: Apache-2.0
"""Reading numbers from a device without making the host wait for it."""

from __future__ import annotations

import torch
from torch import Tensor

from yolo.errors import YoloError


class DivergedError(YoloError, ArithmeticError):
    """The loss wasn't finite in several steps in a row."""


class LateReader:
    """Give the host a device tensor's values some steps after they were computed.

    On the CPU the values are there at once. On CUDA they are copied into pinned memory behind an
    event, and only read once the event has passed: no call here ever waits.
    """

    def __init__(self) -> None:
        self._latest: list[float] | None = None
        self._pending: tuple[Tensor, torch.cuda.Event] | None = None

    def push(self, values: Tensor) -> None:
        """Offer the current values, a 1-d tensor. Skipped while an earlier copy is under way."""
        values = values.detach()
        if values.device.type != "cuda":
            self._latest = values.tolist()
            return
        self._poll()
        if self._pending is None:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending = (host, event)

    def _poll(self) -> None:
        if self._pending is not None and self._pending[1].query():
            self._latest = self._pending[0].tolist()
            self._pending = None

    def latest(self) -> list[float] | None:
        """Return the newest values that have arrived, or None before the first."""
        self._poll()
        return self._latest


class FiniteGuard:
    """Count optimizer steps that were skipped because the loss wasn't finite.

    The counters live on the device; `check` reads them late, so that a step costs no
    synchronisation.

    Args:
        device: where the losses are.
        limit: skipped steps in a row that end the run.
    """

    def __init__(self, device: torch.device, limit: int = 3) -> None:
        self.limit = limit
        self.counts = torch.zeros(3, device=device)  # steps skipped, in a row now, worst row
        self._reader = LateReader()

    def observe(self, bad: Tensor) -> None:
        """Take note of a step; `bad` is a 0-d bool tensor on the device."""
        flag = bad.to(self.counts.dtype)
        row = (self.counts[1] + flag) * flag
        total, worst = self.counts[0] + flag, torch.maximum(self.counts[2], row)
        self.counts = torch.stack((total, row, worst))
        self._reader.push(self.counts)

    @property
    def skipped(self) -> int:
        """Steps skipped so far, as far as the host knows."""
        return int((self._reader.latest() or [0.0])[0])

    def check(self) -> None:
        """Raise if too many steps in a row were skipped.

        Raises:
            DivergedError: with what to change.
        """
        latest = self._reader.latest()
        if latest and latest[2] >= self.limit:
            raise DivergedError(
                f"the loss was not finite in {int(latest[2])} steps in a row, so training stopped; "
                "the last good checkpoint is kept. Lower lr0, or look at the labels with "
                "`yolo check`"
            )
