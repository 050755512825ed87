# SPDX-License-Identifier: Apache-2.0
"""Train every task on `shapes` with this library and with the peer, and let one judge score both.

    python -m benchmarks.accuracy --peer PEER_PYTHON --out runs/accuracy --page docs/accuracy.md

The peer is an installed program that is run as a black box by `benchmarks/peer_accuracy.py` in its
own environment. Both sides train the same network from scratch on the same files, with the same
number of epochs, size, batch and seed and otherwise their own defaults, and write predictions.json
for the validation images from their best.pt; `benchmarks.judge` scores both against the label
files. Each finished run is a line of results.jsonl in the output folder; a second call goes on
where the first one stopped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge import coco_scores, ground_truth, read_rows, top1
from yolo import YOLO
from yolo.data.figures import NAMES
from yolo.data.images import cv2
from yolo.data.scene import scene
from yolo.data.shapes import SIZE, write_shapes
from yolo.machine import machine_facts

Row = dict[str, Any]
SIDES = ("ours", "peer")
BATCH = 16
CUT_OUT = "cut out"
MARGIN = 0.1  # of a figure's box on each side


@dataclass(frozen=True)
class Task:
    """How a task's data are written and its predictions compared.

    Attributes:
        suffix: of the task's network names.
        kind: of labels, for `write_shapes`.
        compared: part -> what the judge compares; none where the class of an image is all.
    """

    suffix: str
    kind: str
    compared: dict[str, str] = field(default_factory=dict)

    @property
    def network(self) -> str:
        """The network that is trained."""
        return f"yolov8n{self.suffix}.yaml"

    @property
    def metrics(self) -> list[str]:
        """The scores that decide, one a part."""
        return [f"{part} mAP50-95" for part in self.compared] or ["top-1"]


TASKS = {
    "detect": Task("", "boxes", {"box": "bbox"}),
    "segment": Task("-seg", "polygons", {"box": "bbox", "mask": "segm"}),
    "pose": Task("-pose", "keypoints", {"box": "bbox", "keypoint": "keypoints"}),
    "obb": Task("-obb", "corners", {"rotated box": "poly"}),
    "classify": Task("-cls", "classes"),
}
SETS = TASKS | {"figures": Task("-cls", CUT_OUT)}
"""What is compared: the five tasks on `shapes`, and classes of figures that fill their image."""


# ---------------------------------------------------------------------- the data


def written(folder: Path, kind: str, train: int, val: int) -> Path:
    """Write the set with labels of a kind; return its data.yaml, or the folder of class folders."""
    if kind != CUT_OUT:
        return write_shapes(folder, train=train, val=val, kind=kind)
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            name, image = largest_figure(split, index)
            file = folder / split / name / f"{index:06d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), image)
    return folder


def largest_figure(split: str, index: int) -> tuple[str, np.ndarray]:
    """Return the class of an image of `shapes`, and the figure cut out that it is the class of."""
    drawn = scene(0, split, index, SIZE)
    sides = np.linalg.norm(np.diff(drawn.instances.corners[:, :3], axis=1), axis=2)  # (N, 2)
    x0, y0, x1, y1 = drawn.instances.boxes[sides.prod(1).argmax()]
    right, down = MARGIN * (x1 - x0), MARGIN * (y1 - y0)
    rows = slice(max(int(y0 - down), 0), int(y1 + down) + 1)
    columns = slice(max(int(x0 - right), 0), int(x1 + right) + 1)
    return NAMES[drawn.image_class], drawn.image[rows, columns]


# ---------------------------------------------------------------------- the two sides


def run_ours(task: str, data: Path, seed: int, out: Path, epochs: int, imgsz: int) -> Row:
    """Train and validate with this library; leaves predictions.json in `out`."""
    start = time.perf_counter()
    metrics = YOLO(SETS[task].network).train(
        data=str(data), epochs=epochs, imgsz=imgsz, batch=BATCH, seed=seed, device="cpu",
        plots=False, project=str(out), name="train", exist_ok=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    best = YOLO(metrics.save_dir / "weights" / "best.pt")
    if SETS[task].compared:
        metrics = best.val(
            data=str(data), imgsz=imgsz, batch=BATCH, device="cpu", plots=False, save_json=True,
            project=str(out.parent), name=out.name, exist_ok=True,
        )  # fmt: skip
    else:
        found = {}
        for file in sorted(data.glob("val/*/*")):
            result = best.predict(str(file), imgsz=imgsz, device="cpu", verbose=False)[0]
            found[str(file.relative_to(data))] = best.names[int(result.probs.top1)]
        (out / "predictions.json").write_text(json.dumps(found), encoding="utf-8")
    facts = machine_facts()
    return {
        "seconds": seconds,
        "versions": {key: facts[key] for key in ("yolo", "torch") if key in facts},
        "own": {key: float(value) for key, value in metrics.results_dict.items()},
    }


def run_peer(
    python: Path, task: str, data: Path, seed: int, out: Path, epochs: int, imgsz: int
) -> None:
    """Train and validate with the peer, whose words go to `out`.log."""
    command = [
        str(python), str(Path(__file__).with_name("peer_accuracy.py")),
        "--model", SETS[task].network, "--data", str(data), "--out", str(out),
        "--seed", str(seed), "--epochs", str(epochs), "--imgsz", str(imgsz),
        "--batch", str(BATCH),
    ]  # fmt: skip
    with out.with_name(f"{out.name}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)


def peer_facts(out: Path) -> Row:
    """Return what a finished run of the peer says about itself."""
    about = json.loads((out / "times.json").read_text(encoding="utf-8"))
    versions = {"ultralytics": about["version"], "torch": about["torch"]}
    return {"seconds": about["seconds"], "versions": versions}


def judged(task: str, data: Path, predictions: Any) -> dict[str, float]:
    """Score the predictions for the validation images.

    Args:
        task: a key of SETS.
        data: what `write_shapes` returned.
        predictions: what predictions.json holds.
    """
    compared = SETS[task].compared
    if not compared:
        return {"top-1": top1(predictions)}
    truth = ground_truth(data.parent / "images" / "val", SETS[task].kind)
    scores = {}
    for part, what in compared.items():
        strict, loose = coco_scores(truth, predictions, what)
        scores |= {f"{part} mAP50-95": strict, f"{part} mAP50": loose}
    return scores


# ---------------------------------------------------------------------- the page


def result_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table, one line a task and metric that both sides have.

    Our mean holds when it lies below the peer's by no more than the peer's seeds lie apart.
    """
    lines = [
        "| task | metric | ours, by seed | peer, by seed | our mean | peer's mean "
        "| our seeds apart | peer's seeds apart | difference | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task, facts in SETS.items():
        sides = [_by_seed(rows, who, task) for who in SIDES]
        for metric in facts.metrics if all(sides) else []:
            ours, peer = ([row["scores"][metric] for row in side] for side in sides)
            means = statistics.mean(ours), statistics.mean(peer)
            spreads = max(ours) - min(ours), max(peer) - min(peer)
            difference = means[0] - means[1]
            cells = [
                task, metric, *(" ".join(f"{x:.4f}" for x in side) for side in (ours, peer)),
                *(f"{x:.4f}" for x in (*means, *spreads)), f"{difference:+.4f}",
                "holds" if difference >= -spreads[1] else "**below**",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def time_table(rows: Sequence[Row]) -> str:
    """Return what was run, and how long the training took."""
    lines = [
        "| task | side | seeds | versions | training, minutes by seed |",
        "|---|---|---|---|---|",
    ]
    for task in SETS:
        for who in SIDES:
            done = _by_seed(rows, who, task)
            if done:
                seeds = " ".join(str(row["seed"]) for row in done)
                versions = ", ".join(f"{k} {v}" for k, v in done[0]["versions"].items())
                minutes = " ".join(f"{row['seconds'] / 60:.1f}" for row in done)
                lines.append(f"| {task} | {who} | {seeds} | {versions} | {minutes} |")
    return "\n".join(lines)


def _by_seed(rows: Sequence[Row], who: str, task: str) -> list[Row]:
    found = [row for row in rows if (row["who"], row["task"]) == (who, task)]
    return sorted(found, key=lambda row: row["seed"])


def page(rows: Sequence[Row], epochs: int, imgsz: int, constant: str = "") -> str:
    """Return docs/accuracy.md; `constant`: what `constant_answer` says."""
    dates = sorted(row["date"] for row in rows)
    return PAGE.format(
        first=dates[0], last=dates[-1], epochs=epochs, imgsz=imgsz, batch=BATCH,
        machine=", ".join(f"{key} {value}" for key, value in machine_facts().items()),
        results=result_table(rows), times=time_table(rows), constant=constant,
    )  # fmt: skip


PAGE = """# Accuracy: every task from scratch, beside the peer

Made by `python -m benchmarks.accuracy --peer PEER_PYTHON --page docs/accuracy.md`; the runs are
from {first} to {last}.

The embedded data `shapes` (400 training and 100 validation images), `yolov8n` of each task from
scratch, {epochs} epochs, imgsz {imgsz}, batch {batch}, float32 on the CPU, all other options as
each side has them by default. Each side's best.pt wrote predictions for the validation images;
`benchmarks/judge.py` scored both against the label files: pycocotools for boxes, masks and
keypoints, pycocotools' counting on exact polygon overlaps for rotated boxes, top-1 for classes.

{results}

A line holds when our mean isn't below the peer's by more than the peer's seeds lie apart.
{constant}
{times}

The times are no comparison of speed: several runs may have shared the machine.

Machine: {machine}.
"""


# ---------------------------------------------------------------------- the command


def constant_answer(data: Path) -> str:
    """Return what a top-1 of a set of class folders means beside always the same answer."""
    counts = [sum(1 for _ in folder.iterdir()) for folder in (data / "val").iterdir()]
    share = max(counts) / sum(counts)
    error = (share * (1 - share) / sum(counts)) ** 0.5
    return (
        f"\nOf classes: whoever gives the most frequent class as the only answer has a top-1 of"
        f" {share:.2f}, with a\nstandard error of {error:.2f} for that many images. A mean that"
        " isn't clearly above shows nothing learnt,\nand the difference of two such means nothing"
        " either: hence `figures`, the same images and classes, of which\neach is cut down to the"
        " largest figure, whose class it is.\n"
    )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="the interpreter of the peer's environment")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--tasks", nargs="*", default=list(SETS), choices=SETS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--imgsz", type=int, default=256)
    parser.add_argument("--only", choices=SIDES, help="run one side alone")
    parser.add_argument(
        "--adopt-peer", type=Path,
        help="folder of finished peer-TASK-SEED folders of the same settings to judge",
    )  # fmt: skip
    parser.add_argument(
        "--data-root", type=Path, help="where the sets are written or lie, a folder a label kind"
    )
    parser.add_argument("--images", type=int, nargs=2, default=[400, 100], metavar=("TRAIN", "VAL"))
    parser.add_argument("--page", type=Path, help="Markdown file to write")
    return parser.parse_args()


def run(args: argparse.Namespace, settings: Row, data: Path) -> Row | None:
    """Run one side once and judge it; None where it isn't to be run.

    Args:
        args: the command line.
        settings: who, task, seed, epochs, imgsz and images: what tells one run from another.
        data: the set.
    """
    who, task, seed = settings["who"], settings["task"], settings["seed"]
    out = args.out.absolute() / f"{who}-{task}-{seed}"
    if who == "ours":
        facts = run_ours(task, data, seed, out, args.epochs, args.imgsz)
    elif args.adopt_peer:
        out = args.adopt_peer / out.name
        if not (out / "times.json").is_file():  # written last
            return None
        facts = peer_facts(out)
    elif args.peer:
        run_peer(args.peer, task, data, seed, out, args.epochs, args.imgsz)
        facts = peer_facts(out)
    else:
        return None
    scores = judged(task, data, read_rows(out / "predictions.json"))
    return settings | {"scores": scores, "date": datetime.date.today().isoformat()} | facts


def main() -> None:
    """Run what isn't finished and print the tables."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "results.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    common = {"epochs": args.epochs, "imgsz": args.imgsz, "images": args.images}
    constant = ""
    for task in args.tasks:
        kind = SETS[task].kind
        root = (args.data_root or args.out / "data") / kind
        data = written(root, kind, *args.images)
        if kind == "classes":
            constant = constant_answer(data)
        for seed in args.seeds:
            for who in (args.only,) if args.only else SIDES:
                settings = {"who": who, "task": task, "seed": seed} | common
                if any(row.items() >= settings.items() for row in done):
                    continue
                row = run(args, settings, data)
                if row:
                    done.append(row)
                    with log.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    rows = [row for row in done if row.items() >= common.items() and row["seed"] in args.seeds]
    print(result_table(rows), time_table(rows), sep="\n\n")
    if args.page and rows:
        args.page.write_text(page(rows, args.epochs, args.imgsz, constant), encoding="utf-8")


if __name__ == "__main__":
    main()
