# SPDX-License-Identifier: Apache-2.0
"""Train on BCCD (real microscope images) from scratch and score the test images with pycocotools.

    python -m benchmarks.bccd path/to/bccd.yaml --seeds 0 1 2 3 4 --out runs/bccd

Each finished seed is a line of results.jsonl in the output folder; a second call goes on where the
first one stopped. The score of a seed is pycocotools' mAP50-95 of best.pt on the split asked for,
against ground truth read from the label files here, not by the library.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import statistics
from pathlib import Path
from typing import Any

import yaml

from benchmarks.judge import coco_scores, ground_truth, read_rows
from yolo import YOLO
from yolo.machine import machine_facts


def run_seed(data: Path, seed: int, out: Path, options: dict[str, Any], split: str) -> dict:
    """Train one seed and score it."""
    name = f"seed{seed}"
    metrics = YOLO(options.pop("model")).train(
        data=str(data), seed=seed, project=str(out), name=name, exist_ok=True, **options
    )
    best = metrics.save_dir / "weights" / "best.pt"
    scored = YOLO(best).val(
        data=str(data), split=split, save_json=True, project=str(out), name=f"{name}-{split}",
        exist_ok=True, imgsz=options["imgsz"], batch=options["batch"], plots=False,
    )  # fmt: skip
    predictions = out / f"{name}-{split}" / "predictions.json"
    images = data.parent / "images" / split
    return {
        "seed": seed,
        "val": metrics.box.map,
        "split": split,
        "own": scored.box.map,
        "pycocotools": coco_scores(ground_truth(images), read_rows(predictions))[0],
    }


def result_table(rows: list[dict[str, Any]]) -> str:
    """Return the seeds' scores as a Markdown table with their mean."""
    lines = [
        "| seed | best val mAP50-95 | split | mAP50-95 | the same by pycocotools |",
        "|---|---|---|---|---|",
        *(
            "| {seed} | {val:.4f} | {split} | {own:.4f} | {pycocotools:.4f} |".format(**row)
            for row in rows
        ),
    ]
    scores = [row["pycocotools"] for row in rows]
    apart = max(abs(row["own"] - row["pycocotools"]) for row in rows)
    return "\n".join(lines) + (
        f"\n\nMean {statistics.mean(scores):.4f}, from {min(scores):.4f} to {max(scores):.4f}; the "
        f"two columns are at most {apart:.0e} apart."
    )


def recipe_table(folders: list[Path]) -> str:
    """Return what other runs reached on the validation images, from the files they left."""
    lines = ["| lr0 | precision | seed | best val mAP50-95 |", "|---|---|---|---|"]
    for folder in folders:
        options = yaml.safe_load((folder / "args.yaml").read_text())
        with (folder / "results.csv").open() as file:
            best = max(float(row["metrics/mAP50-95(B)"]) for row in csv.DictReader(file))
        precision = options["amp"] if isinstance(options["amp"], str) else "fp32"
        lines.append(f"| {options['lr0']:g} | {precision} | {options['seed']} | {best:.4f} |")
    return "\n".join(lines)


def page(rows: list[dict[str, Any]], recipes: list[Path]) -> str:
    """Return docs/bccd.md."""
    facts = machine_facts()
    machine = ", ".join(f"{key} {facts[key]}" for key in ("CPU", "torch", "numpy") if key in facts)
    text = PAGE.format(
        date=datetime.date.today().isoformat(), machine=machine, results=result_table(rows)
    )
    return text + (RECIPES.format(recipes=recipe_table(recipes)) if recipes else "")


PAGE = """# BCCD: real microscope images, from scratch

Made by `python -m benchmarks.bccd path/to/bccd.yaml --page docs/bccd.md`, {date}, on two cores:
{machine}.

`yolov8n.yaml`, 60 epochs, imgsz 320, batch 16, all other options as they are by default; best.pt
(chosen on the validation images) scored on the test images.

{results}
"""

RECIPES = """
## How the learning rate of `optimizer=auto` was chosen

On the validation images alone; the test images were looked at once, for the table above.

{recipes}
"""


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="bccd.yaml")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/bccd"))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("--amp", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--page", type=Path, help="Markdown file to write")
    parser.add_argument("--recipes", type=Path, nargs="*", default=[], help="other runs' folders")
    return parser.parse_args()


def main() -> None:
    """Run the seeds that aren't finished and print the table."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "results.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    for seed in args.seeds:
        if any(row["seed"] == seed and row["split"] == args.split for row in done):
            continue
        options = {
            "model": "yolov8n.yaml", "epochs": args.epochs, "imgsz": 320, "batch": 16,
            "device": "cpu", **({"amp": args.amp} if args.amp != "fp32" else {}),
        }  # fmt: skip
        row = run_seed(args.data, seed, args.out.absolute(), options, args.split)
        done.append(row)
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print(result_table(done))
    if args.page:
        args.page.write_text(page(done, args.recipes), encoding="utf-8")


if __name__ == "__main__":
    main()
