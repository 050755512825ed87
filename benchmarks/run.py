# SPDX-License-Identifier: Apache-2.0
"""Measure this library and the peer side by side, and print the ratios.

    python -m benchmarks.run --peer PEER_PYTHON [--only train predict] [--page docs/benchmarks.md]

Every row starts two processes, one a side, lets both get ready, and asks them in turns for a round;
the side that waits does nothing. A row's figure is the median of the rounds' ratios, its spread the
lowest and the highest of them. What a side is asked to do is the same but for a row's own settings,
and all else is each side's default.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed_rounds import Driver, Gauge
from yolo.data.scene import scene
from yolo.data.shapes import write_shapes
from yolo.machine import bf16_instructions, machine_facts

HERE = Path(__file__).parent
Options = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what is measured.
        case: what the drivers do: a key of their CASES, or "command".
        options: of both sides.
        ours: options of our side alone, merged into `options`.
        unit: "img/s" or "s": whether the ratio is one of speeds or of times.
        target: the ratio that is wanted, None where none is set.
    """

    name: str
    case: str
    options: Options = field(default_factory=dict)
    ours: Options = field(default_factory=dict)
    unit: str = "img/s"
    target: float | None = None

    def holds(self, ratio: float) -> bool | None:
        """Whether the ratio ours / peer reaches the target."""
        if self.target is None:
            return None
        return ratio >= self.target if self.unit == "img/s" else ratio <= self.target


@dataclass(frozen=True)
class Files:
    """What the rows share: a folder, the sets, the weights and the pictures."""

    folder: Path
    train: Path
    many: Path
    val: Path
    weights: Path
    images: Path
    device: str

    @property
    def gpu(self) -> bool:
        """Whether the rows are of a GPU."""
        return self.device != "cpu"


MANY = 2048
"""Images of the set that is read from files: no row comes to the end of an epoch, so that no image
is still there from the one before."""

FAST: Options = {"amp": "bf16"}
FAST_ON_GPU: Options = {"compile": "reduce-overhead", "augment_on": "device"}


def merged(first: Options, second: Options) -> Options:
    """Return options with those of `second` on top, level by level."""
    both = dict(first)
    for key, value in second.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, dict) else value
    return both


# ---------------------------------------------------------------------- the rows


def rows(files: Files, fast: bool) -> Iterator[Row]:
    """Yield all rows; `fast`: whether the device gains from bf16."""
    yield from commands()
    yield from training(files, fast)
    yield from pipelines(files)
    yield from losses(files)
    yield from predictions(files, fast)
    count = sum(1 for _ in (files.val.parent / "images" / "val").iterdir())
    options = {"model": str(files.weights), "count": count, "val": {
        "data": str(files.val), "imgsz": 640, "batch": 16, "device": files.device,
    }}  # fmt: skip
    yield Row(f"validation, {count} images, 640 px", "val", options, target=2.0)
    options = {"model": str(files.weights), "export": {"imgsz": 640, "simplify": False}}
    yield Row("export to ONNX (ours: the proof included)", "export", options, unit="s")


def commands() -> Iterator[Row]:
    """Yield the rows of starting up."""
    ours = "from yolo import YOLO; YOLO('yolov8n.yaml').model"
    peer = "from ultralytics import YOLO; YOLO('yolov8n.yaml').model"
    code = {"command": ["-c", "import ultralytics"]}
    yield Row("import", "command", code, {"command": ["-c", "import yolo"]}, "s")
    yield Row(
        "import and build", "command", {"command": ["-c", peer]}, {"command": ["-c", ours]}, "s"
    )
    help_of = "import sys; sys.argv = ['yolo', '--help']; from {} import {}; {}()"
    code = {"command": ["-c", help_of.format("ultralytics.cfg", "entrypoint", "entrypoint")]}
    mine = {"command": ["-c", help_of.format("yolo.cli", "main", "main")]}
    yield Row("yolo --help", "command", code, mine, "s")


def training(files: Files, fast: bool) -> Iterator[Row]:
    """Yield the rows of whole training steps; a GPU gets batches and workers that keep it busy."""
    for scale in "ns":
        for size in (320, 640):
            train = {
                "data": str(files.train), "imgsz": size, "batch": 8 if size > 320 else 16,
                "workers": 0, "device": files.device, "amp": False,
            }  # fmt: skip
            options: Options = {"model": f"yolov8{scale}.yaml", "steps": 4, "warm": 3}
            if files.gpu:
                train |= {"batch": 64, "workers": 8, "cache": True}
                options |= {"steps": 100, "warm": 80}  # every image is cached by then
            options["train"] = train
            name = f"training, yolov8{scale}, {size} px"
            yield Row(f"{name}, fp32", "train", options, target=None if files.gpu else 1.15)
            if files.gpu:
                mixed, wanted = merged(options, {"train": {"amp": True}}), (scale, size)
                target = 2.0 if wanted == ("n", 640) else None
                yield Row(f"{name}, mixed precision", "train", mixed, target=target)
                yield Row(f"{name}, fastest", "train", mixed, {"train": FAST_ON_GPU}, target=target)
            elif fast:
                yield Row(f"{name}, fastest", "train", options, {"train": FAST}, target=2.3)


def pipelines(files: Files) -> Iterator[Row]:
    """Yield the rows of the data pipeline alone."""
    for size in (320, 640):
        for workers in (0, 2):
            for cache in (False, True):
                data = files.train if cache else files.many
                train = {
                    "data": str(data), "imgsz": size, "batch": 16, "workers": workers,
                    "device": files.device, "cache": cache,
                }  # fmt: skip
                options = {"model": "yolov8n.yaml", "steps": 15, "warm": 35, "train": train}
                told = f"{workers} workers, {'cached' if cache else 'from files'}"
                yield Row(f"data pipeline, {size} px, {told}", "data", options, target=2.0)


def losses(files: Files) -> Iterator[Row]:
    """Yield the rows of assigner and losses alone."""
    for count in (16, 200, 2000):
        targets = files.folder / f"targets{count}.npz"
        rng = np.random.default_rng(count)
        low = rng.uniform(0, 0.9, (8, count, 2))
        high = low + rng.uniform(0.02, 0.1 if count > 16 else 0.5, (8, count, 2))
        boxes = np.concatenate([low, high.clip(0, 1)], 2).astype(np.float32)
        images = rng.random((8, 1, 1, 1), dtype=np.float32)
        np.savez(targets, boxes=boxes, classes=rng.integers(0, 5, (8, count)), images=images)
        train = {"data": str(files.train), "imgsz": 640, "batch": 8, "workers": 0,
                 "device": files.device, "amp": False}  # fmt: skip
        options = {
            "model": "yolov8n.yaml", "targets": str(targets), "train": train,
            "steps": 10 if count < 2000 else 2,
        }  # fmt: skip
        yield Row(
            f"assigner and loss, {count} objects an image", "loss", options, unit="s", target=0.5
        )


def predictions(files: Files, fast: bool) -> Iterator[Row]:
    """Yield the rows of prediction, arrays in and boxes out."""
    on_cpu = (1, "s", 0.75, 0.5), (32, "img/s", 1.6, 3.5)
    on_gpu = (1, "s", 0.6, 0.6), (32, "img/s", None, None)
    for batch, unit, plain, quick in on_gpu if files.gpu else on_cpu:
        options = {
            "model": str(files.weights), "images": str(files.images), "batch": batch,
            "calls": (20 if batch == 1 else 1) * (10 if files.gpu else 1),
            "predict": {"imgsz": 640, "device": files.device},
        }  # fmt: skip
        name = f"prediction, 640 px, batch {batch}"
        yield Row(f"{name}, fp32", "predict", options, unit=unit, target=plain)
        if fast:
            yield Row(f"{name}, fastest", "predict", options, {"predict": FAST}, unit, quick)
        onnx = merged(options, {"onnx": True, "predict": {"device": "cpu"}})
        yield Row(f"{name}, ONNX", "predict", onnx, unit=unit)


# ---------------------------------------------------------------------- measuring


def time_command(python: Path, command: list[str], folder: Path) -> tuple[float, int]:
    """Run a command in a fresh process; return (seconds, 1)."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    subprocess.run([str(python), *command], cwd=folder, env=environment, check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    return time.perf_counter() - start, 1


def measure(row: Row, python: dict[str, Path], files: Files, rounds: int) -> dict[str, Any]:
    """Run a row; return what results.jsonl holds of it."""
    options = {"peer": row.options, "ours": merged(row.options, row.ours)}
    found: dict[str, list[float]] = {side: [] for side in options}
    busy: dict[str, list[float]] = {side: [] for side in options}
    peaks: dict[str, float | None] = {}
    with ExitStack() as stack:
        gauge = None
        if files.gpu and shutil.which("nvidia-smi"):
            gauge = stack.enter_context(closing(Gauge(files.device)))
        drivers = {}
        if row.case != "command":
            for side in options:
                about = options[side] | {"out": str(files.folder / "runs" / side)}
                if about.pop("onnx", False):
                    about["model"] = str(files.folder / f"{side}.onnx")
                drivers[side] = stack.enter_context(closing(Driver(
                    python[side], HERE / f"speed_{side}.py", row.case, about, files.folder,
                    files.folder / f"{side}.log",
                )))  # fmt: skip
        for number in range(rounds):
            for side in list(options)[:: 1 if number % 2 else -1]:
                start = time.perf_counter()
                if drivers:
                    seconds, count = drivers[side].round()
                else:
                    seconds, count = time_command(
                        python[side], options[side]["command"], files.folder
                    )
                found[side].append(count / seconds if row.unit == "img/s" else seconds / count)
                busy[side] += gauge.samples(start) if gauge else []
        peaks = {side: driver.peak_mib() for side, driver in drivers.items()}
        gpu = {side: driver.gpu_mib for side, driver in drivers.items()}
    ratios = [ours / peer for ours, peer in zip(found["ours"], found["peer"], strict=True)]
    ratio = statistics.median(ratios)
    return {
        "row": row.name, "unit": row.unit, "target": row.target, "holds": row.holds(ratio),
        "ratio": ratio, "spread": [min(ratios), max(ratios)], "peak_mib": peaks, "gpu_mib": gpu,
        "busy": {side: statistics.fmean(shares) for side, shares in busy.items() if shares},
        "ours": statistics.median(found["ours"]), "peer": statistics.median(found["peer"]),
        "rounds": rounds, "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def prepare(folder: Path, python: dict[str, Path], device: str, weights: Path | None) -> Files:
    """Write the sets and pictures, and let the peer train the detector that both sides run."""
    folder.mkdir(parents=True, exist_ok=True)
    train = write_shapes(folder / "train", train=480 if device == "cpu" else 4096, val=16, size=640)
    many = write_shapes(folder / "many", train=MANY, val=16, size=640)
    val = write_shapes(folder / "val", train=1, val=500, size=640)
    images = folder / "images.npy"
    np.save(images, np.stack([scene(1, "test", i, (640, 640)).image for i in range(32)]))
    common = folder / "weights.pt"
    if weights:
        common = weights.absolute()
    elif not common.is_file():
        options = {
            "model": "yolov8n.yaml", "out": str(folder / "runs"), "to": str(common), "train": {
                "data": str(train), "epochs": 6, "imgsz": 256, "batch": 16, "device": device,
                "workers": 0,
            },
        }  # fmt: skip
        script = HERE / "speed_peer.py"
        Driver(python["peer"], script, "weights", options, folder, folder / "weights.log").close()
    for side in python:
        target = folder / f"{side}.onnx"
        if not target.is_file():
            write_onnx(python[side], side, common, target)
    return Files(folder, train, many, val, common, images, device)


def write_onnx(python: Path, side: str, weights: Path, target: Path) -> None:
    """Let a side export the weights to `target`."""
    library = {"ours": "yolo", "peer": "ultralytics"}[side]
    code = (
        f"import shutil; from {library} import YOLO; shutil.copy({str(weights)!r}, 'export.pt'); "
        f"f = YOLO('export.pt').export(format='onnx', imgsz=640, dynamic=True, simplify=False); "
        f"shutil.move(str(f), {str(target)!r})"
    )
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | {
            "PYTHONPATH": str(HERE.parent), "YOLO_OFFLINE": "true", "YOLO_CONFIG_DIR": scratch,
        }  # fmt: skip
        subprocess.run([str(python), "-c", code], cwd=scratch, env=environment, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip


# ---------------------------------------------------------------------- the page


def table(found: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| what | ours | peer | ours / peer | lowest, highest | target | memory, ours / peer |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        low, high = row["spread"]
        sign = "≥" if row["unit"] == "img/s" else "≤"
        target = f"{sign} {row['target']:g}" if row["target"] else ""
        verdict = {True: ": holds", False: ": **missed**", None: ""}[row["holds"]]
        memory, on_gpu = pair(row["peak_mib"]), pair(row.get("gpu_mib", {}))
        busy = row.get("busy", {})
        memory += f"; GPU {on_gpu}" if on_gpu else ""
        memory += f", busy {busy['ours']:.0f} / {busy['peer']:.0f} %" if len(busy) == 2 else ""
        ours, peer = (shown(row[side], row["unit"]) for side in ("ours", "peer"))
        lines.append(
            f"| {row['row']} | {ours} | {peer} |"
            f" **{row['ratio']:.2f}** | {low:.2f}, {high:.2f} | {target}{verdict} | {memory} |"
        )
    return "\n".join(lines)


def pair(peaks: dict[str, float | None]) -> str:
    """Return both sides' peaks, marked where ours is the higher one; "" unless both are known."""
    ours, peer = peaks.get("ours"), peaks.get("peer")
    if not ours or not peer:
        return ""
    return f"{ours:.0f} / {peer:.0f} MiB" + ("" if ours <= peer else " **more**")


def shown(value: float, unit: str) -> str:
    """Return a figure with its unit."""
    if unit == "s" and value < 1:
        return f"{1000 * value:.1f} ms"
    return f"{value:.3g} {unit}"


PAGE = """# Speed, beside the peer

Made by `python -m benchmarks.run --peer PEER_PYTHON --page docs/benchmarks.md`, {dates}.

The peer is ultralytics {peer}, run as a black box in its own environment. Both sides run in turns
in processes of their own; a ratio is the median over the rounds, beside the lowest and the highest.
"Fastest" is `amp="bf16"`, on processors with such instructions; in training on a GPU, ours has
`compile="reduce-overhead", augment_on="device"` beside the mixed precision of both. Memory is the
peak of a side's first process, or what all of its processes together hold after a round, if that is
more; pages that they share count in shares. "From files" is a set that no row goes through twice.
"Busy" is the mean use of a GPU.

{table}

Machine: {machine}.
"""


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True, help="interpreter of the peer")
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    parser.add_argument("--only", nargs="*", default=[], help="rows whose name begins so")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", type=Path, help="a detector's checkpoint of the peer's")
    parser.add_argument("--fast", action="store_true", help="measure bf16, whatever the processor")
    parser.add_argument("--page", type=Path, help="Markdown file to write")
    return parser.parse_args()


def main() -> None:
    """Measure what isn't measured yet, print the table, write the page."""
    args = parse()
    python = {"ours": Path(sys.executable), "peer": args.peer.absolute()}
    folder = args.out.absolute()
    files = prepare(folder, python, args.device, args.weights)
    log = folder / "results.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    fast = args.fast or args.device != "cpu" or bf16_instructions() != "none"
    wanted = [row for row in rows(files, fast) if row.name.startswith(tuple(args.only) or ("",))]
    for row in wanted:
        if any(old["row"] == row.name for old in done):
            continue
        print(f"{row.name} ...", file=sys.stderr, flush=True)
        done.append(measure(row, python, files, args.rounds))
        with log.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
    order = [row.name for row in wanted]
    found = sorted((r for r in done if r["row"] in order), key=lambda r: order.index(r["row"]))
    print(table(found))
    if args.page and found:
        code = "import ultralytics; print(ultralytics.__version__)"
        version = subprocess.run([str(args.peer), "-c", code], capture_output=True, text=True)
        machine = ", ".join(f"{key} {value}" for key, value in machine_facts().items())
        dates = " to ".join(sorted({min(r["date"] for r in found), max(r["date"] for r in found)}))
        text = PAGE.format(
            table=table(found), dates=dates, peer=version.stdout.strip(), machine=machine
        )
        args.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
