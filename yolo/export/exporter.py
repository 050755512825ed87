# SPDX-License-Identifier: Apache-2.0
"""Export: build the graph, write the file under a hidden name, prove it, give it its name."""

from __future__ import annotations

import importlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from yolo.backends import open_backend
from yolo.backends.exported import reason
from yolo.backends.metadata import RAW
from yolo.engine.events import Callbacks
from yolo.engine.inputs import input_size
from yolo.engine.progress import Progress
from yolo.engine.runtime import select_device
from yolo.errors import ConfigError, ExportError, YoloError
from yolo.export.formats import FORMATS, Axes, Format, Job
from yolo.export.graph import ExportGraph
from yolo.export.metadata import describe
from yolo.export.nms import Suppression
from yolo.export.probes import IMAGES, probes, raw_probes
from yolo.export.proof import BOUNDS, Agreement, Rules, expected, floor_of, prove
from yolo.export.raw import RawCrop, RawLetterbox

if TYPE_CHECKING:
    from yolo.cfg.schema import ExportConfig
    from yolo.tasks.spec import Outputs, TaskSpec

_HARMLESS = frozenset({"opset", "workspace"})
"""Options that a format may ignore: without them the file does the same."""


class Exporter:
    """Writes one file.

    Args:
        config: options of the export.
        spec: the task.
        network: a BaseModel; not altered.
        stem: path of the file without its suffix.
        callbacks: fired with this exporter.

    Attributes:
        args: the options.
        format: what is written.
        file: the file or folder, once it is there.
        agreement: what the proof found.
    """

    def __init__(
        self,
        config: ExportConfig,
        spec: TaskSpec,
        network: Any,
        stem: str | Path,
        callbacks: Callbacks | None = None,
    ) -> None:
        self.args = config
        self.spec = spec
        self.network = network
        self.callbacks = callbacks or Callbacks()
        self.format: Format = FORMATS[config.format]
        _check(config, spec, self.format)
        self.device = select_device("cpu" if config.device is None else config.device)
        self.stride = int(max(self.network.stride))
        self.size = input_size(config.imgsz, self.network.stride)
        self.layout: Outputs = spec.outputs  # type: ignore[assignment]  # _check has seen to it
        self.raw = isinstance(config.preprocess, str)
        self.nms = config.nms or (self.raw and self.layout.boxes)
        kind = "_int8" if config.int8 else "_aoti" if config.compile else ""
        stem = Path(stem)
        self.target = stem.with_name(f"{stem.name}{kind}{self.format.suffix}")
        self.file: Path | None = None
        self.agreement: Agreement | None = None
        self._measured = 0  # images for 8-bit scales

    def run(self) -> Path:
        """Write and prove the file.

        Raises:
            ExportError: if it can't be written, or doesn't agree with the model.
            YoloError: if an option or a package stands in the way.
        """
        self.callbacks.fire("on_export_start", self)
        start = time.perf_counter()
        self._reference = self._graph = self.graph(half=False)
        if self.args.half:
            self._graph = self.graph(half=True)
        self._example, self._inputs = self.inputs()
        with _hidden_folder(self.target.parent) as folder:
            hidden, twin = folder / self.target.name, folder / "twin" / self.target.name
            agreement = self._prove_with_boxes(twin)
            self.agreement = self._prove(hidden)
            if agreement is not None:
                self.agreement.join(agreement)
            _move(hidden, self.target)
        self.file = self.target
        took = time.perf_counter() - start
        Progress(self.args.verbose).line(
            f"exported to {self.file} in {took:.1f} s; proved on {self.agreement}"
        )
        self.callbacks.fire("on_export_end", self)
        return self.file

    def graph(self, half: bool) -> ExportGraph:
        """Build what is exported."""
        args, layout = self.args, self.layout
        before: Any = args.preprocess
        if self.raw and layout.fit == "letterbox":
            before = RawLetterbox(
                self.size,
                rgb=RAW[before],
                stride=self.stride if args.dynamic else None,
                rotated=layout.rotated,
                kpt_shape=getattr(self.network, "kpt_shape", None),
            )
        elif self.raw:
            before = RawCrop(self.size, rgb=RAW[before])
        nms = None
        if self.nms:
            nms = Suppression(
                len(self.network.names),
                conf=max(args.conf, 1e-9),
                iou=args.iou,
                max_det=args.max_det,
                agnostic=args.agnostic_nms,
                rotated=layout.rotated,
            )
        return ExportGraph(self.network, before, nms, args.postprocess, half).to(self.device)

    def inputs(self) -> tuple[Tensor, list[np.ndarray]]:
        """Return the input that the graph is traced with, and those that the file is proved on."""
        channels, dynamic = int(self.network.num_channels), self.args.dynamic
        own = getattr(self.args.preprocess, "example", None)
        if self.raw:
            example = torch.zeros(2 * self.size[0], 3 * self.size[1], channels, dtype=torch.uint8)
            found = raw_probes(self.size, channels)
        elif isinstance(own, Tensor):
            example, found = own, _like(own.cpu().numpy())
        else:
            # Sizes that are to stay free differ, and none is 1, which torch takes for fixed.
            size = (2 * self.stride, 3 * self.stride) if dynamic is True else self.size
            example = torch.zeros(2 if dynamic else self.args.batch, channels, *size)
            found = probes(self.size, channels, self.stride, self.args.batch, dynamic)
        return example.to(self.device), found

    def axes(self, outputs: Sequence[str]) -> Axes:
        """Return the sizes that stay free."""
        layout, dynamic = self.layout, self.args.dynamic
        if not (self.raw or dynamic):
            return {}
        batch = {} if self.raw else {0: "batch"}
        sides = {2: "height", 3: "width"} if dynamic is True else {}
        free = {"images": {0: "height", 1: "width"} if self.raw else {**batch, **sides}}
        for i, name in enumerate(outputs):
            known = self.args.postprocess is None and not (i == 0 and self.nms)
            sizes = layout.axes[i] if known and dynamic is True and i < len(layout.axes) else {}
            free[name] = {**batch, **sizes}
        return {name: sizes for name, sizes in free.items() if sizes}

    def _prove(self, path: Path) -> Agreement:
        """Write the file, and compare it with the graph in float32."""
        graph, example = self._graph, self._example
        with torch.no_grad():
            outputs = tuple(f"output{i}" for i in range(len(graph(example))))
        facts = describe(self.args, self.spec, self.network, self.size, self.nms)
        job = Job(self.args, facts, ("images",), outputs, self.axes(outputs), self._calibration)
        module, _, name = self.format.writer.partition(":")
        try:
            getattr(importlib.import_module(module), name)(graph, example, path, job)
        except YoloError:
            raise
        except Exception as error:  # torch and the runtimes' tools raise whatever they like
            raise ExportError(
                f"format={self.format.name!r}: the model can't be written ({reason(error)})"
            ) from error
        runner = self._runner(path)
        try:
            return prove(self._reference, runner, self._inputs, self.rules())
        except Exception as error:  # so may the runtimes
            why = str(error) if isinstance(error, ExportError) else reason(error)
            if self.args.int8:
                why += f"; 8-bit scales were measured on {self._measured} images, try more of them"
            raise ExportError(
                f"{self.target}: not written, since what it computes isn't what the model does: "
                f"{why}"
            ) from error

    def _prove_with_boxes(self, path: Path) -> Agreement | None:
        """Prove a twin of the file with a lower score floor, where too few boxes reach its own."""
        rules, graphs = self.rules(), (self._graph, self._reference)
        if not (rules.nms and rules.boxes):
            return None
        seen = [p for x in self._inputs for p in expected(graphs[1], x, rules).predictions]
        floor = floor_of(seen, rules)
        if floor > 0.8 * rules.conf:  # floor_of looks for a gap that far down
            return None
        path.parent.mkdir()
        for graph in graphs:
            graph.nms.conf = floor
        agreement = self._prove(path)
        for graph in graphs:
            graph.nms.conf = rules.conf
        return agreement

    def _runner(self, path: Path) -> Any:
        if self.args.compile:
            from yolo.export.torch_export import compiled

            return compiled(path, self.device)
        kind = self.format.device or self.device.type
        return open_backend(path, str(self.device) if kind == self.device.type else kind).run

    def rules(self) -> Rules:
        """Say how outputs are to be read and compared."""
        args, nms = self.args, self._reference.nms
        shape = getattr(self.network, "kpt_shape", None)
        return Rules(
            self.layout,
            len(self.network.names),
            shape[1] if shape else None,
            nms=nms is not None,
            opaque=args.postprocess is not None,
            conf=args.conf if nms is None else nms.conf,
            iou=args.iou,
            max_det=args.max_det,
            candidates=Rules.candidates if nms is None else nms.candidates,
            agnostic=args.agnostic_nms,
            bounds=BOUNDS["int8" if args.int8 else "fp16" if args.half else "fp32"],
        )

    def _calibration(self) -> Iterator[np.ndarray]:
        """Yield the images of the data that the user named, as the network sees them."""
        args = self.args
        schema = self.spec.val_config
        shared = {n: getattr(args, n) for n in schema.model_fields if n in args.model_fields_set}
        config = schema(**{**shared, "imgsz": self.size, "batch": 1, "rect": False})
        loader = self.spec.validator(config, self.spec).build_loader(self.network)
        from yolo.data.batch import normalize

        self._measured = 0
        try:
            for batch in loader:
                self._measured += len(batch)
                yield normalize(batch.images, torch.float32).contiguous().numpy()
        finally:
            loader.close()


def _check(config: ExportConfig, spec: TaskSpec, form: Format) -> None:
    """Refuse what can't be had, before anything is built.

    Raises:
        ConfigError: naming the option.
    """
    if spec.outputs is None:
        raise ConfigError(
            f"export: the task {spec.name!r} doesn't say its outputs; set outputs= in its TaskSpec"
        )
    some = set().union(*(f.takes for f in FORMATS.values()))
    refused = {n for n in config.model_fields_set & some - _HARMLESS if getattr(config, n)}
    refused -= form.takes
    if refused:
        able = [f.name for f in FORMATS.values() if refused <= f.takes]
        raise ConfigError(
            f"format={form.name!r} doesn't take {', '.join(sorted(refused))}"
            + (f"; use format={' or '.join(map(repr, able))}" if able else "")
        )
    before, after = config.preprocess, config.postprocess
    raw, modules = isinstance(before, str), nn.Module | None
    known = before in RAW if raw else isinstance(before, modules)
    faults = {
        "int8 and half: choose one": config.int8 and config.half,
        "int8=True needs data=, whose images set the scales": config.int8 and config.data is None,
        f"nms=True: {spec.name!r} has no boxes": config.nms and not spec.outputs.boxes,
        f"preprocess={before!r}: expected a torch module, {' or '.join(RAW)}": not known,
        "postprocess: expected a torch module": not isinstance(after, modules),
        "preprocess='raw' takes one image a call; leave batch and dynamic='batch' out": (
            raw and (config.batch > 1 or config.dynamic == "batch")
        ),
    }
    for text, holds in faults.items():
        if holds:
            raise ConfigError(f"export: {text}")


def _like(example: np.ndarray) -> list[np.ndarray]:
    """Return inputs of the shape and type of a user's example: that one, and noise."""
    rng = np.random.default_rng(0)
    most = 1 if example.dtype.kind == "f" else 256
    noise = [rng.random(example.shape) * most for _ in range(IMAGES - 1)]
    return [example, *(x.astype(example.dtype) for x in noise)]


@contextmanager
def _hidden_folder(parent: Path) -> Iterator[Path]:
    """Make a hidden folder beside the target, so that the last step is a mere change of name."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=parent) as folder:
        yield Path(folder)


def _move(hidden: Path, target: Path) -> None:
    """Give a proved file or folder its name; what had it is gone then."""
    if target.is_dir():
        os.replace(target, hidden.with_name("before"))
    os.replace(hidden, target)
