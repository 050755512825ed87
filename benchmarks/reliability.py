# SPDX-License-Identifier: Apache-2.0
"""Count what the tests of reliability have checked, the slow ones included.

    python -m benchmarks.reliability [--out runs/reliability] [--page docs/reliability.md]

Each row is a call of pytest; what it counts, the tests tell by `record_property`, or the tests
themselves are counted. Each finished row is a line of results.jsonl in the output folder; a second
call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.pages import put_section
from yolo.machine import machine_facts

Found = dict[str, Any]
ROOT = Path(__file__).parents[1]
EVERY = ("-m", "slow or not slow")


@dataclass(frozen=True)
class Row:
    """One claim.

    Attributes:
        claim: what holds for each thing that is counted.
        unit: what is counted: the name of a recorded property, or "tests".
        words: for pytest.
    """

    claim: str
    unit: str
    words: tuple[str, ...]

    @property
    def command(self) -> str:
        """What a user would type."""
        return " ".join(["pytest", *(f'"{w}"' if " " in w else w for w in self.words)])


def tests(claim: str, unit: str, *words: str) -> Row:
    """Describe a row whose tests are run all, slow ones too."""
    return Row(claim, unit, (*EVERY, *words))


ROWS = (
    tests(
        "a spoiled YAML, checkpoint or image, options or a command line at random: a result, or an "
        "error of ours", "inputs", "tests/test_fuzz.py",
    ),
    tests(
        "a run that was stopped, sent a signal or killed goes on to the same end, bit for bit",
        "tests", "tests/test_resume.py",
    ),
    tests(
        "two ranks do what one does; stopped, killed and restarted ones go on to the same end",
        "tests", "tests/engine/test_ranks.py", "tests/engine/test_launch.py",
    ),
    tests(
        "eight threads with one model find in an image what one thread finds, bit for bit",
        "images", "tests/test_steady.py", "-k", "threads",
    ),
    tests(
        "memory stays within 50 MB over the frames of one stream", "frames",
        "tests/test_steady.py", "-k", "long_stream",
    ),
    tests(
        "a hostile or damaged file is refused by name, or read; nothing in it runs", "tests",
        "tests/engine/test_foreign.py", "tests/engine/test_pickles.py",
        "tests/engine/test_torchfile.py", "tests/engine/test_safetensors.py",
        "tests/engine/test_checkpoint.py", "tests/backends/test_torch_export.py",
        "tests/backends/test_metadata.py", "tests/data/test_images.py", "tests/cfg",
    ),
    tests(
        "what a process had set before `import yolo`, prediction and training it has afterwards",
        "tests", "tests/test_quiet.py", "tests/test_guard.py",
    ),
)  # fmt: skip


def run(row: Row) -> Found:
    """Run a row's tests and count."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *row.words]
        subprocess.run(command, cwd=ROOT, check=False)
        return counted(row.unit, ElementTree.parse(report).getroot())


def counted(unit: str, report: ElementTree.Element) -> Found:
    """Read pytest's report.

    Args:
        unit: see `Row`.
        report: the root of the XML.

    Returns:
        Numbers of things that were checked, and of those in tests that passed; the names of tests
        that failed; the number of tests that were skipped; seconds.
    """
    checked = held = skipped = 0
    failed = []
    for case in report.iter("testcase"):
        if case.find("skipped") is not None:
            skipped += 1
            continue
        values = (
            item.get("value", "0") for item in case.iter("property") if item.get("name") == unit
        )
        count = 1 if unit == "tests" else sum(map(int, values))
        good = case.find("failure") is None and case.find("error") is None
        checked, held = checked + count, held + good * count
        failed += [] if good else [f"{case.get('classname')}::{case.get('name')}"]
    seconds = sum(float(suite.get("time", 0)) for suite in report.iter("testsuite"))
    return {
        "checked": checked, "held": held, "failed": failed, "skipped": skipped,
        "seconds": round(seconds), "date": date.today().isoformat(),
    }  # fmt: skip


def section(rows: Sequence[tuple[Row, Found]]) -> str:
    """Return the section of the Markdown page."""
    lines = [
        f"| {row.claim} | {found['checked']:,} {row.unit} | {found['held']:,} | `{row.command}` |"
        for row, found in rows
    ]
    dates = sorted(found["date"] for _, found in rows)
    skipped = sum(found["skipped"] for _, found in rows)
    facts = ", ".join(f"{name} {value}" for name, value in machine_facts().items())
    listing = "\n".join(lines)
    return f"""Made by `python -m benchmarks.reliability --page FILE`, {dates[0]} to {dates[-1]}.

Each row is a call of pytest, slow tests included; what isn't counted by name is counted in tests.
*Held*: those whose test passed. Skipped, for want of what this machine doesn't have: {skipped}.
Where `YOLO_GOLDEN_CKPT` names a folder of genuine files of other programs, they are among them.

| what holds | checked | held | command |
|---|---|---|---|
{listing}

Beside these, every test of the default suite but those about ranks, notebooks and the command line
runs with sockets and other programs refused by an audit hook, without a home folder, and with its
datasets read-only (`tests/guard.py`): `.ci/run`.

Machine: {facts}.
"""


def main() -> None:
    """Run what isn't finished; the exit status is 1 where a test failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/reliability"))
    parser.add_argument("--page", type=Path, help="Markdown file to write a section of")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "results.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    done: dict[str, Found] = dict(map(json.loads, lines))
    for row in ROWS:
        if row.command not in done:
            done[row.command] = run(row)
            with log.open("a") as file:
                file.write(json.dumps([row.command, done[row.command]]) + "\n")
    rows = [(row, done[row.command]) for row in ROWS]
    for row, found in rows:
        print(
            f"{found['held']:,} of {found['checked']:,} {row.unit}: {row.claim}", *found["failed"]
        )
    if args.page:
        put_section(args.page, "Checks", section(rows))
    sys.exit(any(found["failed"] for _, found in rows))


if __name__ == "__main__":
    main()
