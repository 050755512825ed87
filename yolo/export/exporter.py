# SPDX-License-Identifier: Apache-2.0
"""Export: build the graph, write the file under a hidden name, prove it, give it its name."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from yolo.backends import open_backend
from yolo.backends.metadata import RAW
from yolo.engine.events import Callbacks
from yolo.engine.inputs import input_size
from yolo.engine.progress import Progress
from yolo.engine.runtime import select_device
from yolo.errors import ConfigError, ExportError, YoloError
from yolo.export.formats import FORMATS, Axes, Format, Job
from yolo.export.graph import ExportGraph, as_tuple
from yolo.export.metadata import describe
from yolo.export.nms import Suppression
from yolo.export.probes import IMAGES, probes, raw_probes
from yolo.export.proof import BOUNDS, Agreement, Rules, floor_of, prove
from yolo.export.raw import RawCrop, RawLetterbox

if TYPE_CHECKING:
    from yolo.cfg.schema import ExportConfig
    from yolo.tasks.spec import TaskSpec

_HARMLESS = frozenset({"opset", "simplify", "workspace", "split"})
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
        self.raw = isinstance(config.preprocess, str)
        self.nms = config.nms or (self.raw and spec.outputs.boxes)  # type: ignore[union-attr]
        kind = "_int8" if config.int8 else "_aoti" if config.compile else ""
        stem = Path(stem)
        self.target = stem.with_name(f"{stem.name}{kind}{self.format.suffix}")
        self.file: Path | None = None
        self.agreement: Agreement | None = None

    def run(self) -> Path:
        """Write and prove the file.

        Raises:
            ExportError: if it can't be written, or doesn't agree with the model.
            YoloError: if an option or a package stands in the way.
        """
        self.callbacks.fire("on_export_start", self)
        start = time.perf_counter()
        reference = self.graph(half=False)
        graph = self.graph(half=True) if self.args.half else reference
        inputs = self.inputs()
        with _hidden_folder(self.target.parent) as folder:
            hidden = folder / self.target.name
            twin = self._prove_with_boxes(graph, reference, inputs, hidden)
            self._write(graph, hidden)
            self.agreement = self._prove(reference, inputs, hidden)
            if twin is not None:
                self.agreement.join(twin)
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
        args, layout = self.args, self.spec.outputs
        assert layout is not None
        before: Any = args.preprocess
        kpt_shape = getattr(self.network, "kpt_shape", None)
        if self.raw:
            rgb = RAW[before]
            before = RawCrop(self.size, rgb=rgb)
            if layout.fit == "letterbox":
                before = RawLetterbox(
                    self.size,
                    rgb=rgb,
                    stride=self.stride if args.dynamic else None,
                    rotated=layout.rotated,
                    kpt_shape=kpt_shape,
                )
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

    def inputs(self) -> list[np.ndarray]:
        """Return what the file is proved on."""
        channels = int(self.network.num_channels)
        if self.raw:
            return raw_probes(self.size, channels)
        own = getattr(self.args.preprocess, "example", None)
        if isinstance(own, Tensor):
            return _like(own)
        return probes(self.size, channels, self.stride, self.args.batch, self.args.dynamic)

    def example(self) -> Tensor:
        """Return the input that the graph is traced with."""
        channels, dynamic = int(self.network.num_channels), self.args.dynamic
        own = getattr(self.args.preprocess, "example", None)
        if self.raw:
            found = torch.zeros(2 * self.size[0], 3 * self.size[1], channels, dtype=torch.uint8)
        elif isinstance(own, Tensor):
            found = own
        else:
            # Sizes that are to stay free differ, and none is 1, which torch takes for fixed.
            size = (2 * self.stride, 3 * self.stride) if dynamic is True else self.size
            found = torch.zeros(2 if dynamic else self.args.batch, channels, *size)
        return found.to(self.device)

    def axes(self, outputs: Sequence[str]) -> Axes:
        """Return the sizes that stay free."""
        layout, dynamic = self.spec.outputs, self.args.dynamic
        assert layout is not None
        if self.raw:
            free: dict[str, dict[int, str]] = {"images": {0: "height", 1: "width"}}
            first = {}
        elif not dynamic:
            return {}
        else:
            sides = {2: "height", 3: "width"} if dynamic is True else {}
            free, first = {"images": {0: "batch", **sides}}, {0: "batch"}
        for i, name in enumerate(outputs):
            known = self.args.postprocess is None and not (i == 0 and self.nms)
            sizes = layout.axes[i] if known and dynamic is True and i < len(layout.axes) else {}
            if first or sizes:
                free[name] = {**first, **sizes}
        return free

    def _write(self, graph: ExportGraph, path: Path) -> None:
        """Write the file, as a fault's cause tells what failed."""
        example = self.example()
        with torch.no_grad():
            count = len(graph(example))
        outputs = tuple(f"output{i}" for i in range(count))
        job = Job(
            self.args,
            describe(self.args, self.spec, self.network, self.size, self.nms),
            outputs=outputs,
            axes=self.axes(outputs),
            calibration=self._calibration if self.args.int8 else None,
        )
        module, _, name = self.format.writer.partition(":")
        writer = getattr(importlib.import_module(module), name)
        try:
            writer(graph, example, path, job)
        except (YoloError, KeyboardInterrupt):
            raise
        except Exception as error:  # torch and the runtimes' tools raise whatever they like
            reason = str(error).strip().splitlines()[0] if str(error) else ""
            raise ExportError(
                f"format={self.format.name!r}: the model can't be written "
                f"({type(error).__name__}: {reason[:300]})"
            ) from error

    def _prove(self, graph: ExportGraph, inputs: Sequence[np.ndarray], path: Path) -> Agreement:
        """Compare the file with the graph in float32."""
        try:
            return prove(graph, self._runner(path), inputs, self.rules(graph))
        except ExportError as error:
            raise ExportError(
                f"{self.target}: not written, since what it computes isn't what the model does: "
                f"{error}"
            ) from error

    def _prove_with_boxes(
        self, graph: ExportGraph, reference: ExportGraph, inputs: Sequence[np.ndarray], path: Path
    ) -> Agreement | None:
        """Prove a twin of the file with a lower score floor, where too few boxes reach its own."""
        if not self.nms or self.args.postprocess is not None:
            return None
        predictions = [p for x in inputs for p in _predictions(reference, x)]
        floor = floor_of(predictions, replace(self.rules(reference), nms=False))
        own = reference.nms.conf
        if floor > 0.8 * own:  # floor_of looks for a gap that far down
            return None
        graph.nms.conf = reference.nms.conf = floor
        try:
            self._write(graph, path)
            return self._prove(reference, inputs, path)
        finally:
            graph.nms.conf = reference.nms.conf = own
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _runner(self, path: Path) -> Any:
        if self.args.compile:
            from yolo.export.torch_export import compiled

            return compiled(path, self.device)
        kind = self.format.device or self.device.type
        return open_backend(path, str(self.device) if kind == self.device.type else kind).run

    def rules(self, graph: ExportGraph) -> Rules:
        """Say how outputs are to be read and compared."""
        args, layout = self.args, self.spec.outputs
        assert layout is not None
        shape = getattr(self.network, "kpt_shape", None)
        return Rules(
            layout,
            len(self.network.names),
            shape[1] if shape else None,
            nms=self.nms,
            opaque=args.postprocess is not None,
            conf=graph.nms.conf if self.nms else args.conf,
            iou=args.iou,
            max_det=args.max_det,
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

        try:
            for batch in loader:
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
    every = set().union(*(f.takes for f in FORMATS.values())) | {"nms", "preprocess", "postprocess"}
    asked = {n for n in config.model_fields_set & every if getattr(config, n)}
    refused = asked - form.takes - _HARMLESS - {"nms", "preprocess", "postprocess"}
    if refused:
        able = [f.name for f in FORMATS.values() if refused <= f.takes]
        raise ConfigError(
            f"format={form.name!r} doesn't take {', '.join(sorted(refused))}"
            + (f"; use format={' or '.join(map(repr, able))}" if able else "")
        )
    raw = isinstance(config.preprocess, str)
    faults = {
        "int8 and half: choose one": config.int8 and config.half,
        "int8=True needs data=, whose images set the scales": config.int8 and config.data is None,
        f"nms=True: {spec.name!r} has no boxes": config.nms and not spec.outputs.boxes,
        f"preprocess={config.preprocess!r}: expected a torch module, {' or '.join(RAW)}": (
            config.preprocess not in RAW
            if raw
            else not isinstance(config.preprocess, nn.Module | None)
        ),
        "postprocess: expected a torch module": not isinstance(
            config.postprocess, nn.Module | None
        ),
        "preprocess='raw' takes one image a call; leave batch and dynamic='batch' out": (
            raw and (config.batch > 1 or config.dynamic == "batch")
        ),
    }
    for text, holds in faults.items():
        if holds:
            raise ConfigError(f"export: {text}")


def _predictions(graph: ExportGraph, x: np.ndarray) -> np.ndarray:
    """Return the network's predictions (B, 4 + C + E, A), before suppression."""
    with torch.no_grad():
        at = next(graph.parameters()).device
        outputs, _ = graph.predictions(torch.from_numpy(x).to(at))
    return as_tuple(outputs)[0].cpu().numpy()


def _like(example: Tensor) -> list[np.ndarray]:
    """Return inputs of the shape and type of a user's example: that one, and noise."""
    rng = np.random.default_rng(0)
    first = example.cpu().numpy()
    whole = first.dtype.kind != "f"
    noise = [
        rng.integers(0, 256, first.shape) if whole else rng.random(first.shape)
        for _ in range(IMAGES - 1)
    ]
    return [first, *(x.astype(first.dtype) for x in noise)]


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
