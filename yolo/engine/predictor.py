# SPDX-License-Identifier: Apache-2.0
"""The prediction loop: read, letterbox, run, make results, write what was asked for.

A predictor serves one call and keeps that call's state; nothing is shared with other predictors, no
lock is held while a result is handed out, so calls may be nested and run in several threads. Torch
is not imported here: what runs the network is the backend.

What is found in an image never depends on the images beside it: its canvas is a function of its
own size, and images of different canvases run separately within a batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from yolo.data.letterbox import Placement, letterbox, place, rect_shape
from yolo.data.sources import Frame, Source
from yolo.engine.events import Callbacks
from yolo.engine.results import STAGES, Results
from yolo.engine.writer import Writer
from yolo.errors import ConfigError

if TYPE_CHECKING:
    from yolo.cfg.schema import PredictConfig
    from yolo.tasks.spec import TaskSpec

LOGGER = logging.getLogger(__name__)


class Backend(Protocol):
    """What runs a network: a torch module, or an exported file.

    Attributes:
        names: class id -> name.
        stride: largest stride, pixels.
        imgsz: (h, w) the network was made for; binding when not `dynamic`.
        channels: of the images it takes.
        task: name of the task.
        dynamic: whether it takes images of any size.
        kpt_shape: (keypoints, numbers of each) of a network that finds keypoints, else None.
    """

    names: Mapping[int, str]
    stride: int
    imgsz: tuple[int, int]
    channels: int
    task: str
    dynamic: bool
    kpt_shape: tuple[int, int] | None

    def __call__(self, images: Any) -> Any:
        """Run (B, H, W, C) uint8 or uint16 images, BGR for three channels.

        A backend whose `takes_tensors` is true runs (B, C, H, W) float tensors, RGB 0..1, too. One
        whose `nms` is true gives rows after suppression. One whose `raw` is true takes images as
        they are, letterboxes them itself and gives boxes in their pixels.
        """
        ...


@dataclass(slots=True)
class Prepared:
    """One image on its way through the network.

    Attributes:
        frame: where it came from.
        canvas: (H, W, C) letterboxed image, or a (C, H, W) tensor that was given as it is.
        placement: maps canvas pixels back to the image.
    """

    frame: Frame
    canvas: Any
    placement: Placement

    @property
    def canvas_shape(self) -> tuple[int, int]:
        """(h, w) of the canvas."""
        shape = self.canvas.shape
        whole = (shape[0], shape[1]) if self.is_array else (shape[1], shape[2])
        return int(whole[0]), int(whole[1])

    @property
    def is_array(self) -> bool:
        """Whether the canvas is an image, not a tensor."""
        return isinstance(self.canvas, np.ndarray)

    @property
    def image(self) -> np.ndarray:
        """The original image."""
        return self.frame.image


class Predictor:
    """Base of the tasks' predictors, which define `postprocess`.

    Args:
        config: options of this call.
        spec: the task.
        backend: runs the network.
        callbacks: called on the on_predict_* events.

    Attributes:
        results: of the current batch; on_predict_batch_end may replace them.
        batch: (paths, images, log strings) of the current batch.
        frames: what the source says of the current batch's images.
        dataset: the Source being read.
        source_type: kinds met in it so far, {"image"}...
        save_dir: the run folder, None until something is written.
        seen: images done.
        speed: milliseconds an image of each stage, mean of the images so far.
    """

    def __init__(
        self,
        config: PredictConfig,
        spec: TaskSpec,
        backend: Backend,
        callbacks: Callbacks | None = None,
    ) -> None:
        self.args = config
        self.spec = spec
        self.backend = backend
        self.callbacks = callbacks or Callbacks()
        self.results: list[Results] = []
        self.batch: tuple[list[str], list[np.ndarray], list[str]] = ([], [], [])
        self.frames: list[Frame] = []
        self.dataset: Source | None = None
        self.seen = 0
        self.speed: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.writer = Writer(config, spec.name)
        self._size = self._network_size()

    @property
    def model(self) -> Any:
        """The network, or the backend where it has none to show."""
        return getattr(self.backend, "model", self.backend)

    @property
    def source_type(self) -> set[str]:
        """Kinds of sources met so far."""
        return self.dataset.kinds if self.dataset else set()

    @property
    def save_dir(self) -> Path | None:
        """The run folder, None until something is written."""
        return self.writer.folder

    @property
    def plotted_img(self) -> np.ndarray | None:
        """The last picture drawn for a file or window."""
        return self.writer.picture

    @property
    def txt_path(self) -> Path | None:
        """The last label file written."""
        return self.writer.label_file

    def __call__(self, source: Any, stream: bool = False) -> list[Results] | Iterator[Results]:
        """Predict on a source (yolo/data/sources.py).

        Returns:
            A list of Results, or with `stream` a generator that starts to work at its first step.

        Raises:
            YoloError: if the source or an option can't be used.
        """
        results = self._run(source)
        return results if stream else list(results)

    def postprocess(self, outputs: Any, prepared: list[Prepared]) -> list[Results]:
        """Turn the network's outputs for images of one canvas size into results, in their order.

        Args:
            outputs: what the backend returned.
            prepared: the images, one for each row of the outputs.
        """
        raise NotImplementedError(f"{type(self).__name__} must define postprocess")

    def prepare(self, frame: Frame) -> Prepared:
        """Place one image on its canvas."""
        shape = frame.image.shape[0], frame.image.shape[1]
        if getattr(self.backend, "raw", False):
            return Prepared(frame, frame.image, Placement(1.0, 1.0, 0, 0, shape))
        whole = not (shape[0] % self.backend.stride or shape[1] % self.backend.stride)
        if (
            frame.tensor is not None
            and whole
            and self.backend.dynamic
            and getattr(self.backend, "takes_tensors", False)
        ):
            return Prepared(frame, frame.tensor, Placement(1.0, 1.0, 0, 0, shape))
        return Prepared(frame, *self.place(frame.image))

    def inside(self, item: Prepared) -> tuple[tuple[int, int], Placement]:
        """Return canvas and placement as the network saw them, which a raw backend makes itself."""
        if not getattr(self.backend, "raw", False):
            return item.canvas_shape, item.placement
        shape, size = item.canvas_shape, self.backend.imgsz
        if self.backend.dynamic:
            size = rect_shape(shape[0], shape[1], size, self.backend.stride)
        return size, place(shape, size)[0]

    def place(self, image: np.ndarray) -> tuple[np.ndarray, Placement]:
        """Return the canvas of an image (H, W, C), and where the image lies on it."""
        size = self._size
        if self.args.rect and self.backend.dynamic:
            size = rect_shape(image.shape[0], image.shape[1], size, self.backend.stride)
        return letterbox(image, size)

    def _network_size(self) -> tuple[int, int]:
        """Return the (h, w) that images are fitted into, whole strides."""
        if not self.backend.dynamic:
            return self.backend.imgsz
        asked, stride = self.args.imgsz, self.backend.stride
        height, width = (asked, asked) if isinstance(asked, int) else asked
        size = -(-height // stride) * stride, -(-width // stride) * stride
        if size != (height, width):
            LOGGER.warning(
                "imgsz=%s is no multiple of the stride %d; using %s", asked, stride, size
            )
        return size

    def _run(self, source: Any) -> Iterator[Results]:
        """Yield one Results a frame."""
        self.dataset = Source(
            source, self.backend.channels, self.args.vid_stride, self.args.stream_buffer
        )
        started = False
        try:
            for frames in _batches(self.dataset, self.args.batch):
                if not started:
                    started = True
                    self.callbacks.fire("on_predict_start", self)
                self._predict_batch(frames)
                yield from self.results
        finally:
            # Also when the caller drops the generator half way.
            self.writer.close()
        self.callbacks.fire("on_predict_end", self)
        self._log_end()

    def _predict_batch(self, frames: list[Frame]) -> None:
        """Set `results` to those of the frames, with all events and files."""
        images = [frame.image for frame in frames]
        self.batch = ([frame.path for frame in frames], images, [""] * len(frames))
        self.frames = frames
        self.callbacks.fire("on_predict_batch_start", self)
        spent = dict.fromkeys(STAGES, 0.0)
        spent["preprocess"] = sum(frame.seconds for frame in frames)
        clock = time.perf_counter
        start = clock()
        groups: dict[Any, list[int]] = {}
        prepared = [self.prepare(frame) for frame in frames]
        for i, item in enumerate(prepared):
            key = (item.canvas_shape, item.is_array, str(item.canvas.dtype))
            groups.setdefault(key, []).append(i)
        spent["preprocess"] += clock() - start
        results: list[Results | None] = [None] * len(frames)
        for rows in groups.values():
            begun = clock()
            members = [prepared[i] for i in rows]
            stack = _stack([member.canvas for member in members])
            stacked = clock()
            outputs = self.backend(stack)
            ran = clock()
            for i, result in zip(rows, self.postprocess(outputs, members), strict=True):
                results[i] = result
            spent["preprocess"] += stacked - begun
            spent["inference"] += ran - stacked
            spent["postprocess"] += clock() - ran
        self.results = [result for result in results if result is not None]
        self._account(spent, len(frames))
        self.callbacks.fire("on_predict_postprocess_end", self)
        # A callback may have put other results in their place.
        for i, done in enumerate(zip(frames, prepared, self.results, strict=False)):
            self.batch[2][i] = self._finish(*done)
        self.callbacks.fire("on_predict_batch_end", self)

    def _account(self, spent: dict[str, float], count: int) -> None:
        """Note the time an image took, in the results and in the running mean."""
        each = {stage: 1000 * seconds / count for stage, seconds in spent.items()}
        for result in self.results:
            result.speed = dict(each)
        self.seen += count
        for stage, value in each.items():
            self.speed[stage] += (value - self.speed[stage]) * count / self.seen

    def _finish(self, frame: Frame, prepared: Prepared, result: Results) -> str:
        """Write files and log one image; return the log line."""
        if self.writer.wanted:
            self.writer.write(frame, result)
        if self.args.show:
            self.writer.show(frame, result)
        height, width = prepared.canvas_shape
        line = f"{height}x{width} {result.verbose()}{result.speed['inference'] or 0:.1f}ms"
        if self.args.verbose:
            LOGGER.info("%s%s", _heading(frame), line)
        return line

    def _log_end(self) -> None:
        if not self.args.verbose or not self.seen:
            return
        parts = ", ".join(f"{self.speed[stage]:.1f}ms {stage}" for stage in STAGES)
        LOGGER.info("Speed: %s per image, %d image%s", parts, self.seen, "s" * (self.seen != 1))
        if self.save_dir:
            LOGGER.info("Results saved to %s", self.save_dir)


def _batches(source: Source, size: int) -> Iterator[list[Frame]]:
    """Group frames; a batch never spans two videos, nor a video and images."""
    batch: list[Frame] = []
    group = 0
    for frame in source:
        belongs = frame.place if frame.is_video else 0
        if batch and (belongs != group or len(batch) == size):
            yield batch
            batch = []
        group = belongs
        batch.append(frame)
        if frame.live or len(batch) == size:
            yield batch  # a live frame doesn't wait for the next one
            batch = []
    if batch:
        yield batch


def _stack(canvases: list[Any]) -> Any:
    """Stack arrays or tensors of equal shape along a new first axis."""
    if len(canvases) == 1:
        return canvases[0][None]
    if isinstance(canvases[0], np.ndarray):
        return np.stack(canvases)
    import torch  # the source was a torch tensor

    return torch.stack(canvases)


def _heading(frame: Frame) -> str:
    """Return the familiar start of a log line."""
    of = f"/{frame.total}" if frame.total else ""
    if not frame.is_video:
        return f"image {frame.place}{of} {frame.path}: "
    frames = f"/{frame.frames}" if frame.frames else ""
    return f"video {frame.place}{of} (frame {frame.number}{frames}) {frame.path}: "


def class_filter(classes: Any, names: Mapping[int, str]) -> list[int] | None:
    """Return the class ids to keep, from ids or names, or None for all.

    Raises:
        ConfigError: if an id or name isn't one of the model's.
    """
    if classes is None:
        return None
    asked = [classes] if isinstance(classes, (int, str)) else list(classes)
    by_name = {name: class_id for class_id, name in names.items()}
    ids = [by_name.get(item, -1) if isinstance(item, str) else int(item) for item in asked]
    for item, class_id in zip(asked, ids, strict=True):
        if class_id not in names:
            raise ConfigError(
                f"classes={classes!r}: the model has no class {item!r}; "
                f"it has {len(names)}: {dict(list(names.items())[:10])}"
            )
    return ids
