# SPDX-License-Identifier: Apache-2.0
"""Batches for training and validation, the same whatever makes them.

A worker gets a `Job`: an epoch and a range of places in its global order. Everything else follows
from (seed, epoch, place), so the number of workers and ranks, and a restart in the middle of an
epoch, change nothing in any sample. Jobs are whole batches: a worker writes its samples straight
into one array, and the main process only takes it over.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from yolo.data.batch import Batch, Extras, build_targets, normalize
from yolo.data.cache import ImageIndex, ImageStore, fitted_shapes
from yolo.data.geometry import warp_instances
from yolo.data.images import cv2
from yolo.data.letterbox import Placement, fill_value, place, resize
from yolo.data.pixels import finish_colour
from yolo.data.recipe import Augment, EpochOrder, RecipeBook
from yolo.data.sample import Sample
from yolo.data.transforms import apply, require_kind
from yolo.errors import DataError, YoloError
from yolo.plugins import load_plugins, loaded_plugins

__all__ = ["Batch", "TrainLoader", "ValLoader", "normalize"]

logger = logging.getLogger(__name__)

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Job:
    """One batch to make: an epoch, the images' places or dataset positions, and the canvas.

    `mixing` is False where no image may be made of several.
    """

    epoch: int
    places: Sequence[int]
    size: Size
    mixing: bool = True


@dataclass(frozen=True, slots=True)
class Failure:
    """A user's mistake found in a worker, carried to the main process without a traceback."""

    kind: type[YoloError]
    message: str


class Maker(Dataset[Any]):
    """Makes batches; what is sent to workers.

    Args:
        store: images and labels.
        extras: builds what a task's targets need besides boxes.
    """

    def __init__(self, store: ImageStore, extras: Extras | None) -> None:
        self.store = store
        self.extras = extras

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle for a worker that isn't a fork of this process (macOS, Windows, Python 3.14).

        What `_new_maker` does happens before the state is read, which may hold objects of a user's
        plugin: the worker finds their classes.
        """
        return _new_maker, (type(self), loaded_plugins()), self.__dict__

    def make(self, job: Job) -> Batch:
        """Make the batch of a job."""
        raise NotImplementedError

    def __getitems__(self, job: Job) -> Batch | Failure:
        """Make a batch inside a worker (torch's hook for a whole batch at once)."""
        try:
            return self.make(job)
        except YoloError as error:
            return Failure(type(error), str(error))

    def _stack(self, job: Job) -> np.ndarray:
        """Return room for a batch's images."""
        shape = (len(job.places), *job.size, self.store.channels)
        return np.empty(shape, self.store.dtype)

    def _batch(
        self,
        images: np.ndarray,
        samples: list[Sample],
        size: Size,
        placements: list[Placement],
    ) -> Batch:
        known = getattr(self.store.index, "num_classes", None)
        for sample in samples:
            highest = int(sample.instances.classes.max(initial=-1))
            if known is not None and highest >= known:  # on a device it would end the process
                raise DataError(
                    f"{sample.path}: expected class ids from 0 to {known - 1}, found {highest}; a "
                    "transform of your own has to keep to the dataset's classes"
                )
        return Batch(
            torch.from_numpy(images),
            build_targets(samples, size, self.extras),
            [sample.index for sample in samples],
            [sample.path for sample in samples],
            [sample.original_shape for sample in samples],
            placements,
        )


def _new_maker(kind: type[Maker], plugins: tuple[str, ...]) -> Maker:
    """Return a maker without state, in a process that has imported the plugins."""
    load_plugins(plugins)
    return kind.__new__(kind)


class TrainMaker(Maker):
    """Makes augmented batches by a recipe book."""

    def __init__(self, store: ImageStore, book: RecipeBook, extras: Extras | None) -> None:
        super().__init__(store, extras)
        self.book = book

    def make(self, job: Job) -> Batch:
        """Make the samples at places of an epoch's order."""
        recipes = [self.book.draw(job.epoch, place, job.size, job.mixing) for place in job.places]
        images = self._stack(job)
        gains = self.book.augment
        samples = [
            apply(recipe, self.store, flip_idx=gains.flip_idx, custom=gains.custom, rgb=image)
            for image, recipe in zip(images, recipes, strict=True)
        ]
        return self._batch(images, samples, job.size, [])


class ValMaker(Maker):
    """Makes untouched, letterboxed batches; corrupt images are left out."""

    def make(self, job: Job) -> Batch:
        """Make the samples at dataset positions."""
        images = self._stack(job)
        images.fill(fill_value(images.dtype))
        samples: list[Sample] = []
        placements: list[Placement] = []
        for index in job.places:
            image = self.store.load(index)
            if index in self.store.corrupt:
                continue
            canvas = images[len(samples)]
            require_kind(self.store.path, index, image, canvas)
            placement, inner = place((image.shape[0], image.shape[1]), job.size, scaleup=False)
            top, left = placement.pad_top, placement.pad_left
            view = canvas[top : top + inner[0], left : left + inner[1]]
            finish_colour(resize(image, inner), rgb=view)
            whole = placement.after(self.store.original_shape(index))
            sample = Sample(
                canvas,
                warp_instances(self.store.instances(index), whole.matrix),
                path=self.store.path(index),
                index=index,
                original_shape=whole.original,
                matrix=whole.matrix,
            )
            samples.append(sample)
            placements.append(whole)
        return self._batch(images[: len(samples)], samples, job.size, placements)


class _JobList:
    """The batch sampler: yields the jobs that were last put into it."""

    def __init__(self) -> None:
        self.jobs: Sequence[Job] = ()

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)


def _start_method() -> str:
    """Return how processes are started here, without settling it for the user's own ones."""
    settled = multiprocessing.get_start_method(allow_none=True)
    return settled or multiprocessing.get_all_start_methods()[0]  # the first is the default


def _start_worker(_: int) -> None:
    """Set up a worker process: one thread, and the main process alone answers Ctrl-C."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_made(made: Any) -> Any:
    """Stand for torch's collation: what a maker returns is a batch already."""
    return made


class Line:
    """Runs jobs, here or in persistent worker processes.

    Workers draw nothing from, and leave nothing in, this process: the `DataLoader` gets a generator
    of its own, because it would otherwise take a number from torch's global one each epoch.
    """

    def __init__(self, maker: Maker, workers: int, pin_memory: bool) -> None:
        self.maker = maker
        self.workers = workers
        self.pin_memory = pin_memory
        self._list = _JobList()
        self._loader: DataLoader[Any] | None = None

    def run(self, jobs: Sequence[Job]) -> Iterator[Batch]:
        """Yield the batches of jobs, in their order."""
        if self.workers == 0:
            for job in jobs:
                batch = self.maker.make(job)
                yield batch.pin_memory() if self.pin_memory else batch
            return
        if self._loader is None:
            self._loader = DataLoader(
                self.maker,
                batch_sampler=self._list,  # type: ignore[arg-type]  # jobs in place of index lists
                num_workers=self.workers,
                multiprocessing_context=_start_method(),
                collate_fn=_as_made,
                pin_memory=self.pin_memory,
                worker_init_fn=_start_worker,
                persistent_workers=True,
                generator=torch.Generator().manual_seed(0),
            )
        self._list.jobs = jobs
        for made in self._loader:
            if isinstance(made, Failure):
                raise made.kind(made.message)
            yield made

    def close(self) -> None:
        """End the workers; a later run starts new ones."""
        loader, self._loader = self._loader, None
        iterator = getattr(loader, "_iterator", None)
        if iterator is not None:
            # torch has no public call for it, and a reference elsewhere (a traceback's frames)
            # would keep the processes alive.
            iterator._shutdown_workers()


class TrainLoader:
    """Augmented batches, every image once an epoch.

    Args:
        index: the images and their labels.
        store: loads the images; `store.size` has to be `size`.
        augment: gains.
        batch: images a step, over all ranks.
        size: (h, w) of the samples.
        seed: of the run, >= 0.
        workers: processes that make batches; 0 makes them here. The batches are the same.
        rank: which share of each batch this process takes.
        world: number of ranks.
        extras: builds what a task's targets need besides boxes.
        rect: keep images of like shape together, in canvases no larger than they need; without
            mosaic. Batches still come in random order.
        stride: largest stride of the model, for the canvases of `rect`.
        pin_memory: yield batches in page-locked memory.

    Raises:
        DataError: if there are no images.
    """

    def __init__(
        self,
        index: ImageIndex,
        store: ImageStore,
        augment: Augment,
        *,
        batch: int,
        size: Size,
        seed: int = 0,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        extras: Extras | None = None,
        rect: bool = False,
        stride: int = 32,
        pin_memory: bool = False,
    ) -> None:
        count = len(index)
        if count == 0:
            raise DataError("expected images to train on, found none; check the dataset's `train`")
        if getattr(index, "kpt_shape", None) is not None and augment.flip_idx is None:
            if augment.fliplr or augment.flipud:
                logger.warning("flips are off: the dataset has keypoints and no `flip_idx`")
            augment = augment.without_mirrors()
        self.index, self.store = index, store
        self.batch, self.size = batch, size
        self.rank, self.world = rank, world
        self.shapes: np.ndarray | None = None
        blocks = None
        if rect:
            augment = replace(augment, mosaic=0.0)
            fitted = fitted_shapes(np.asarray(index.shapes), store.size)
            self.shapes = -(-fitted // stride) * stride
            blocks = (batch, np.argsort(fitted[:, 0] / fitted[:, 1], kind="stable"))
        self.order = EpochOrder(count, seed, blocks)
        book = RecipeBook(self.order, augment, size, store.loaded_shape)
        self.edges = batch_edges(count, batch, world)
        self._line = Line(TrainMaker(store, book, extras), min(workers, len(self)), pin_memory)

    def __len__(self) -> int:
        return len(self.edges) - 1

    def epoch(self, epoch: int, start_batch: int = 0, mixing: bool = True) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch (from 0), from `start_batch` on.

        Without `mixing` there is no mosaic, mixup, cutmix and copy-paste.
        """
        numbers = range(start_batch, len(self))
        return self._line.run([self._job(epoch, number, mixing) for number in numbers])

    def _job(self, epoch: int, number: int, mixing: bool) -> Job:
        start, stop = self.edges[number], self.edges[number + 1]
        size = self.size
        if self.shapes is not None:
            rows, columns = self.shapes[self.order.places(epoch)[start:stop]].max(0).tolist()
            size = (rows, columns)
        count = stop - start
        share = range(
            start + count * self.rank // self.world, start + count * (self.rank + 1) // self.world
        )
        return Job(epoch, share, size, mixing)

    def close(self) -> None:
        """End the workers; a later epoch starts new ones."""
        self._line.close()


def batch_edges(count: int, batch: int, world: int = 1) -> list[int]:
    """Return the places at which batches begin, and the end.

    The last batch may be smaller. With several ranks, one too small to give each rank an image
    joins the batch before it: an image is never left out or used twice, and no rank has to train
    on nothing (unless the whole set is smaller than the number of ranks).
    """
    edges = [*range(0, count, batch), count]
    if len(edges) > 2 and edges[-1] - edges[-2] < world:
        del edges[-2]
    return edges


class ValLoader:
    """Untouched images, letterboxed; each image's canvas depends on that image alone.

    Args:
        index: the images and their labels.
        store: loads the images; `store.size` has to be `size`.
        batch: images a batch.
        size: (h, w) that images are fitted into.
        stride: largest stride of the model, for the canvases of `rect`.
        rect: give each image the smallest canvas of whole strides; images with equal canvases
            share batches. Else every canvas is `size`.
        workers: processes that make batches; 0 makes them here.
        rank: this process takes every `world`-th batch from here on.
        world: number of ranks.
        extras: builds what a task's targets need besides boxes.
        pin_memory: yield batches in page-locked memory.
    """

    def __init__(
        self,
        index: ImageIndex,
        store: ImageStore,
        *,
        batch: int,
        size: Size,
        stride: int = 32,
        rect: bool = True,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        extras: Extras | None = None,
        pin_memory: bool = False,
    ) -> None:
        self.index, self.store = index, store
        groups: dict[Size, list[int]] = {}
        if rect:
            fitted = fitted_shapes(np.asarray(index.shapes).reshape(-1, 2), store.size)
            for i, (rows, columns) in enumerate((-(-fitted // stride) * stride).tolist()):
                groups.setdefault((rows, columns), []).append(i)
        else:
            groups[size] = list(range(len(index)))
        # Largest first: memory that doesn't suffice shows at once.
        ordered = sorted(groups.items(), key=lambda item: (-item[0][0] * item[0][1], item[0]))
        jobs = [
            Job(0, members[start : start + batch], shape)
            for shape, members in ordered
            for start in range(0, len(members), batch)
        ]
        self.jobs = jobs[rank::world]
        self._line = Line(ValMaker(store, extras), min(workers, len(self.jobs)), pin_memory)

    def __len__(self) -> int:
        return len(self.jobs)

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's batches, in the same order each time."""
        return (batch for batch in self._line.run(self.jobs) if len(batch))

    def close(self) -> None:
        """End the workers; a later pass starts new ones."""
        self._line.close()
