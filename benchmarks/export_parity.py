# SPDX-License-Identifier: Apache-2.0
"""Export every task in every way, run the files, and compare their boxes with torch's.

    python -m benchmarks.export_parity [--weights FOLDER] [--tasks detect ...] [--only ONNX ...]
        [--peer PEER_PYTHON] [--out PAGE.md]

`--weights` is a folder of <task>.pt. Without it a detector is trained for some minutes on drawn
scenes, and the networks of all tasks take over what fits: backbone, neck, boxes and classes, while
mask coefficients, keypoints and angles stay as they were drawn. Each file predicts six images of
several shapes; the score floor is lowered until torch finds 20 boxes in them.
The files with your own modules and with raw input are run by onnxruntime alone, all others through
`YOLO(file).predict`. With `--peer`, our files run in the peer, and files that the peer exports of
the same weights run here, both against the other side's boxes from the same file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.accuracy import TASKS
from benchmarks.export_rows import Finding, Rows, compare, floor_of, rows_of, table
from yolo import TASKS as SPECS
from yolo import YOLO
from yolo.cfg.load import read_yaml, write_yaml
from yolo.cfg.networks import FOLDER as NETWORKS
from yolo.data.letterbox import letterbox
from yolo.data.shapes import write_shapes
from yolo.export.proof import BOUNDS
from yolo.machine import machine_facts

SIZE, IOU, MAX_DET = 160, 0.7, 300
SHAPES = ((160, 160), (120, 200), (210, 150), (96, 160), (333, 250), (64, 64))
"""(h, w) of the images."""

LIFT = 2.5
"""Added to the class logits, since scores are small after a short training."""


@dataclass(frozen=True)
class Variant:
    """One way to export.

    Attributes:
        name: in the table.
        options: of the export.
        runner: "predict" runs the file through the library, "raw" and "own" by onnxruntime alone.
        precision: whose bounds count.
    """

    name: str
    options: dict[str, Any]
    runner: str = "predict"
    precision: str = "fp32"

    @property
    def rect(self) -> bool:
        """Whether canvases follow the images' shapes."""
        return self.options.get("dynamic") is True


VARIANTS = (
    Variant("ONNX", {"format": "onnx"}),
    Variant('ONNX, dynamic="batch"', {"format": "onnx", "dynamic": "batch"}),
    Variant("ONNX, dynamic=True", {"format": "onnx", "dynamic": True}),
    Variant("ONNX, fp16", {"format": "onnx", "half": True}, precision="fp16"),
    Variant("ONNX, nms=True", {"format": "onnx", "dynamic": "batch", "nms": True}),
    Variant('ONNX, preprocess="raw"', {"format": "onnx", "preprocess": "raw"}, "raw"),
    Variant(
        'ONNX, preprocess="raw", dynamic=True',
        {"format": "onnx", "preprocess": "raw", "dynamic": True},
        "raw",
    ),
    Variant("ONNX, own modules before and after", {"format": "onnx"}, "own"),
    Variant("TorchScript", {"format": "torchscript"}),
    Variant("TorchScript, nms=True", {"format": "torchscript", "nms": True}),
    Variant("torch.export", {"format": "torch_export", "dynamic": True}),
    Variant("torch.export, nms=True", {"format": "torch_export", "nms": True}),
    Variant("OpenVINO", {"format": "openvino"}),
    Variant("OpenVINO, dynamic=True", {"format": "openvino", "dynamic": True}),
    Variant("OpenVINO, nms=True", {"format": "openvino", "nms": True}),
    Variant("OpenVINO, fp16", {"format": "openvino", "half": True}, precision="fp16"),
    Variant("OpenVINO, int8", {"format": "openvino", "int8": True}, precision="int8"),
)


class FromBytes(nn.Module):
    """A user's module: (B, 3, H, W) uint8 BGR to what networks take."""

    def __init__(self) -> None:
        super().__init__()
        self.example = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)

    def forward(self, images: Tensor) -> Tensor:
        """Return RGB 0..1."""
        return images.flip(1).float() / 255


class Corners(nn.Module):
    """A user's module: corners in place of centres and sides; classifiers' output as it is."""

    def forward(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the outputs with another first one."""
        pred, *rest = outputs
        if pred.ndim == 3:
            half = pred[:, 2:4] / 2
            pred = torch.cat((pred[:, :2] - half, pred[:, :2] + half, pred[:, 4:]), 1)
        return pred, *rest


# ---------------------------------------------------------------------- one task


def detector(folder: Path) -> Path:
    """Train a detector on a few drawn scenes."""
    data = write_shapes(folder / "data", train=64, val=8, size=SIZE)
    metrics = YOLO("yolov8n.yaml").train(
        data=str(data), epochs=25, imgsz=SIZE, batch=8, nbs=8, device="cpu", workers=0,
        optimizer="AdamW", lr0=0.003, warmup_epochs=1.0, warmup_bias_lr=0.0, mosaic=0.0,
        translate=0.0, plots=False, verbose=False, project=str(folder), name="train",
    )  # fmt: skip
    return Path(metrics.save_dir) / "weights" / "last.pt"


def network_from(base: Path, task: str, folder: Path) -> Path:
    """Write a task's network that has taken over what fits of a detector's."""
    names = YOLO(base).names
    network = read_yaml(NETWORKS / f"yolov8{TASKS[task].suffix}.yaml")
    source = folder / TASKS[task].network
    write_yaml(source, {**network, "nc": len(names), "names": dict(names)})
    torch.manual_seed(0)
    model = YOLO(source).load(base, partial=True)
    if SPECS[task].outputs.boxes:
        for layer in model.model.head.class_layers:
            layer.bias.data += LIFT
    model.save(folder / f"{task}.pt")
    return folder / f"{task}.pt"


class Bench:
    """One task's network, its images, and torch's boxes.

    Args:
        task: name.
        weights: a checkpoint.
        folder: for all files.
    """

    def __init__(self, task: str, weights: Path, folder: Path) -> None:
        self.task, self.spec, self.folder, self.weights = task, SPECS[task], folder, weights
        kind = TASKS[task].kind
        self.data = write_shapes(folder / "data", train=8, val=24, size=SIZE, kind=kind)
        self.images = [self._image(i, shape) for i, shape in enumerate(SHAPES)]
        self.torch = YOLO(self.weights)
        self.conf = 0.25
        if self.spec.outputs.boxes:
            found = self.predict(self.torch, False, 1e-3)
            self.conf = floor_of(np.concatenate([rows[:, 4] for rows in found]))

    def _image(self, number: int, shape: tuple[int, int]) -> Path:
        """Draw an image in which there is something to find, and write it."""
        kind = TASKS[self.task].kind
        kind = "boxes" if kind == "classes" else kind
        drawn = write_shapes(
            self.folder / f"image{number}", train=1, val=1, size=shape, seed=number, kind=kind
        )
        (file,) = (drawn.parent / "images" / "val").iterdir()
        return file

    def read(self) -> list[np.ndarray]:
        """Return the images, BGR."""
        return [np.asarray(cv2.imread(str(file))) for file in self.images]

    def predict(self, model: YOLO, rect: bool, conf: float | None = None) -> Rows:
        """Predict all images, several at once."""
        results = model.predict(
            [str(file) for file in self.images], imgsz=SIZE, rect=rect, device="cpu", iou=IOU,
            conf=self.conf if conf is None else conf, max_det=MAX_DET, verbose=False, batch=4,
        )  # fmt: skip
        return [rows_of(result) for result in results]

    def export(self, variant: Variant) -> tuple[Path, str]:
        """Export; return the file, and what its own proof says."""
        proofs: list[str] = []
        name = "".join(c if c.isalnum() else "_" for c in variant.name)
        place = self.folder / name / f"{self.task}.pt"
        place.parent.mkdir()
        shutil.copy(self.weights, place)
        model = YOLO(place)
        model.add_callback("on_export_end", lambda exporter: proofs.append(str(exporter.agreement)))
        options = {"imgsz": SIZE, "device": "cpu", "verbose": False, **variant.options}
        if self.spec.outputs.boxes:
            options |= {"conf": self.conf, "iou": IOU, "max_det": MAX_DET}
        if variant.options.get("int8"):
            options["data"] = str(self.data)
        if variant.runner == "own":
            options |= {"preprocess": FromBytes(), "postprocess": Corners()}
        return Path(model.export(**options)), proofs[0] if proofs else ""

    def check(self, variant: Variant) -> Finding:
        """Export and compare."""
        found = Finding(self.task, variant.name, BOUNDS[variant.precision], conf=self.conf)
        try:
            file, found.proof = self.export(variant)
            if variant.runner == "own":
                return self._compare_numbers(found, file)
            wanted = self.predict(self.torch, variant.rect)
            if variant.runner == "raw":
                if self.spec.outputs.names[1:]:
                    wanted = [rows[:, :6] for rows in wanted]  # coefficients in place of masks
                return compare(found, self.spec, wanted, self._run_raw(file))
            return compare(found, self.spec, wanted, self.predict(YOLO(file), variant.rect))
        except Exception as error:  # one line of the table; the others are wanted none the less
            found.fault = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
            return found

    def _run_raw(self, file: Path) -> Rows:
        """Run a file on the images as they are, with nothing but its runtime."""
        run = onnx_run(file)
        rows = [run(image)[0] for image in self.read()]
        return [r[0][r[0][:, 4] > 0] if self.spec.outputs.boxes else r for r in rows]

    def _compare_numbers(self, found: Finding, file: Path) -> Finding:
        """Compare all numbers of a file with modules of one's own around the network."""
        run, network = onnx_run(file), self.torch.model.float().eval()
        before, after = FromBytes(), Corners()
        for image in self.read():
            canvas = letterbox(image, (SIZE, SIZE))[0].transpose(2, 0, 1)[None]
            with torch.no_grad():
                outputs = network(before(torch.from_numpy(canvas.copy())))
                outputs = after(outputs if isinstance(outputs, tuple) else (outputs,))
            apart = np.abs(outputs[0].numpy() - run(np.ascontiguousarray(canvas))[0])
            scores = apart
            if self.spec.outputs.boxes:
                scores = apart[:, 4 : 4 + len(self.torch.names)]
                found.px = max(found.px, float(apart[:, :4].max()))
            found.score = max(found.score, float(scores.max()))
            found.boxes += apart.shape[2] if self.spec.outputs.boxes else 1
        good = found.px <= found.bounds.px and found.score <= found.bounds.score
        found.matched = found.boxes if good else 0
        return found


def onnx_run(file: Path) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Return a function that runs a file of one input by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})


# ---------------------------------------------------------------------- the peer

PEER_RUNS = (*VARIANTS[:3], VARIANTS[4], VARIANTS[8], VARIANTS[12], VARIANTS[15])
"""Our files that the peer runs."""

PEER_MAKES: dict[str, dict[str, Any]] = {
    "ONNX": {"format": "onnx"},
    "ONNX, dynamic=True": {"format": "onnx", "dynamic": True},
    "ONNX, nms=True": {"format": "onnx", "nms": True},
    "TorchScript": {"format": "torchscript"},
}
"""Files of the peer that we run: name and its export options."""


def with_peer(bench: Bench, python: Path) -> list[Finding]:
    """Run our files there, and the peer's here; each is compared on the same file."""
    network = bench.torch.model
    folder = bench.folder / "peer"
    folder.mkdir()
    written = {**network.yaml, "names": None, "scale": None}
    yaml = folder / TASKS[bench.task].network
    write_yaml(yaml, {key: value for key, value in written.items() if value is not None})
    state = {key: value.numpy() for key, value in network.float().state_dict().items()}
    np.savez(folder / "weights.npz", **state)

    boxes = bench.spec.outputs.boxes
    options = {"imgsz": SIZE, "iou": IOU, "max_det": MAX_DET, "conf": bench.conf}
    runs: list[dict[str, Any]] = []
    ours: list[tuple[str, Path, bool]] = []
    for variant in PEER_RUNS:
        if boxes or "nms" not in variant.options:
            name = "".join(c if c.isalnum() else "_" for c in variant.name)
            (file,) = (f for f in (bench.folder / name).iterdir() if f.suffix != ".pt")
            ours.append((f"ours there: {variant.name}", file, variant.rect))
            runs.append({"file": str(file), "task": bench.task,
                         "options": {**options, "rect": variant.rect}})  # fmt: skip
    makes: list[dict[str, Any]] = []
    for i, (name, given) in enumerate(PEER_MAKES.items()):
        if not boxes and "nms" in given:
            continue
        place = folder / str(i)
        place.mkdir()
        extra = {"conf": bench.conf, "iou": IOU, "max_det": MAX_DET} if "nms" in given else {}
        makes.append({"network": str(yaml), "task": bench.task, "folder": str(place),
                      "weights": str(folder / "weights.npz"), "names": list(network.names.values()),
                      "options": {"imgsz": SIZE, "device": "cpu", **given, **extra},
                      "name": name})  # fmt: skip
        rect = given.get("dynamic") is True
        runs.append({"file": len(makes) - 1, "task": bench.task,
                     "options": {**options, "rect": rect}})  # fmt: skip
    request, answer = folder / "request.json", folder / "answer.json"
    asked = {"images": [str(file) for file in bench.images], "make": makes, "run": runs}
    request.write_text(json.dumps(asked), encoding="utf-8")
    script = Path(__file__).with_name("peer_exports.py")
    done = subprocess.run(
        [str(python), str(script), str(request), str(answer)], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"the peer failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    answered = json.loads(answer.read_text(encoding="utf-8"))
    theirs = [
        (f"the peer's here: {item['name']}", Path(file), item["options"].get("dynamic") is True)
        for item, file in zip(makes, answered["made"], strict=True)
    ]
    findings = []
    for (name, file, rect), rows in zip([*ours, *theirs], answered["rows"], strict=True):
        found = Finding(bench.task, name, BOUNDS["fp32"], conf=bench.conf)
        try:
            mine = bench.predict(YOLO(file, task=bench.task), rect)
            if bench.spec.outputs.names[1:]:  # the peer leaves out what has no pixel of a mask
                mine = [rows[rows[:, -1] > 0] for rows in mine]
            given = [np.array(r, dtype=np.float32) for r in rows]
            findings.append(compare(found, bench.spec, mine, given))
        except Exception as error:
            found.fault = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
            findings.append(found)
    return findings


# ---------------------------------------------------------------------- the page


def page(findings: Sequence[Finding]) -> str:
    """Return the whole page."""
    facts = machine_facts()
    versions = ", ".join(f"{key} {facts[key]}" for key in ("yolo", "torch") if key in facts)
    limits = "; ".join(
        f"{name}: {b.px:g} px, {b.score:g} score" + (f", {b.share:.0%} of boxes" * (b.share < 1))
        for name, b in BOUNDS.items()
    )
    return (
        "# Exported files against torch\n\n"
        f"Made by `python -m benchmarks.export_parity` ({versions}). Bounds: {limits}. *boxes* are "
        "those torch finds over the score *over* in six images of several shapes (of classifiers: "
        "the images; with own modules: all anchors); *agree* are those the file has, too.\n\n"
        f"{table(findings)}\n"
    )


def main() -> None:
    """Export, compare, print the table; the exit status is 1 where a file differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="folder of <task>.pt")
    parser.add_argument("--base", type=Path, help="a detector to use instead of training one")
    parser.add_argument("--peer", type=Path, help="interpreter of the peer")
    parser.add_argument("--out", type=Path, help="write the table as a page")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--only", nargs="*", default=[], help="parts of the variants' names")
    parser.add_argument("--files", type=Path, help="an empty folder to keep all files")
    args = parser.parse_args()
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = args.files.absolute() if args.files else Path(scratch)
        base = args.base or (None if args.weights else detector(root / "base"))
        for task in args.tasks:
            folder = root / task
            folder.mkdir(parents=True)
            given = args.weights / f"{task}.pt" if args.weights else None
            bench = Bench(task, given or network_from(base, task, folder), folder)
            for variant in VARIANTS:
                wanted = not args.only or any(part in variant.name for part in args.only)
                if wanted and (bench.spec.outputs.boxes or "nms" not in variant.options):
                    findings.append(bench.check(variant))
                    print(table(findings[-1:]).splitlines()[-1], flush=True)
            if args.peer:
                findings += with_peer(bench, args.peer)
    print(table(findings))
    if args.out:
        args.out.write_text(page(findings), encoding="utf-8")
    sys.exit(not all(finding.agrees for finding in findings))


if __name__ == "__main__":
    main()
