# SPDX-License-Identifier: Apache-2.0
"""The two ends of a pipe: one process measures when it is told to, the other tells.

Both sides of `benchmarks.run` import this file, each in its own environment; it needs the standard
library alone. A driver makes itself ready, says so, and then measures one round for every line that
it reads, until the lines end. So two drivers can measure in turns, and neither works while the
other does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class Stopped(Exception):  # noqa: N818 - the end of a measurement is no error
    """No further round is wanted."""


class Rounds:
    """The driver's end. What the measured library prints goes to the standard error stream.

    Args:
        gpu_mib: tells the most memory of a GPU that this process has held; None without one.
    """

    def __init__(self, gpu_mib: Callable[[], float | None] = lambda: None) -> None:
        self._gpu_mib = gpu_mib
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def _say(self, **words: Any) -> None:
        self._out.write(json.dumps(words) + "\n")
        self._out.flush()

    def begin(self) -> None:
        """Say that all is ready, and wait for the first round."""
        self._say(ready=True)
        self._wait()

    def end(self, seconds: float, count: int) -> None:
        """Report a round of `count` items, and wait for the next one."""
        self._say(seconds=seconds, count=count, gpu_mib=self._gpu_mib())
        self._wait()

    def _wait(self) -> None:
        if not sys.stdin.readline():
            raise Stopped

    def repeat(
        self, work: Callable[[], int], warm: int = 1, before: Callable[[], None] = lambda: None
    ) -> None:
        """Measure `work`, which returns how many items it did.

        Neither the first `warm` calls nor what is done `before` each call count.
        """
        for _ in range(warm):
            work()
        self.begin()
        while True:
            before()
            start = time.perf_counter()
            count = work()
            self.end(time.perf_counter() - start, count)

    def steps(
        self, batch: int, each: int, warm: int, finish: Callable[[], None]
    ) -> Callable[..., None]:
        """Return what a training calls before each step: it measures `each` steps a round.

        Args:
            batch: images a step.
            each: steps a round.
            warm: steps before the first round.
            finish: waits until the device has done what it was given.
        """
        step, start = 0, 0.0

        def before_step(_: object = None) -> None:
            nonlocal step, start
            if step >= warm and (step - warm) % each == 0:
                finish()
                if step == warm:
                    self.begin()
                else:
                    self.end(time.perf_counter() - start, each * batch)
                start = time.perf_counter()
            step += 1

        return before_step


def drive(
    cases: dict[str, Callable[[Rounds, dict[str, Any]], None]],
    gpu_mib: Callable[[], float | None] = lambda: None,
) -> None:
    """Run the case of the command line: its name, and its options as JSON."""
    rounds = Rounds(gpu_mib)
    name, options = sys.argv[1], json.loads(sys.argv[2])
    try:
        cases[name](rounds, options)
    except Stopped:
        os._exit(0)  # leave without a farewell: other threads and workers may still be busy


class Driver:
    """The other end: starts a driver and asks it for rounds.

    Args:
        python: the interpreter of its environment.
        script: the driver.
        case: what it measures.
        options: of the case, plain data.
        folder: where it works; its words go to `log`.
        log: a file.

    Attributes:
        gpu_mib: see `Rounds`; as of the last round.
    """

    def __init__(
        self,
        python: Path,
        script: Path,
        case: str,
        options: dict[str, Any],
        folder: Path,
        log: Path,
    ) -> None:
        self.log = log
        self.gpu_mib: float | None = None
        self._together = 0
        with log.open("w") as words:
            self._process = subprocess.Popen(
                [str(python), str(script), case, json.dumps(options)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, cwd=folder, text=True,
                start_new_session=True,
            )  # fmt: skip
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        while line and not line.startswith("{"):  # what a library prints when it is imported
            line = self._process.stdout.readline()
        if not line:
            tail = self.log.read_text(errors="replace")[-1500:]
            raise RuntimeError(f"{self._process.args!r:.300} ended early:\n{tail}")
        words: dict[str, Any] = json.loads(line)
        return words

    def round(self) -> tuple[float, int]:
        """Let it measure once; return (seconds, items)."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        words = self._read()
        self.gpu_mib = words["gpu_mib"]
        shares = [_number(pid, "smaps_rollup", "Pss") for pid in _tree(self._process.pid)]
        self._together = max(self._together, sum(shares))
        return words["seconds"], words["count"]

    def peak_mib(self) -> float | None:
        """Return the peak memory of its processes, MiB; None without Linux's /proc.

        The peak of the first process, or what all of them together held after a round, if that is
        more; there, pages that processes share count in shares.
        """
        peak = max(_number(self._process.pid, "status", "VmHWM"), self._together)
        return peak / 1024 if peak else None

    def close(self) -> None:
        """End it and all that it started."""
        assert self._process.stdin
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Gauge:
    """Samples how busy a GPU is, ten times a second, by the tool that comes with its driver.

    A sample is the share of the tool's last period (up to a second) in which anything ran there, so
    what is measured should take some seconds.

    Args:
        device: a number, or a list of them.
    """

    def __init__(self, device: str) -> None:
        self._samples: list[tuple[float, float]] = []
        self._process = subprocess.Popen(
            ["nvidia-smi", f"--id={device.removeprefix('cuda:')}", "--loop-ms=100",
             "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # a GPU that can't tell
                self._samples.append((time.perf_counter(), float(line)))

    def samples(self, start: float) -> list[float]:
        """Return the percentages since a moment of `time.perf_counter`."""
        return [share for moment, share in self._samples if moment >= start]

    def close(self) -> None:
        """End the tool."""
        self._process.kill()
        self._process.wait()


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in file.read_text().split():
            yield from _tree(int(child))


def _number(pid: int, file: str, key: str) -> int:
    """Read a number, kB, from a file of a process in /proc; 0 if there is none."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)
