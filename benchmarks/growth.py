# SPDX-License-Identifier: Apache-2.0
"""Measure how time and memory grow with images, objects, classes and image size, and draw it.

    python -m benchmarks.growth --out runs/growth --page docs/growth.md

Every point is measured in a process of its own: the processor time of the fastest of a few rounds,
which other programs leave alone, and how far the process's memory rises above what it was before.
A curve's exponent is the slope of its upper half on logarithmic axes, by least squares: 1 where
twice as much takes twice as long; n log n comes to about 1.07 at a million and 1.15 at a thousand.

Each finished point is a line of results.jsonl in the output folder; a second call goes on from
there. The set of a million images is a folder of hard links to a few drawn ones.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.growth_cases import CASES, RECENT_MIB, opened, train_loader
from yolo.engine.charts import GRID, INK, MUTED, PALETTE
from yolo.machine import machine_facts

Row = dict[str, Any]
LIMIT = 1.15
"""An exponent above this is more than n log n."""
LEAST_S, LEAST_MIB = 1e-3, 8.0
"""Curves that end below this have no exponent: what is measured is the noise."""
ROUNDS, PATIENCE = 3, 0.5


@dataclass(frozen=True)
class Axis:
    """What grows.

    Attributes:
        title: of figure and table.
        sizes: what is measured.
        power: of a size that work is expected to be proportional to: 2 for the side of an image.
    """

    title: str
    sizes: tuple[int, ...]
    power: int = 1


AXES = {
    "images": Axis("images in the set", (1000, 10_000, 100_000, 1_000_000)),
    "objects": Axis("objects an image", (1, 10, 100, 300, 1000, 2000)),
    "classes": Axis("classes", (1, 10, 100, 300, 1000)),
    "sides": Axis("pixels of the image", (128, 256, 384, 640, 896, 1280), 2),
}


# ---------------------------------------------------------------------- measuring


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """Return what a function returns in a fork of this process, which has not computed anything."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def run() -> None:
        there.send(function(*args))

    process = context.Process(target=run)
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        raise SystemExit(f"{function.__name__}{args}: the process has died; see above") from None
    finally:
        process.join()


def memory(key: str, file: str = "/proc/self/status") -> float:
    """Return a line of the kernel's account of a process, MiB."""
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


def point(axis: str, name: str, size: int, folder: Path) -> tuple[float, float]:
    """Return the processor's seconds and the MiB of one point."""
    case = CASES[axis][name]
    case(folder, AXES[axis].sizes[0])()  # what is loaded when it is first used
    work = case(folder, size)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what is free already would hide what is asked for
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory("VmRSS")
    times: list[float] = []
    while len(times) < ROUNDS and sum(times) < PATIENCE:
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
        if len(times) == 1:
            peak = memory("VmHWM") - before
    return min(times), peak


def worker_memory(
    folder: Path, images: int, workers: int, steps: int, epochs: int
) -> list[dict[str, float]]:
    """Return what worker processes hold together, MiB, after the first batch and each epoch.

    Args:
        folder: of the linked set.
        images: in the set.
        workers: processes.
        steps: batches of 16 that are made of each epoch, its last ones.
        epochs: how many.
    """
    loader = train_loader(opened(folder, images), 320, workers=workers)
    held = []
    for epoch in range(epochs):
        for number, _ in enumerate(loader.epoch(epoch, len(loader) - steps)):
            if epoch == number == 0:
                held.append(workers_hold())
        held.append(workers_hold())
    loader.close()
    return held


def workers_hold() -> dict[str, float]:
    """Add up the accounts of this process's children: shared pages count in shares, once in all."""
    files = [f"/proc/{child.pid}/smaps_rollup" for child in multiprocessing.active_children()]
    return {key: sum(memory(key, file) for file in files) for key in ("Pss", "Pss_Anon")}


# ---------------------------------------------------------------------- the page


def curve(rows: Sequence[Row], axis: str, name: str, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a curve's abscissae and values, "seconds" or "mib"."""
    mine = sorted((r["size"], r[what]) for r in rows if (r.get("axis"), r["name"]) == (axis, name))
    sizes, values = np.array(mine, dtype=float).reshape(-1, 2).T
    return sizes ** AXES[axis].power, values


def exponent(x: np.ndarray, y: np.ndarray, least: float) -> float | None:
    """Return the slope of a curve's upper half on logarithmic axes; None where y stays small."""
    if len(x) < 2 or y[-1] < least:
        return None
    upper = (x >= math.sqrt(x[0] * x[-1])) & (y > 0)
    if upper.sum() < 2:
        return None
    return float(np.polyfit(np.log(x[upper]), np.log(y[upper]), 1)[0])


def shown(seconds: float) -> str:
    """Return a time with a unit that suits it."""
    unit, gain = ("s", 1) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    return f"{seconds * gain:.3g} {unit}"


def table(rows: Sequence[Row]) -> str:
    """Return all curves' ends and exponents as a Markdown table."""
    lines = [
        "| grows | what | from | to | time | exponent | memory | exponent | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for axis, facts in AXES.items():
        for name in CASES[axis]:
            x, seconds = curve(rows, axis, name, "seconds")
            if not len(x):
                lines.append(f"| {facts.title} | {name} | | | not run | | | | |")
                continue
            mib = curve(rows, axis, name, "mib")[1]
            slopes = exponent(x, seconds, LEAST_S), exponent(x, mib, LEAST_MIB)
            worse = any(slope is not None and slope > LIMIT for slope in slopes)
            told = ["" if slope is None else f"{slope:.2f}" for slope in slopes]
            cells = [
                facts.title, name, f"{x[0]:,.0f}", f"{x[-1]:,.0f}",
                f"{shown(seconds[0])} to {shown(seconds[-1])}", told[0],
                f"{mib[-1]:.0f} MiB", told[1], "**more than n log n**" if worse else "holds",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: Sequence[Row], axis: str, file: Path) -> None:
    """Draw an axis's curves: time on the left, memory on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(9.6, 4.2), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for panel, what, title in zip(
        panels,
        ("seconds", "mib"),
        ("processor time, s", "memory above start, MiB"),
        strict=True,
    ):
        for number, name in enumerate(CASES[axis]):
            x, y = curve(rows, axis, name, what)
            panel.plot(x, np.maximum(y, 1.0 if what == "mib" else 0), marker="o", markersize=3.5,
                       color=PALETTE[number], label=name, linewidth=1.6)  # fmt: skip
        panel.set(xscale="log", yscale="log")
        if what == "mib":
            panel.set_ylim(0.7, max(150.0, panel.get_ylim()[1]))
        guide(panel)
        panel.set_title(title, fontsize=10.5, color=INK, loc="left", fontweight="bold")
        panel.set_xlabel(AXES[axis].title, fontsize=9, color=MUTED)
        panel.tick_params(labelsize=8, colors=MUTED, which="both", length=3)
        panel.grid(color=GRID, linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(GRID)
        for scale in (panel.xaxis, panel.yaxis):
            scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
            scale.set_minor_formatter(NullFormatter())
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=8.5, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def guide(panel: Any) -> None:
    """Draw dotted lines of slope 1 behind the curves, a factor of ten apart."""
    (left, right), (low, high) = panel.get_xlim(), panel.get_ylim()
    x = np.array([left, right])
    for power in range(math.floor(math.log10(low * left / right)), math.ceil(math.log10(high)) + 1):
        panel.plot(x, 10.0**power * x / left, color="#c3cad2", linewidth=0.8, linestyle=":",
                   zorder=0)  # fmt: skip
    panel.set(xlim=(left, right), ylim=(low, high))


def worker_text(row: Row | None) -> str:
    """Return what the workers held as a Markdown table."""
    if row is None:
        return "Not run."
    held = row["held"]
    growth = held[-1]["Pss"] - held[1]["Pss"]
    lines = ["| after | memory of all workers | of it not from files |", "|---|---|---|"]
    moments = ["the first batch", *(f"epoch {i + 1}" for i in range(len(held) - 1))]
    lines += [
        f"| {moment} | {now['Pss']:.0f} MiB | {now['Pss_Anon']:.0f} MiB |"
        for moment, now in zip(moments, held, strict=True)
    ]
    verdict = "holds" if growth < 100 else "**more than 100 MiB**"
    return WORKERS.format(
        **row, table="\n".join(lines), growth=growth, verdict=verdict, recent=RECENT_MIB
    )


WORKERS = """{workers} workers over {images:,} images, {epochs} epochs of which each makes its last
{steps:,} batches of 16 mosaics at 320 px. Shared pages count in shares. In the first epoch the
workers fill the ring of the images that they decoded last, which is for all of them and takes at
most {recent} MiB for each (`yolo.data.recent`).

{table}

From the end of the first epoch to the end of the last: {growth:+.0f} MiB, {verdict}."""


def page(rows: Sequence[Row], figures: Path) -> str:
    """Return docs/growth.md, and draw its figures."""
    pictures = []
    for axis, facts in AXES.items():
        if any(row.get("axis") == axis for row in rows):
            draw(rows, axis, figures / f"{axis}.png")
            picture = f"![time and memory over {facts.title}]({figures.name}/{axis}.png)"
            pictures.append(f"## {facts.title[0].upper()}{facts.title[1:]}\n\n{picture}")
    workers = next((row for row in reversed(rows) if row["name"] == "workers"), None)
    dates = sorted({row["date"] for row in rows})
    return PAGE.format(
        dates=" to ".join(dict.fromkeys([dates[0], dates[-1]])), table=table(rows), limit=LIMIT,
        pictures="\n\n".join(pictures), workers=worker_text(workers),
        load=max(row.get("load", 0.0) for row in rows),
        machine=", ".join(f"{key} {value}" for key, value in machine_facts().items()),
    )  # fmt: skip


PAGE = """# How cost grows

Made by `python -m benchmarks.growth --page docs/growth.md`, {dates}.

An exponent is the slope of a curve's upper half on logarithmic axes: 1 where twice as much takes
twice as long. Above {limit} it is more than n log n. Curves that end in too little have none.
Time is the processor's, all threads of the process together; memory is how far it rises above what
it held before.

{table}

Dotted lines in the figures are proportional to n. The order of an epoch is a shuffle, n swaps of
random places: each of them takes longer once the order has outgrown the processor's caches.

{pictures}

## Memory of the workers

{workers}

Machine: {machine}.
Its load average meanwhile: up to {load:.0f}; this script's own is 1, with the workers more.
"""


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/growth"))
    parser.add_argument("--only", nargs="*", default=[*AXES, "workers"], help="axes, workers")
    parser.add_argument("--images", type=int, default=1_000_000, help="most images of a set")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3, help="of the workers")
    parser.add_argument("--steps", type=int, default=500, help="batches of each epoch")
    parser.add_argument("--page", type=Path, help="Markdown file to write, figures beside it")
    return parser.parse_args()


def main() -> None:
    """Measure what isn't measured yet, print the table, write the page."""
    args = parse()
    folder = args.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "results.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []

    def keep(wanted: Row, found: Callable[[], Row]) -> None:
        if any(row.items() >= wanted.items() for row in done):
            return
        print(*wanted.values(), "...", flush=True)
        facts = {"date": datetime.date.today().isoformat(), "load": os.getloadavg()[0]}
        done.append({**wanted, **found(), **facts})
        with log.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")

    for axis, facts in AXES.items():
        for name in CASES[axis] if axis in args.only else ():
            for size in facts.sizes:
                if axis != "images" or size <= args.images:
                    keep(
                        {"axis": axis, "name": name, "size": size},
                        lambda a=axis, n=name, s=size: dict(
                            zip(("seconds", "mib"), in_child(point, a, n, s, folder), strict=True)
                        ),
                    )
    if "workers" in args.only:
        options = {key: getattr(args, key) for key in ("images", "workers", "steps", "epochs")}
        keep(
            {"name": "workers", **options},
            lambda: {"held": in_child(worker_memory, folder, *options.values())},
        )
    print(table(done))
    if args.page and done:
        text = page(done, args.page.parent / args.page.stem)
        args.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
