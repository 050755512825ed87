# SPDX-License-Identifier: Apache-2.0
"""Measure the time from the start of a process to the first boxes of an ONNX file.

    python -m benchmarks.cold_start best.onnx image.jpg [--runs 9]

Each run is a process of its own; the first one, which fills the disk cache, doesn't count. The wall
clock starts before the interpreter does. The time of the CPU says more where a machine is busy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

HEAVY = ("torch", "torchvision", "matplotlib", "pandas", "scipy", "rich", "onnx")
"""Packages that predicting from ONNX does without."""

SCRIPT = """
import json, sys, time
from yolo import YOLO
found = len(YOLO(sys.argv[1]).predict(sys.argv[2], verbose=False)[0])
cpu = time.process_time()
print(json.dumps([time.time(), cpu, found, list(sys.modules)]))
"""


def measure(model: Path, image: Path) -> tuple[float, float, int, list[str]]:
    """Run once; return seconds, seconds of CPU, objects, and the modules that were imported."""
    begun = time.time()
    command = [sys.executable, "-c", SCRIPT, str(model), str(image)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    now, cpu, found, modules = json.loads(answer.stdout)
    return now - begun, cpu, found, modules


def report(model: Path, image: Path, runs: int) -> str:
    """Return the medians as text."""
    done = [measure(model, image) for _ in range(runs + 1)][1:]
    walls, cpus, found, modules = zip(*done, strict=True)
    heavy = sorted({name.partition(".")[0] for name in modules[0]} & set(HEAVY))
    return (
        f"first boxes after {statistics.median(walls):.2f} s ({min(walls):.2f} to "
        f"{max(walls):.2f}, {runs} runs), {statistics.median(cpus):.2f} s of CPU; "
        f"{found[0]} objects; {len(modules[0])} modules, heavy ones: {', '.join(heavy) or 'none'}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="an ONNX file with metadata")
    parser.add_argument("image", type=Path)
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    print(report(args.model, args.image, args.runs))


if __name__ == "__main__":
    main()
