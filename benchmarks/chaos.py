# SPDX-License-Identifier: Apache-2.0
"""Kill, starve and spoil trainings, and see that nothing saved is lost.

    python -m benchmarks.chaos [--kills 100] [--tasks detect ...] [--cases kills disk ...]
                               [--out runs/chaos] [--page docs/reliability.md]

Trains networks of a few thousand weights by the `yolo` command, in processes of their own:

- SIGKILL at random instants; the run is resumed, killed again, and so on. After each kill last.pt
  must be whole and not older than before; in the end weights and history must equal, bit for bit,
  those of a run that nothing disturbed.
- a disk that takes no more: files may not grow beyond a limit that last.pt exceeds.
- last.pt and images, cut or with a byte changed.
- a loader's worker, and a rank of two, killed while they work.

Each finished case is a line of results.jsonl in the output folder; a second call goes on from
there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.accuracy import TASKS
from benchmarks.pages import put_section
from yolo.cfg.load import read_yaml, write_yaml
from yolo.cfg.networks import FOLDER as NETWORKS
from yolo.data.shapes import write_shapes
from yolo.engine.checkpoint import Checkpoint, digest, load_checkpoint
from yolo.errors import YoloError
from yolo.machine import machine_facts
from yolo.tasks.spec import TASKS as SPECS

PATIENCE, SOON = 300.0, 60.0
"""Seconds after which a process counts as hung, and within which one must end that lost a part."""


@dataclass
class Case:
    """What one kind of accident came to."""

    name: str
    tried: int = 0
    held: int = 0
    faults: list[str] = field(default_factory=list)

    def note(self, fault: str | None) -> None:
        """Count one more accident; `fault` says what went wrong, if anything did."""
        self.tried += 1
        self.held += fault is None
        if fault:
            self.faults.append(fault)


@dataclass(frozen=True)
class Bench:
    """The files of a task's runs: a small network, a small set, and where runs go."""

    task: str
    network: Path
    data: Path
    runs: Path

    @classmethod
    def of(cls, task: str, folder: Path) -> Bench:
        """Write network and data."""
        spec = SPECS[task]
        kind = next(iter(spec.label_format().kinds), "boxes")
        few = {"train": 20, "val": 4} if kind == "classes" else {"train": 12, "val": 4}
        folder.mkdir(parents=True)
        network = folder / "network.yaml"
        scales = {"scales": {"n": [0.33, 0.0625, 128]}}
        write_yaml(network, read_yaml(NETWORKS / f"yolov8{spec.suffix}.yaml") | scales)
        data = write_shapes(folder / "set", size=(64, 64), kind=kind, **few)
        return cls(task, network, data, folder / "runs")

    def start(self, name: str, *more: str) -> list[str]:
        """Return the command of a fresh run."""
        return [
            *YOLO, "train", self.task, f"model={self.network}", f"data={self.data}", "epochs=3",
            "imgsz=64", "batch=4", "nbs=8", "save_every=1", "device=cpu", "plots=False",
            f"project={self.runs}", f"name={name}", "exist_ok=True", *more,
        ]  # fmt: skip

    def last(self, name: str) -> Path:
        """Return the file that a run goes on from."""
        return self.runs / name / "weights" / "last.pt"


NOTHING = -1
"""The progress of a run that has saved nothing yet."""

YOLO = [sys.executable, "-m", "yolo"]


def resume(last: Path, *more: str) -> list[str]:
    """Return the command that goes on from a file."""
    return [*YOLO, "train", f"resume={last}", *more]


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=PATIENCE, **options
    )


def outcome(last: Path) -> tuple[str, list[dict[str, float]]]:
    """Return what must not depend on accidents: weights, and history but for the times."""
    saved = load_checkpoint(last)
    rows = [{k: v for k, v in row.items() if k != "time"} for row in saved.history]
    return digest(saved.weights), rows


def progress(saved: Checkpoint) -> int:
    """Return how many batches a run has behind it."""
    return int((saved.state or {})["iteration"])


# ---------------------------------------------------------------------- kills


def kills(bench: Bench, count: int, rng: random.Random) -> Case:
    """Kill runs `count` times in all, then let the last one end."""
    case = Case(f"SIGKILL at a random instant, {bench.task}")
    began = time.monotonic()
    run(bench.start("whole")).check_returncode()
    duration = time.monotonic() - began
    wanted = outcome(bench.last("whole"))
    number, before, last = 0, NOTHING, bench.last("run0")
    while True:
        command = resume(last) if last.is_file() else bench.start(f"run{number}")
        if case.tried < count:
            ended, said = killed_after(command, rng.uniform(0, duration))
        else:
            ended, said = True, run(command).stderr
        if not ended:
            fault, before = state_after(last, before)
            case.note(fault)
            ended = not fault and last.is_file() and has_ended(last)
        if ended:
            if outcome(last) != wanted:
                case.faults.append(f"{last}: other weights or history in the end; {said[-300:]}")
            if case.tried >= count:
                return case
            number, before = number + 1, NOTHING
            last = bench.last(f"run{number}")


def has_ended(last: Path) -> bool:
    """Tell whether a run had come to its end when it was killed."""
    return bool((load_checkpoint(last).state or {})["finished"])


def killed_after(command: list[str], seconds: float) -> tuple[bool, str]:
    """Run a command and kill it; return whether it had ended by itself, and what it said."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, said = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return False, ""
    return True, said


def state_after(last: Path, before: int) -> tuple[str | None, int]:
    """Look at what a killed run left; return the fault, if any, and how far it is."""
    if not last.is_file():
        return (f"{last}: was there and is gone" if before > NOTHING else None), before
    try:
        now = progress(load_checkpoint(last))
    except YoloError as error:
        return str(error), before
    return (f"{last}: went back from batch {before} to {now}" if now < before else None), now


# ---------------------------------------------------------------------- other accidents


def full_disk(bench: Bench, count: int, rng: random.Random) -> Case:
    """Let files grow to a random limit alone; what was saved must stay, and go on afterwards."""
    case = Case("disk full while a checkpoint is written")
    run(bench.start("disk")).check_returncode()
    last = bench.last("disk")
    for _ in range(count):
        size, content = last.stat().st_size, last.read_bytes()
        limit = rng.randrange(size // 4, size - 1)
        limited = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
        done = run(resume(last, "epochs=9"), preexec_fn=limited)
        kept = last.read_bytes() == content
        clear = done.returncode == 2 and "can't be written" in done.stderr
        left = [path.name for path in last.parent.glob(".*")]
        ok = kept and clear and not left and "Traceback" not in done.stderr
        case.note(None if ok else f"limit {limit} of {size}: {done.stderr.strip()[-300:]} {left}")
    run(resume(last, "epochs=4")).check_returncode()
    return case


def spoiled(content: bytes, rng: random.Random) -> bytes:
    """Cut the bytes, or change one of them."""
    at = rng.randrange(len(content))
    if rng.random() < 0.5:
        return content[:at]
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


def spoiled_checkpoints(bench: Bench, count: int, rng: random.Random) -> Case:
    """A spoiled file must be refused, or hold what it held: not every byte of a zip matters."""
    case = Case("last.pt cut, or one bit of it changed")
    run(bench.start("spoiled")).check_returncode()
    last = bench.last("spoiled")
    wanted, content = outcome(last), last.read_bytes()
    for _ in range(count):
        last.write_bytes(spoiled(content, rng))
        try:
            fault = None if outcome(last) == wanted else "read without complaint as something else"
        except YoloError:
            fault = None
        except Exception as error:  # whatever it is, it isn't ours
            fault = f"{type(error).__name__}: {error}"
        case.note(fault)
    return case


def spoiled_images(bench: Bench, count: int, rng: random.Random) -> Case:
    """A training on a set with some spoiled images must end well, and name those it left out."""
    case = Case("an image of the set cut, or one bit of it changed")
    images = sorted(
        path for path in bench.data.parent.rglob("*") if path.suffix in {".png", ".jpg"}
    )
    for _ in range(count):
        image = rng.choice(images)
        content = image.read_bytes()
        image.write_bytes(spoiled(content, rng))
        done = run(bench.start("images"))
        image.write_bytes(content)
        told = done.returncode == 0 or (done.returncode == 2 and image.name in done.stderr)
        ok = told and "Traceback" not in done.stderr
        case.note(None if ok else f"{image.name}: {done.stderr.strip()[-300:]}")
    return case


def processes_of(pid: int) -> list[int]:
    """List the working processes that a process started, by /proc: loaders' workers, ranks."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    helpers = b"resource_tracker"
    return [n for n in map(int, children) if helpers not in Path(f"/proc/{n}/cmdline").read_bytes()]


def killed_part(bench: Bench, count: int, rng: random.Random, name: str, option: str) -> Case:
    """Kill a process that a run started; it must end soon, and be resumed to the same end."""
    case = Case(f"a {name} killed ({option})")
    run(bench.start(f"{name}-whole", option)).check_returncode()
    wanted = outcome(bench.last(f"{name}-whole"))
    for number in range(count):
        last = bench.last(f"{name}{number}")
        child = subprocess.Popen(
            bench.start(last.parents[1].name, option),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        while not last.is_file() and child.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
        with contextlib.suppress(OSError):  # it may have ended
            os.kill(rng.choice(processes_of(child.pid) or [0x7FFFFFFF]), signal.SIGKILL)
        try:
            _, said = child.communicate(timeout=SOON)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # its parts hold the pipe, too
            child.communicate()
            case.note(f"still running {SOON:.0f} s later")
            continue
        if child.returncode:
            said += run(resume(last, *[option] * option.startswith("ranks"))).stderr
        case.note(None if outcome(last) == wanted else said.strip()[-500:] or "another end")
    return case


# ---------------------------------------------------------------------- the page


KILLS = "kills"
OTHERS: dict[str, tuple[Callable[[Bench, int, random.Random], Case], float]] = {
    "disk": (full_disk, 0.1),
    "checkpoints": (spoiled_checkpoints, 10),
    "images": (spoiled_images, 0.1),
    "worker": (partial(killed_part, name="worker", option="workers=2"), 0.1),
    "rank": (partial(killed_part, name="rank", option="ranks=2"), 0.1),
}
"""Cases on the first task, and how often each is tried for every kill."""


def cases(
    tasks: Sequence[str], wanted: Sequence[str], count: int, folder: Path
) -> dict[str, Callable[[random.Random], Case]]:
    """Return what does each of the wanted cases, by name; files go to `folder`."""
    found: dict[str, Callable[[random.Random], Case]] = {}

    def bench(task: str) -> Bench:
        return Bench.of(task, Path(tempfile.mkdtemp(dir=folder)) / task)

    for task in tasks if KILLS in wanted else ():
        found[f"{KILLS} {task}"] = lambda rng, t=task: kills(bench(t), count // len(tasks), rng)
    for name, (case, share) in OTHERS.items():
        times = max(round(count * share), 3)
        if name in wanted:
            found[name] = lambda rng, c=case, n=times: c(bench(tasks[0]), n, rng)
    return found


def section(found: Sequence[Case], count: int, seed: int) -> str:
    """Return the section of the Markdown page."""
    rows = "\n".join(f"| {case.name} | {case.tried} | {case.held} |" for case in found)
    facts = ", ".join(f"{name} {value}" for name, value in machine_facts().items())
    command = f"python -m benchmarks.chaos --kills {count} --seed {seed} --page FILE"
    return f"""Made by `{command}` on {date.today()}.

Trainings of small networks by the `yolo` command, in processes of their own. *Held*: nothing that
was saved was lost, the error was one line that says what happened, and the run went on to the
weights and history, bit for bit, of one that nothing disturbed. A spoiled checkpoint holds if it is
refused, or still says what it said; a spoiled image if the training ends well or names it.

| accident | tried | held |
|---|---|---|
{rows}

Machine: {facts}.
"""


def main() -> None:
    """Run all cases; the exit status is 1 where one doesn't hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"), help="keeps finished cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    every = [KILLS, *OTHERS]
    parser.add_argument("--cases", nargs="+", default=every, choices=every)
    parser.add_argument("--page", type=Path, help="Markdown file to write a section of")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "results.jsonl"
    settings = [args.kills, args.seed, args.tasks]
    done = {}
    for line in log.read_text().splitlines() if log.is_file() else ():
        name, made_with, case = json.loads(line)
        if made_with == settings:
            done[name] = Case(**case)
    with tempfile.TemporaryDirectory() as scratch:
        wanted = cases(args.tasks, args.cases, args.kills, Path(scratch))
        for name, work in wanted.items():
            if name not in done:
                done[name] = work(random.Random(f"{args.seed} {name}"))
                with log.open("a") as file:
                    file.write(json.dumps([name, settings, asdict(done[name])]) + "\n")
            case = done[name]
            print(f"{case.held:5d} of {case.tried:5d}  {case.name}", *case.faults, sep="\n    ")
            sys.stdout.flush()
    found = [done[name] for name in wanted]
    if args.page:
        put_section(args.page, "Accidents", section(found, args.kills, args.seed))
    sys.exit(any(case.faults for case in found))


if __name__ == "__main__":
    main()
