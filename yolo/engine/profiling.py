# SPDX-License-Identifier: Apache-2.0
"""Where the time of a training step goes."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity

LOGGER = logging.getLogger(__name__)

SKIPPED, RECORDED = 3, 5
"""Steps at the start, in which caches fill, and steps after them that are traced; all later ones
are timed, without the cost of tracing."""

REST = "logging, callbacks"
"""The stage between all others."""

T = TypeVar("T")


class StageClock:
    """Shares out wall time among stages: at each moment the innermost open one gets it.

    Args:
        device: waited for at each change of stage, so that its work counts where it was asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.running = False
        self._open = [REST]
        self._since = 0.0

    def start(self) -> None:
        """Let the time run."""
        self.running, self._since = True, time.perf_counter()

    def stop(self) -> None:
        """Stop the time."""
        self._share_out()
        self.running = False

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Open a stage within the one that is open."""
        self._share_out()
        self._open.append(name)
        try:
            yield
        finally:
            self._share_out()
            self._open.pop()

    def _share_out(self) -> None:
        """Give the open stage the time since the last change."""
        if self.running:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            now, name = time.perf_counter(), self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
            self._since = now

    def table(self, steps: int) -> str:
        """Return milliseconds a step and shares by stage, the longest first."""
        total = sum(self.seconds.values())
        rows = [*sorted(self.seconds.items(), key=lambda row: -row[1]), ("all", total)]
        lines = [f"{'stage':20}{'ms a step':>12}{'share':>9}"]
        lines += [f"{n:20}{1000 * s / steps:12.2f}{s / total:9.1%}" for n, s in rows]
        return "\n".join(lines)


class StepProfiler:
    """Traces a few steps and times the later ones; writes profile.txt (tables) and trace.json.

    The trace opens in a browser at chrome://tracing or https://ui.perfetto.dev.

    Args:
        folder: where to write.
        enabled: False does nothing at all.
        device: where the network is.
    """

    def __init__(self, folder: Path, enabled: bool, device: torch.device) -> None:
        self.folder = folder
        self.enabled = enabled
        self.steps = 0
        self.clock = StageClock(device)
        self._tracer: torch.profiler.profile | None = None
        self._operations: str | None = None

    def stage(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Open a stage of the step."""
        return self.clock.stage(name) if self.enabled else contextlib.nullcontext()

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Let all calls of an object's method count as a stage, if it has one."""
        if not self.enabled or not hasattr(owner, method):
            return
        work: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.clock.stage(name):
                return work(*args, **kwargs)

        setattr(owner, method, timed)

    def batches(self, items: Iterable[T]) -> Iterator[T]:
        """Yield an epoch's batches; waiting for them is the stage "data".

        The clock runs from the first untraced step to the epoch's end, and through later epochs.
        """
        waiting = iter(items)
        try:
            while True:
                if self.enabled and self.steps >= SKIPPED + RECORDED and not self.clock.running:
                    self.clock.start()
                with self.stage("data"):
                    try:
                        item = next(waiting)
                    except StopIteration:
                        return
                yield item
        finally:
            self.clock.stop()

    def before_step(self) -> None:
        """Start to trace once the first steps are over."""
        if self.enabled and self.steps == SKIPPED:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._tracer = torch.profiler.profile(activities=activities)
            self._tracer.start()

    def after_step(self) -> None:
        """Count a step, and end the trace after its last one."""
        self.steps += 1
        if self.steps == SKIPPED + RECORDED:
            self._end_trace()

    def _end_trace(self) -> None:
        tracer, self._tracer = self._tracer, None
        if tracer is not None:
            tracer.stop()
            averages = tracer.key_averages()
            self._operations = averages.table(sort_by="self_cpu_time_total", row_limit=40)
            tracer.export_chrome_trace(str(self.folder / "trace.json"))

    def close(self) -> None:
        """Write what was measured, if that hasn't been done."""
        self._end_trace()
        if self._operations is None:
            return
        timed = self.steps - SKIPPED - RECORDED
        stages = f"no step was timed: that begins with step {SKIPPED + RECORDED + 1}"
        if timed > 0:
            stages = self.clock.table(timed)
        text = f"{stages}\n\n{self._operations}"
        (self.folder / "profile.txt").write_text(text, encoding="utf-8")
        LOGGER.info("%s: profile.txt and trace.json", self.folder)
        self._operations = None
