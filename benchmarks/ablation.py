# SPDX-License-Identifier: Apache-2.0
"""Train on BCCD with every loss, assigner and kind of distillation, each against the default.

    python -m benchmarks.ablation path/to/bccd.yaml --out runs/ablation --page docs/ablation.md

All rows have the same budget: `yolov8n.yaml` from scratch, as many epochs, size, batch and seeds,
all else by default. A score is pycocotools' mAP50-95 of best.pt on the test images, as in
`benchmarks.bccd`. What needs a teacher learns from one `yolov8s.yaml`, trained longer, once.

Each finished run is a line of results.jsonl in the output folder; a second call goes on where the
first one stopped, and the page, written anew after each run, says which rows are missing. The
default comes first, then one row of each kind, so that a table that isn't finished says something.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bccd import run_seed
from yolo import TASKS
from yolo.engine.distill import DISTILLERS
from yolo.errors import YoloError
from yolo.machine import bf16_instructions, machine_facts
from yolo.nn.class_losses import CLASS_LOSSES

Row = dict[str, Any]
DEFAULT, TEACHER = "default", "teacher"
SPLIT = "test"


def switches() -> dict[str, Row]:
    """Return row -> options: the default, one of each kind, and then the others."""
    detect = TASKS["detect"]
    kinds = {
        "cls_loss": CLASS_LOSSES, "box_loss": detect.criterion.box_losses,
        "assigner": detect.criterion.assigners, "distill": DISTILLERS,
    }  # fmt: skip
    found: list[list[Row]] = []
    for option, names in kinds.items():
        usual = detect.train_config.model_fields[option].default
        found.append([{option: name} for name in names if name != usual])
    first = [rows[0] for rows in found]
    rest = [row for rows in found for row in rows[1:]]
    return {DEFAULT: {}, **{label(row): row for row in [*first, *rest]}}


def label(options: Row) -> str:
    """Return a row's name, such as "cls_loss=focal"."""
    return ", ".join(f"{option}={name}" for option, name in options.items())


def taught(options: Row) -> bool:
    """Whether a row needs the teacher."""
    return "distill" in options and DISTILLERS[options["distill"]].needs_teacher


def jobs(
    only: Sequence[str], seeds: Sequence[int], lesson: Sequence[int]
) -> Iterator[tuple[str, int]]:
    """Yield (row, seed) in the order of running.

    Args:
        only: rows to run, by name or by the part behind "="; all where there are none.
        seeds: of the table.
        lesson: seeds with which a student is trained with and without its teacher.
    """
    rows = switches()
    kinds = len({option for row in rows.values() for option in row})
    order = [name for name in rows if not only or {name, name.split("=")[-1]} & {*only}]
    early = [name for name in order if name in [*rows][: kinds + 1]]
    for group in (early, order):
        yield from ((name, seed) for name in group for seed in seeds)
        known = [name for name in group if name == DEFAULT or taught(rows[name])]
        yield from ((name, seed) for name in known for seed in lesson)


# ---------------------------------------------------------------------- running


def folder_of(name: str, epochs: int, args: argparse.Namespace) -> Path:
    """Return where a row's runs lie."""
    folder: Path = args.out.absolute() / f"{name.replace('=', '-')}-{epochs}"
    return folder


def train(name: str, seed: int, args: argparse.Namespace, more: Row) -> Row:
    """Train and score a row with one seed; a switch that can't be trained says why."""
    start = time.perf_counter()
    options = {
        "model": "yolov8n.yaml", "epochs": args.epochs, "imgsz": args.imgsz, "batch": args.batch,
        "device": args.device, "amp": args.amp, "plots": False, "verbose": False, **more,
    }  # fmt: skip
    folder = folder_of(name, options["epochs"], args)
    try:
        row = run_seed(args.data, seed, folder, options, SPLIT)
    except YoloError as error:
        row = {"seed": seed, "error": str(error).splitlines()[0]}
    return {
        "row": name, **row, "minutes": (time.perf_counter() - start) / 60,
        "date": datetime.date.today().isoformat(),
        "machine": ", ".join(f"{key} {value}" for key, value in machine_facts().items()),
    }  # fmt: skip


def settings(name: str, args: argparse.Namespace) -> Row:
    """Return what tells runs of a row from such with other budgets."""
    same = {key: getattr(args, key) for key in ("imgsz", "batch", "amp")}
    if name == TEACHER:
        return same | {"epochs": args.teacher_epochs}
    needs = taught(switches()[name])
    teacher = {"teacher_epochs": args.teacher_epochs} if needs else {}
    return same | {"epochs": args.epochs} | teacher


def run(args: argparse.Namespace) -> list[Row]:
    """Run what isn't finished, keeping each row; return the rows of these settings."""
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "results.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []

    def ours() -> list[Row]:
        known = (row for row in done if row["row"] in {TEACHER, *switches()})
        return [row for row in known if row.items() >= settings(row["row"], args).items()]

    def once(name: str, seed: int, more: Row) -> None:
        wanted = {"row": name, "seed": seed}
        if any(row.items() >= wanted.items() and "error" not in row for row in ours()):
            return
        row = train(name, seed, args, more) | settings(name, args)
        done.append(row)
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if args.page:
            args.page.write_text(page(ours(), args), encoding="utf-8")

    for name, seed in dict.fromkeys(jobs(args.only, args.seeds, args.distill_seeds)):
        more = switches()[name]
        if taught(more):
            big = {"model": "yolov8s.yaml", "epochs": args.teacher_epochs}
            once(TEACHER, 0, big)
            best = folder_of(TEACHER, args.teacher_epochs, args) / "seed0" / "weights" / "best.pt"
            more = more | {"teacher": str(best)}
        once(name, seed, more)
    return ours()


# ---------------------------------------------------------------------- the page


def scores(rows: Sequence[Row], name: str, seeds: Sequence[int]) -> dict[int, float]:
    """Return a row's finished scores by seed."""
    mine = [row for row in rows if row["row"] == name and "pycocotools" in row]
    return {row["seed"]: row["pycocotools"] for row in mine if row["seed"] in seeds}


def seed_spread(rows: Sequence[Row], seeds: Sequence[int]) -> float | None:
    """Return the standard deviation between seeds of one row, pooled over all rows with several.

    Two seeds say little about their own spread; over all rows they say enough.
    """
    found = [list(scores(rows, name, seeds).values()) for name in switches()]
    several = [values for values in found if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in several)
    return math.sqrt(squares / freedom) if freedom and squares else None


def result_table(rows: Sequence[Row], seeds: Sequence[int]) -> str:
    """Return all switches against the default, as a Markdown table."""
    lines = [
        "| switch | mAP50-95 by seed | mean | seeds apart | to default | in spreads | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    spread, default = seed_spread(rows, seeds), scores(rows, DEFAULT, seeds)
    for name in switches():
        found = scores(rows, name, seeds)
        told = [f"{found[seed]:.4f}" if seed in found else "not run" for seed in seeds]
        errors = [row["error"] for row in rows if row["row"] == name and "error" in row]
        if errors and not found:
            told = [f"failed: {errors[-1]}"]
        cells = [name, " ".join(told) if found or errors else "not run", *[""] * 5]
        if found:
            values = list(found.values())
            cells[2] = f"{statistics.mean(values):.4f}"
            cells[3] = f"{max(values) - min(values):.4f}" if len(values) > 1 else ""
            both = found.keys() & default.keys()
            if name != DEFAULT and both:
                difference = statistics.mean(found[seed] - default[seed] for seed in both)
                cells[4] = f"{difference:+.4f}"
                cells[5] = f"{difference / spread:+.1f}" if spread else ""
            took = [row["minutes"] for row in rows if row["row"] == name and row["seed"] in found]
            cells[6] = f"{statistics.mean(took):.1f}"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def lesson_table(rows: Sequence[Row], seeds: Sequence[int]) -> str:
    """Return what each teaching does for the student's mean, as a Markdown table."""
    lines = [
        "| student | mAP50-95 by seed | mean | added, by seed | added, mean | verdict |",
        "|---|---|---|---|---|---|",
    ]
    alone = scores(rows, DEFAULT, seeds)
    for name, options in switches().items():
        if name != DEFAULT and not taught(options):
            continue
        found = scores(rows, name, seeds)
        told = " ".join(f"{found[seed]:.4f}" if seed in found else "not run" for seed in seeds)
        mean = f"{statistics.mean(found.values()):.4f}" if found else ""
        gains = [found[seed] - alone[seed] for seed in seeds if seed in found and seed in alone]
        cells = ["alone" if name == DEFAULT else name, told, mean, "", "", ""]
        if name != DEFAULT and gains:
            gain = statistics.mean(gains)
            cells[3:5] = " ".join(f"{x:+.4f}" for x in gains), f"{gain:+.4f}"
            if len(gains) == len(seeds):
                cells[5] = "improves" if gain > 0 else "**doesn't improve**"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(rows: Sequence[Row], args: argparse.Namespace) -> str:
    """Return docs/ablation.md."""
    spread = seed_spread(rows, args.seeds)
    teacher = scores(rows, TEACHER, [0])
    return PAGE.format(
        first=min(row["date"] for row in rows), last=max(row["date"] for row in rows),
        epochs=args.epochs, imgsz=args.imgsz, batch=args.batch, amp=args.amp,
        results=result_table(rows, args.seeds), lesson=lesson_table(rows, args.distill_seeds),
        spread=f"{spread:.4f}" if spread else "not known yet", long=args.teacher_epochs,
        teacher=f"reaches {teacher[0]:.4f}" if teacher else "isn't trained yet",
        machine="\n".join(f"* {name}" for name in sorted({row["machine"] for row in rows})),
    )  # fmt: skip


PAGE = """# Losses, assigners and teachers on BCCD

Made by `python -m benchmarks.ablation path/to/bccd.yaml --page docs/ablation.md`; the runs are from
{first} to {last}.

`yolov8n.yaml` from scratch, {epochs} epochs, imgsz {imgsz}, batch {batch}, `amp="{amp}"`, one
switch at a time, all other options as they are by default: gains and learning rate are those that
suit the default and were not tuned to any switch. best.pt, chosen on the validation images, is
scored on the test images by pycocotools.

{results}

A spread is the standard deviation between seeds, pooled over all rows with several: {spread}.
Differences are between equal seeds. Below about two spreads they say nothing; a row that lies
further below the default is a switch that hurts at this budget. "Not run" is what it says.

## A trained s teaches n

The teacher, `yolov8s.yaml` after {long} epochs, {teacher}. Each student is trained with
and without it, from the same start and in the same order of images; what is added is the difference
between equal seeds.

{lesson}

## Machines

{machine}
"""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="bccd.yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="NAMES", help="rows: simota, box_loss=giou, ..."
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--distill-seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--teacher-epochs", type=int, default=40)
    parser.add_argument("--imgsz", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--amp", choices=["fp32", "bf16"], help="bf16 where the processor has such instructions"
    )
    parser.add_argument("--page", type=Path, help="Markdown file to write")
    args = parser.parse_args(words)
    if args.amp is None:
        slow = args.device == "cpu" and bf16_instructions() in {"none", "unknown on this system"}
        args.amp = "fp32" if slow else "bf16"
    names = [*switches()]
    if unknown := {*args.only} - {*names, *(name.split("=")[-1] for name in names)}:
        parser.error(f"--only: no row {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return args


def main() -> None:
    """Run what isn't finished and print the tables."""
    args = parse()
    rows = run(args)
    print(result_table(rows, args.seeds), lesson_table(rows, args.distill_seeds), sep="\n\n")
    if args.page and rows:
        args.page.write_text(page(rows, args), encoding="utf-8")


if __name__ == "__main__":
    main()
