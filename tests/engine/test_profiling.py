# SPDX-License-Identifier: Apache-2.0
"""The profiler's files, that its stages add up, and that it does nothing unless asked."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch

from yolo.engine import profiling
from yolo.engine.profiling import RECORDED, REST, SKIPPED, StageClock, StepProfiler

CPU = torch.device("cpu")


@pytest.fixture
def sleep(monkeypatch):
    """Let the profiler's clock stand still, and return what moves it."""
    moment = [0.0]
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: moment[0])

    def sleep(seconds):
        moment[0] += seconds

    return sleep


def run(profiler, steps):
    for _ in profiler.batches(range(steps)):
        profiler.before_step()
        torch.ones(4, 4) @ torch.ones(4, 4)
        profiler.after_step()
    profiler.close()


@pytest.mark.parametrize("steps", [SKIPPED + 2, SKIPPED + RECORDED + 4])
def test_the_first_steps_are_left_out(tmp_path, steps):
    run(StepProfiler(tmp_path, True, CPU), steps)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    products = [event for event in events if event.get("name") == "aten::matmul"]
    assert len(products) == min(steps - SKIPPED, RECORDED)
    text = (tmp_path / "profile.txt").read_text()
    assert "aten::mm" in text
    assert text.startswith("stage" if steps > SKIPPED + RECORDED else "no step was timed")


@pytest.mark.parametrize(("enabled", "steps"), [(False, 20), (True, SKIPPED), (True, 0)])
def test_nothing_is_written_without_need(tmp_path, enabled, steps):
    run(StepProfiler(tmp_path, enabled, CPU), steps)
    assert not list(tmp_path.iterdir())


def test_the_innermost_stage_gets_the_time(sleep):
    clock = StageClock(CPU)
    with clock.stage("before"):
        sleep(0.01)
    clock.start()
    with clock.stage("loss"):
        with clock.stage("assigner"):
            sleep(0.04)
        sleep(0.02)
    clock.stop()
    sleep(0.01)
    assert clock.seconds == pytest.approx({REST: 0, "loss": 0.02, "assigner": 0.04})


def test_a_watched_method_is_a_stage(tmp_path):
    owner = SimpleNamespace(match=lambda a, *, b: a + b)
    StepProfiler(tmp_path, False, CPU).watch(owner, "match", "assigner")
    profiler = StepProfiler(tmp_path, True, CPU)
    profiler.watch(owner, "match", "assigner")
    profiler.watch(owner, "absent", "x")
    profiler.clock.start()
    assert owner.match(1, b=2) == 3
    assert "assigner" in profiler.clock.seconds


def shares(text):
    """Return stage -> ms a step from a profile.txt."""
    rows = re.findall(r"^(\S.*?)\s+([\d.]+)\s+[\d.]+%$", text.split("\n\n")[0], re.M)
    return {name: float(ms) for name, ms in rows}


def test_epochs_are_timed_and_what_lies_between_is_not(tmp_path, sleep):
    profiler = StepProfiler(tmp_path, True, CPU)

    def slowly(count):
        for i in range(count):
            sleep(0.01)
            yield i

    for count in (SKIPPED + RECORDED, 5, 5):
        for _ in profiler.batches(slowly(count)):
            profiler.before_step()
            with profiler.stage("forward"):
                sleep(0.02)
            profiler.after_step()
        sleep(0.2)
    profiler.close()
    found = shares((tmp_path / "profile.txt").read_text())
    assert found == {"data": 10, "forward": 20, REST: 0, "all": 30}
