# SPDX-License-Identifier: Apache-2.0
"""The profiler's files, and that it does nothing unless asked."""

from __future__ import annotations

import json

import pytest
import torch

from yolo.engine.profiling import RECORDED, SKIPPED, StepProfiler


def run(profiler, steps):
    for _ in range(steps):
        profiler.before_step()
        torch.ones(4, 4) @ torch.ones(4, 4)
        profiler.after_step()
    profiler.close()


@pytest.mark.parametrize("steps", [SKIPPED + 2, SKIPPED + RECORDED + 4])
def test_the_first_steps_are_left_out(tmp_path, steps):
    run(StepProfiler(tmp_path, True), steps)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    products = [event for event in events if event.get("name") == "aten::matmul"]
    assert len(products) == min(steps - SKIPPED, RECORDED)
    assert "aten::mm" in (tmp_path / "profile.txt").read_text()


@pytest.mark.parametrize(("enabled", "steps"), [(False, 20), (True, SKIPPED), (True, 0)])
def test_nothing_is_written_without_need(tmp_path, enabled, steps):
    run(StepProfiler(tmp_path, enabled), steps)
    assert not list(tmp_path.iterdir())
