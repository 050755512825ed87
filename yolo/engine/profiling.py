# SPDX-License-Identifier: Apache-2.0
"""Where the time of a training step goes."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

LOGGER = logging.getLogger(__name__)

SKIPPED, RECORDED = 3, 5
"""Steps at the start, in which caches fill, and steps after them that are measured."""


class StepProfiler:
    """Measures a few steps, then writes profile.txt (a table) and trace.json.

    The trace opens in a browser at chrome://tracing or https://ui.perfetto.dev.

    Args:
        folder: where to write.
        enabled: False does nothing at all.
    """

    def __init__(self, folder: Path, enabled: bool) -> None:
        self.folder = folder
        self.steps = 0
        self._profiler: torch.profiler.profile | None = None
        if enabled:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities)

    def before_step(self) -> None:
        """Start to measure once the first steps are over."""
        if self._profiler is not None and self.steps == SKIPPED:
            self._profiler.start()

    def after_step(self) -> None:
        """Count a step, and write the result after the last one to be measured."""
        if self._profiler is None:
            return
        self.steps += 1
        if self.steps == SKIPPED + RECORDED:
            self.close()

    def close(self) -> None:
        """Write what was measured, if that hasn't been done."""
        profiler, self._profiler = self._profiler, None
        if profiler is None or self.steps <= SKIPPED:
            return
        profiler.stop()
        table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40)
        (self.folder / "profile.txt").write_text(table, encoding="utf-8")
        profiler.export_chrome_trace(str(self.folder / "trace.json"))
        LOGGER.info("%s: profile.txt and trace.json of %d steps", self.folder, RECORDED)
