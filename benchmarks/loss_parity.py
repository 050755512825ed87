# SPDX-License-Identifier: Apache-2.0
"""Compare the loss items that one training step logs here and in the peer, on equal weights.

    python -m benchmarks.loss_parity --peer PEER_PYTHON

A set of exactly one batch, whose images have the network's input size already; no augmentation;
the weights are those that the peer starts from. Each side trains its own way for one step, and the
`train/` columns of both results.csv are compared. The exit status is 1 where an item that both
sides log differs by more than the tolerance.

Two known differences are kept out. Figures with a side below the second stride are avoided: the
peer enlarges such boxes when it assigns anchor points, which the network's classic build doesn't.
And masks are drawn as the peer draws them, with borders, whereas ours belong to the object that
holds a pixel's middle; what the mask item is with our own masks is shown beside, without a verdict,
and so is how well either kind of target, enlarged to the image as a prediction is, meets the
outline as COCO scores it: no network that learns its targets perfectly can do better.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from faster_coco_eval import mask as coco_mask
from torch.nn import functional

from benchmarks.accuracy import TASKS
from benchmarks.judge import LABELS, ground_truth
from yolo import TASKS as SPECS
from yolo import YOLO
from yolo.data.masks import polygon_rle
from yolo.data.sample import Sample
from yolo.data.scene import scene
from yolo.data.shapes import single_ring, write_shapes
from yolo.tasks.segment.data import MaskTargets

IMAGES, SIZE, SMALLEST = 8, 256, 16
OPTIONS: dict[str, Any] = {
    "epochs": 1, "batch": IMAGES, "imgsz": SIZE, "device": "cpu", "amp": False, "workers": 0,
    "optimizer": "SGD", "plots": False, "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "degrees": 0.0,
    "translate": 0.0, "scale": 0.0, "shear": 0.0, "perspective": 0.0, "flipud": 0.0, "fliplr": 0.0,
    "bgr": 0.0, "mosaic": 0.0, "mixup": 0.0, "cutmix": 0.0, "copy_paste": 0.0,
}  # fmt: skip
"""What both sides are given; all else is their default."""

COMPARED = {
    "detect": ("box", "cls", "dfl"),
    "segment": ("box", "seg", "cls", "dfl"),
    "pose": ("box", "pose", "kobj", "cls", "dfl"),
    "obb": ("box", "cls", "dfl"),  # the peer logs a further angle item, which ours leaves out
}


@dataclass(frozen=True)
class Item:
    """A loss item as both sides logged it."""

    task: str
    name: str
    ours: float
    peer: float
    judged: bool = True

    @property
    def difference(self) -> float:
        """The difference relative to the peer's number."""
        return abs(self.ours - self.peer) / max(abs(self.peer), 1e-12)


def one_batch(folder: Path, kind: str, seed: int) -> Path:
    """Write the set, and look that its figures are large enough.

    Raises:
        ValueError: if a figure isn't.
    """
    data = write_shapes(folder, train=IMAGES, val=2, size=(SIZE, SIZE), kind=kind, seed=seed)
    truth = ground_truth(folder / "images" / "train", kind)
    smallest = min(min(_sides(row)) for row in truth["annotations"])
    if smallest < SMALLEST:
        raise ValueError(f"a figure has a side of {smallest:.1f} pixels; draw another seed")
    return data


def _sides(row: dict[str, Any]) -> list[float]:
    if "poly" not in row:
        return list(row["bbox"][2:])
    corners = np.array(row["poly"]).reshape(4, 2)
    return np.linalg.norm(corners[:2] - corners[1:3], axis=1).tolist()


def logged_losses(results: Path) -> dict[str, float]:
    """Return the `train/` columns of the last row of a results.csv, by item: "box", "cls", ..."""
    with results.open(newline="") as file:
        *_, row = csv.DictReader(file)
    named = {key.strip(): value for key, value in row.items()}
    return {
        key.removeprefix("train/").removesuffix("_loss"): float(value)
        for key, value in named.items()
        if key.startswith("train/")
    }


def peer_losses(python: Path, network: str, data: Path, out: Path) -> dict[str, float]:
    """Let the peer train; leaves weights.npz in `out`."""
    out.mkdir(parents=True)
    command = [
        str(python), str(Path(__file__).with_name("peer_losses.py")), "--model", network,
        "--data", str(data), "--out", str(out), "--options", json.dumps(OPTIONS),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the peer failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return logged_losses(out / "results.csv")


def bordered_masks(samples: Sequence[Sample], size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Draw a batch's masks as the peer does, in place of `TaskSpec.extras`' own.

    An outline of V points becomes one of 1000 points, its own among them, whose coordinates lose
    their fractions; filled with its border, reduced to a quarter, and the smaller lie on top. Found
    by trying until the peer's loss came out.
    """
    height, width = size
    maps = np.zeros((len(samples), height // 4, width // 4), np.uint8)
    for canvas, sample in zip(maps, samples, strict=True):
        masks = []
        for (ring,) in sample.instances.polygons or []:
            closed = np.concatenate([ring, ring[:1]])
            corners = np.arange(len(closed))
            places = np.union1d(np.linspace(0, corners[-1], 1000 - len(closed)), corners)
            points = np.stack([np.interp(places, corners, side) for side in closed.T], 1)
            mask = np.zeros(size, np.uint8)
            cv2.fillPoly(mask, [points.astype(np.float32).astype(np.int32)], 1)
            masks.append(cv2.resize(mask, (width // 4, height // 4)))
        for row in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
            canvas[masks[row] > 0] = 1 + row
    return {"masks": torch.from_numpy(maps)}


DRAWN = {"seg": bordered_masks}
"""Items that depend on how targets are drawn, and the peer's way."""


def our_losses(
    task: str, data: Path, weights: Path, out: Path, extras: Any = None
) -> dict[str, float]:
    """Train here from the peer's weights; `extras` are the batch's, else the task's own."""
    arrays = np.load(weights, allow_pickle=False)
    state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}

    class FromPeer(SPECS[task].trainer):  # type: ignore[misc]
        def build_data(self) -> Any:
            if extras:
                self.spec = replace(self.spec, extras=lambda options, data: extras)
            return super().build_data()

        def build_model(self) -> Any:
            model = super().build_model()
            model.load_state_dict(state)
            return model

    YOLO(TASKS[task].network).train(
        trainer=FromPeer, data=str(data), project=str(out.parent), name=out.name, verbose=False,
        **OPTIONS,
    )  # fmt: skip
    return logged_losses(out / "results.csv")


def target_ious(draw: Any) -> list[float]:
    """Return each object's IoU of its target mask, enlarged, with its outline by COCO's rule.

    Args:
        draw: (samples, (h, w)) -> {"masks": (B, h/4, w/4), 0 and 1 + object}; one object a sample.
    """
    ious = []
    for index in range(32):
        drawn = scene(0, "train", index, (SIZE, SIZE))
        for row, polygon in enumerate(drawn.instances.polygons or []):
            alone = replace(
                drawn.instances.select(np.array([row])), polygons=[[single_ring(polygon)]]
            )
            sample = Sample(drawn.image, alone)
            exact = coco_mask.decode(polygon_rle(polygon, (SIZE, SIZE))) > 0
            small = (draw([sample], (SIZE, SIZE))["masks"][0] > 0).float()
            large = functional.interpolate(small[None, None], (SIZE, SIZE), mode="bilinear")[0, 0]
            target = large.numpy() > 0.5
            ious.append(float((exact & target).sum() / (exact | target).sum()))
    return ious


def compare(python: Path, task: str, folder: Path, seed: int) -> list[Item]:
    """Run both sides and pair their items."""
    data = one_batch(folder / "data", TASKS[task].kind, seed)
    peer = peer_losses(python, TASKS[task].network, data, folder / "peer")
    weights = folder / "peer" / "weights.npz"
    ours = our_losses(task, data, weights, folder / "ours")
    items = []
    for name in COMPARED[task]:
        if name in DRAWN:
            alike = our_losses(task, data, weights, folder / f"ours-{name}", DRAWN[name])
            items.append(Item(task, name, alike[name], peer[name]))
            items.append(Item(task, f"{name}, own targets", ours[name], peer[name], judged=False))
        else:
            items.append(Item(task, name, ours[name], peer[name]))
    return items


def table(items: list[Item], tolerance: float) -> str:
    """Return the items as a Markdown table."""
    lines = ["| task | item | ours | peer | relative difference | |", "|---|---|---|---|---|---|"]
    for item in items:
        verdict = "equal" if item.difference <= tolerance else "**differs**"
        verdict = verdict if item.judged else "see below"
        lines.append(
            f"| {item.task} | {item.name} | {item.ours:.5f} | {item.peer:.5f} "
            f"| {item.difference:.1e} | {verdict} |"
        )
    if not all(item.judged for item in items):
        means = (
            statistics.mean(target_ious(draw)) for draw in (MaskTargets(True, 4), bordered_masks)
        )
        lines += ["", NOTE.format(*means)]
    return "\n".join(lines)


NOTE = """Own targets: with masks as the library draws them, by the middles of pixels, in place of
the peer's, which have their borders, too. Enlarged to the image, our targets meet the outlines with
a mean IoU of {:.3f}, the peer's with {:.3f}."""


PAGE = """# One step's losses, beside the peer

Made by `python -m benchmarks.loss_parity --peer PEER_PYTHON --data-seed {seed} --page FILE`: one
training step on {images} drawn images of {size} pixels, from equal weights, without augmentation,
as both sides log it. The peer: ultralytics {peer}, run as a black box.

{table}
"""


def main() -> None:
    """Compare, print the table, and say by the exit status whether all items agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True, help="interpreter of the peer")
    tasks = [task for task in TASKS if TASKS[task].kind in LABELS]
    parser.add_argument("--tasks", nargs="*", default=tasks, choices=tasks)
    parser.add_argument("--data-seed", type=int, default=0, help="of the drawn images")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--page", type=Path, help="Markdown file to write")
    parser.add_argument("--out", type=Path, help="an empty folder to keep the files of both sides")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.out.absolute() if args.out else Path(scratch)
        items = []
        for task in args.tasks:
            items += compare(args.peer, task, folder / task, args.data_seed)
        version = (folder / args.tasks[0] / "peer" / "version").read_text()
    found = table(items, args.tolerance)
    print(found)
    if args.page:
        text = PAGE.format(table=found, seed=args.data_seed, images=IMAGES, size=SIZE, peer=version)
        args.page.write_text(text, encoding="utf-8")
    sys.exit(any(item.judged and item.difference > args.tolerance for item in items))


if __name__ == "__main__":
    main()
