# SPDX-License-Identifier: Apache-2.0
"""The validation loop: images through a model, detections to the metrics, files to the run folder.

What is found is kept as plain arrays, one record an image, in pixels of the original image; the
scores come from the records alone, so that they depend neither on batches nor on ranks.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from yolo.data.workers import lost_worker_told
from yolo.engine.coco_eval import Objects
from yolo.engine.draw import Marks
from yolo.engine.events import Callbacks
from yolo.engine.folders import free_stem
from yolo.engine.image_ids import unique_image_ids
from yolo.engine.inputs import loader_for, preprocess
from yolo.engine.metrics import ImageRecord
from yolo.engine.ranks import Ranks
from yolo.engine.runtime import autocast_dtype
from yolo.engine.sheet import save_batch
from yolo.engine.table import loss_column
from yolo.errors import DataError

if TYPE_CHECKING:
    from yolo.cfg.schema import ValConfig
    from yolo.data.index import LabelIndex
    from yolo.data.loader import Batch, ValLoader
    from yolo.engine.progress import Progress
    from yolo.tasks.spec import TaskSpec

LOGGER = logging.getLogger(__name__)

PICTURED_BATCHES = 3


class Metrics(Protocol):
    """What a validator and a trainer ask of a task's metrics; `TaskMetrics` fits found objects.

    Attributes:
        save_dir: the run folder.
        speed: ms an image for preprocess, inference, loss and postprocess.
        records: the images so far.
    """

    save_dir: Path
    speed: dict[str, float]
    records: list[ImageRecord]

    @property
    def results_dict(self) -> dict[str, float]:
        """Scores by column of results.csv ("metrics/..."), and "fitness"; asked of empty ones."""

    def update(self, record: ImageRecord) -> None:
        """Take one validated image."""

    def process(self) -> Any:
        """Score all records."""

    def table(self) -> str:
        """Return the scores as text for the log."""

    def plot(self, save_dir: Path) -> list[Path]:
        """Draw figures into a folder; return the files."""


class Validator:
    """Scores a model on a loader's images. A task says how outputs become detections.

    Args:
        config: options of the validation.
        spec: the task.
        callbacks: fired with this validator.
        device: where batches go; None means where the model is.
        save_dir: run folder; written to only for plots, save_json and save_txt.
        progress: shows a bar and the table; None logs the table.

    Attributes:
        metrics: the scores, also returned by `run`.
        seen: images validated so far.
        batch_i: number of the current batch.
        loss: mean loss terms by name when a criterion was given, weighted by images.
        speed: ms an image for preprocess, inference, loss and postprocess.
        jdict: rows of predictions.json, filled at the end under save_json.
        training: True when a trainer runs this after an epoch.
        plots: True when figures and pictures are written.
        stride: pixels a cell of each level of the model.
        canvas: (h, w) of the current batch, pixels.
        ranks: those that share the images.
        finished: the model gives rows after suppression, as exported files can.
        dataloader, device, names, save_dir, args, confusion_matrix: as named.
    """

    def __init__(
        self,
        config: ValConfig,
        spec: TaskSpec,
        callbacks: Callbacks | None = None,
        device: torch.device | str | None = None,
        save_dir: str | Path = ".",
        progress: Progress | None = None,
    ) -> None:
        self.args = config
        self.spec = spec
        self.callbacks = callbacks or Callbacks()
        self.wanted_device = device
        self.save_dir = Path(save_dir)
        self.progress = progress
        self.plots = config.plots
        self.device = torch.device(device or "cpu")
        self.names: dict[int, str] = {}
        self.stride: tuple[int, ...] = (1,)
        self.canvas = (0, 0)
        self.finished = False
        self.metrics: Metrics = self.make_metrics()
        self.dataloader: ValLoader | None = None
        self.jdict: list[dict[str, Any]] = []
        self.loss: dict[str, float] = {}
        self.seen = self.batch_i = 0
        self.training = False
        self.ranks = Ranks()
        self._losses: dict[str, Tensor] = {}
        self._image_ids: list[int | str] = []
        self._ms = dict.fromkeys(self.metrics.speed, 0.0)

    # What a task fills in.

    def build_loader(self, net: Any) -> ValLoader:
        """Build the loader of the images that `data` and `split` name, for a model by itself."""
        return loader_for(self.args, self.spec, net)

    def make_metrics(self) -> Metrics:
        """Return empty metrics for `self.names`."""
        raise NotImplementedError(f"{type(self).__name__} must say what its metrics are")

    def postprocess(self, decoded: Any) -> list[Any]:
        """Turn the model's decoded output into one entry an image, on the batch's canvas."""
        raise NotImplementedError(f"{type(self).__name__} must say how to postprocess")

    def to_objects(self, batch: Batch, i: int, output: Any) -> Objects:
        """Take the i-th image's output to pixels of its original."""
        raise NotImplementedError(f"{type(self).__name__} must say how outputs become objects")

    def label_objects(self, index: int) -> Objects:
        """Return the labels of one image, in pixels of the original."""
        return Objects.labelled(self.index.instances(index))

    def json_rows(self, record: ImageRecord) -> list[dict[str, Any]]:
        """Return the rows of predictions.json for one image."""
        raise NotImplementedError(f"{type(self).__name__} must say what predictions.json holds")

    def text_rows(self, record: ImageRecord) -> list[str]:
        """Return the lines of an image's label file for save_txt."""
        raise NotImplementedError(f"{type(self).__name__} must say what label files hold")

    def label_marks(self, batch: Batch, i: int) -> Marks:
        """Return what to draw for the i-th image's labels, on the batch's canvas."""
        real = batch.targets.mask[i]
        boxes, classes = (
            x[i][real].cpu().numpy() for x in (batch.targets.boxes, batch.targets.classes)
        )
        return Marks(boxes, classes)

    def output_marks(self, output: Any) -> Marks:
        """Return what to draw for one image's output, on the batch's canvas."""
        raise NotImplementedError(f"{type(self).__name__} must say how outputs are drawn")

    # The loop.

    @property
    def speed(self) -> dict[str, float]:
        """Milliseconds an image by stage."""
        return self.metrics.speed

    @property
    def index(self) -> LabelIndex:
        """Labels of the images that are validated."""
        if self.dataloader is None:
            raise ValueError("the validator has no labels yet; call run(model, loader) first")
        return self.dataloader.index

    @property
    def losses(self) -> dict[str, float]:
        """`loss` by column name of results.csv."""
        return {loss_column("val", name): value for name, value in self.loss.items()}

    @property
    def confusion_matrix(self) -> Any:
        """The metrics' confusion matrix, None where they have none."""
        return getattr(self.metrics, "confusion_matrix", None)

    @property
    def autocast(self) -> torch.dtype | None:
        """What autocast uses: a precision named in the options, or fp16 for `half` on CUDA."""
        if self.args.half and self.device.type == "cuda":
            return torch.float16
        return autocast_dtype(
            self.args.amp if isinstance(self.args.amp, str) else False, self.device
        )

    @lost_worker_told()
    def run(
        self,
        model: nn.Module,
        loader: ValLoader,
        criterion: nn.Module | None = None,
        final: bool = True,
    ) -> Metrics:
        """Validate `model` on every image of `loader`.

        The model comes back as it was: modes of all modules, dtype and device are not altered.

        Args:
            model: a BaseModel (`raw`, `decode`, `names`).
            loader: batches with an `index` of labels.
            criterion: also fills `loss` with the criterion's terms.
            final: write the files and log the table; a trainer's epochs go without.

        Returns:
            The metrics, with tables, curves and `speed`.

        Raises:
            DataError: if a label's class is unknown to the model, or a worker dies.
        """
        self._start(model, loader, final)
        self.callbacks.fire("on_val_start", self)
        batches = self.progress.bar(loader, len(loader)) if self.progress else iter(loader)
        with evaluating(model), torch.no_grad():
            for self.batch_i, batch in enumerate(batches):
                self.callbacks.fire("on_val_batch_start", self)
                outputs = self._infer(model, batch, criterion)
                self._record(batch, outputs)
                if self.plots and self.batch_i < PICTURED_BATCHES:
                    self._picture(batch, outputs)
                self.callbacks.fire("on_val_batch_end", self)
        self._finish()
        self.callbacks.fire("on_val_end", self)
        return self.metrics

    def _start(self, model: nn.Module, loader: ValLoader, final: bool) -> None:
        at = next(model.parameters(), torch.empty(0)).device
        self.device = torch.device(self.wanted_device or at)
        self.dataloader, self.training = loader, not final
        self.stride = tuple(getattr(model, "stride", (1,)))
        self.finished = bool(getattr(model, "nms", False))
        self.plots = self.args.plots and final and self.ranks.main
        self.names = {int(k): str(v) for k, v in dict(getattr(model, "names", {})).items()}
        highest = int(np.flatnonzero(self.index.class_counts()).max(initial=-1))
        if highest >= len(self.names):
            raise DataError(
                f"the labels hold class id {highest}, the model knows {len(self.names)} classes; "
                "validate on the data it was trained for, or train it on these"
            )
        every = range(len(self.index))
        self._image_ids = unique_image_ids(
            [self.index.image_id(i) for i in every], [self.index.path(i) for i in every]
        )
        self.metrics = self.make_metrics()
        self.metrics.save_dir = self.save_dir
        self.seen = self.batch_i = 0
        self.loss, self.jdict, self._losses = {}, [], {}
        self._ms = dict.fromkeys(self.metrics.speed, 0.0)

    def _infer(self, model: Any, batch: Batch, criterion: nn.Module | None) -> list[Any]:
        """Run one batch through the model, timing the stages."""
        dtype = self.autocast
        with self._timed("preprocess"):
            x, targets = preprocess(batch, self.device)
            self.canvas = x.shape[-2], x.shape[-1]
        with (
            self._timed("inference"),
            torch.autocast(self.device.type, dtype, enabled=dtype is not None),
        ):
            raw = model.raw(x)
        if dtype is not None:
            raw = {k: v.float() if v.is_floating_point() else v for k, v in raw.items()}
        if criterion is not None:
            with self._timed("loss"):
                self._add_loss(criterion(raw, targets).parts, len(x))
        with self._timed("inference"):
            decoded = model.decode(raw)
        with self._timed("postprocess"):
            return self.postprocess(decoded)

    def _add_loss(self, parts: dict[str, Tensor], images: int) -> None:
        """Sum on the device: reading a number here would wait for it."""
        for name, value in parts.items():
            self._losses[name] = self._losses.get(name, 0.0) + value.detach() * images

    def _record(self, batch: Batch, outputs: Sequence[Any]) -> None:
        for i, output in enumerate(outputs):
            place = int(batch.indices[i])
            found = self.to_objects(batch, i, output)
            if self.args.single_cls:  # the model may know several
                found.classes[:] = 0
            record = ImageRecord(
                place,
                self._image_ids[place],
                str(batch.paths[i]),
                (int(batch.original_shapes[i][0]), int(batch.original_shapes[i][1])),
                found,
                self.label_objects(place),
            )
            self.metrics.update(record)
        self.seen += len(outputs)

    def _finish(self) -> None:
        self.metrics.speed.update({k: v / max(self.seen, 1) for k, v in self._ms.items()})
        self._gather()
        self.loss = {k: float(v) / max(self.seen, 1) for k, v in self._losses.items()}
        self.metrics.process()
        if self.training or not self.ranks.main:  # the trainer has its own line for each epoch
            return
        if self.args.verbose:
            table = self.metrics.table()
            self.progress.line(table) if self.progress else LOGGER.info("%s", table)
        self._write_files()

    def _gather(self) -> None:
        """Take what the other ranks found: then each has the same, and scores it alike."""
        if self.ranks.world == 1:
            return
        sums = {name: float(value) for name, value in self._losses.items()}
        parts = self.ranks.gather((self.metrics.records, sums, self.seen))
        for rank, (records, _, _) in enumerate(parts):
            for record in records if rank != self.ranks.rank else ():
                self.metrics.update(record)
        names = dict.fromkeys(name for _, losses, _ in parts for name in losses)
        summed = {name: sum(losses.get(name, 0.0) for _, losses, _ in parts) for name in names}
        self._losses = {name: torch.tensor(value) for name, value in summed.items()}
        self.seen = sum(seen for _, _, seen in parts)

    def _write_files(self) -> None:
        """Write what the options ask for."""
        if self.args.save_json:
            self.jdict = [row for r in self.metrics.records for row in self.json_rows(r)]
            self.save_dir.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.jdict)
            (self.save_dir / "predictions.json").write_text(text, encoding="utf-8")
        if self.args.save_txt:
            self._write_texts()
        if self.plots:
            self.save_dir.mkdir(parents=True, exist_ok=True)
            self.metrics.plot(self.save_dir)

    def _write_texts(self) -> None:
        """Write labels/<stem>.txt for each image with detections; equal stems get -2, -3, ..."""
        folder = self.save_dir / "labels"
        folder.mkdir(parents=True, exist_ok=True)
        taken: set[str] = set()
        for record in sorted(self.metrics.records, key=lambda r: r.index):
            file = folder / f"{free_stem(Path(record.path).stem, taken)}.txt"
            file.unlink(missing_ok=True)  # exist_ok=True may have left one of an earlier run
            if rows := self.text_rows(record):
                file.write_text("\n".join(rows) + "\n", encoding="utf-8")

    def _picture(self, batch: Batch, outputs: Sequence[Any]) -> None:
        """Write val_batch<i>_labels.jpg and val_batch<i>_pred.jpg."""
        images = batch.images.cpu().numpy()
        self.save_dir.mkdir(parents=True, exist_ok=True)
        for kind, marks in (
            ("labels", [self.label_marks(batch, i) for i in range(len(outputs))]),
            ("pred", [self.output_marks(output) for output in outputs]),
        ):
            file = self.save_dir / f"val_batch{self.batch_i}_{kind}.jpg"
            save_batch(file, images, marks, self.names, batch.paths)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the time of a stage; on CUDA wait for it, or the next stage would be billed."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._ms[stage] += (time.perf_counter() - start) * 1e3


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put all modules into eval mode, and each back into its own mode at the end.

    Some may have been in eval mode before: frozen BatchNorm layers stay so in training.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
