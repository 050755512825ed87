# SPDX-License-Identifier: Apache-2.0
"""Batches for training and validation, the same whatever makes them.

A worker gets a `Job`: an epoch and a range of places in its global order. Everything else follows
from (seed, epoch, place), so the number of workers and ranks, and a restart in the middle of an
epoch, change nothing in any sample.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from yolo.data.batch import Batch, Extras, normalize
from yolo.data.cache import ImageStore, fitted_shapes
from yolo.data.collage import pack, require_paintable
from yolo.data.geometry import warp_instances
from yolo.data.index import LabelIndex
from yolo.data.letterbox import Placement, letterbox
from yolo.data.order import BalancedOrder, EpochOrder
from yolo.data.pixels import finish_colour
from yolo.data.recipe import NEIGHBOURS, Augment, Recipe, RecipeBook
from yolo.data.sample import Sample
from yolo.data.transforms import apply, labelled, require_kind
from yolo.data.workers import AHEAD, Job, Line, Maker, Size
from yolo.errors import ConfigError, DataError

__all__ = ["Batch", "TrainLoader", "ValLoader", "normalize"]

logger = logging.getLogger(__name__)


class TrainMaker(Maker):
    """Makes augmented batches by a recipe book."""

    def __init__(self, store: ImageStore, book: RecipeBook, extras: Extras | None) -> None:
        super().__init__(store, extras)
        self.book = book

    def make(self, job: Job) -> Batch:
        """Make the samples at places of an epoch's order."""
        images = self._stack(job)
        options: dict[str, Any] = {"flip_idx": self.book.augment.flip_idx}
        options["custom"] = self.book.augment.custom
        samples = [
            apply(recipe, self.store, **options, rgb=image)
            for image, recipe in zip(images, self._recipes(job), strict=True)
        ]
        return self._batch(images, samples, job.size, [])

    def _recipes(self, job: Job) -> list[Recipe]:
        return [self.book.draw(job.epoch, place, job.size, job.mixing) for place in job.places]


class PieceMaker(TrainMaker):
    """Makes the labels of batches, and packs the pieces of their images; see `collage`."""

    def make(self, job: Job) -> Batch:
        """Make the samples at places of an epoch's order, but for their pixels."""
        recipes, flip_idx = self._recipes(job), self.book.augment.flip_idx
        pixels, collage = pack(recipes, self.store, job.size)
        samples = [labelled(recipe, self.store, flip_idx) for recipe in recipes]
        return replace(self._batch(pixels, samples, job.size, []), collage=collage)


class ValMaker(Maker):
    """Makes untouched batches; corrupt images are left out."""

    def make(self, job: Job) -> Batch:
        """Make the samples at dataset positions."""
        images = self._stack(job)
        samples: list[Sample] = []
        placements: list[Placement] = []
        for index in job.places:
            image = self.store.load(index)
            if index in self.store.corrupt:
                continue
            canvas = images[len(samples)]
            require_kind(self.store.path, index, image, canvas)
            placement = self._put(image, canvas).after(self.store.original_shape(index))
            samples.append(self._sample(index, canvas, placement))
            placements.append(placement)
        return self._batch(images[: len(samples)], samples, job.size, placements)

    def _put(self, image: np.ndarray, canvas: np.ndarray) -> Placement:
        """Put an image (H, W, C) BGR on a canvas (h, w, C) RGB, letterboxed."""
        boxed, placement = letterbox(image, (canvas.shape[0], canvas.shape[1]), scaleup=False)
        finish_colour(boxed, rgb=canvas)
        return placement

    def _sample(self, index: int, canvas: np.ndarray, placement: Placement) -> Sample:
        """Return the sample of a finished image."""
        labels = warp_instances(self.store.instances(index), placement.matrix)
        path, shape = self.store.path(index), placement.original
        return Sample(canvas, labels, None, path, index, shape, placement.matrix)


class TrainLoader:
    """Augmented batches, every image once an epoch, or objects of every class equally often.

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
        sampler: "balanced": see `order.BalancedOrder`.
        pin_memory: yield batches in page-locked memory.
        paint: False yields batches whose images are still in pieces, for `Batch.to` to paint.

    Raises:
        DataError: if there are no images.
        ConfigError: if `rect` and `sampler` are both given, or something can't be left in pieces.
    """

    def __init__(
        self,
        index: LabelIndex,
        store: ImageStore,
        augment: Any,
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
        sampler: str | None = None,
        pin_memory: bool = False,
        paint: bool = True,
    ) -> None:
        count = len(index)
        if count == 0:
            raise DataError("expected images to train on, found none; check the dataset's `train`")
        if rect and sampler:
            text = f"expected rect=True or sampler={sampler!r}, found both; images of like shape"
            raise ConfigError(f"{text} and of all classes can't make one batch: leave one out")
        self.index, self.store, self.batch, self.size = index, store, batch, size
        self.rank, self.world = rank, world
        self.shapes: np.ndarray | None = None
        self.order = EpochOrder(count, seed)
        if sampler == "balanced":
            self.order = BalancedOrder(count, seed, *index.objects())
        if rect:
            fitted = fitted_shapes(np.asarray(index.shapes), store.size)
            self.shapes = -(-fitted // stride) * stride
            alike = np.argsort(fitted[:, 0] / fitted[:, 1], kind="stable")
            self.order = EpochOrder(count, seed, (batch, alike))
        self.edges = batch_edges(count, batch, world)
        self.paint = paint
        workers = min(workers, len(self))
        if workers > 1:  # those around the places that workers are at
            store.share_recent(2 * NEIGHBOURS + (AHEAD + 1) * workers * batch // world, workers)
        self._line = Line(self._maker(augment, extras), workers, pin_memory)

    def _maker(self, augment: Augment, extras: Extras | None) -> Maker:
        """Return what makes this loader's batches."""
        if not self.paint:
            require_paintable(augment, self.store.dtype)
        if self.index.kpt_shape is not None and augment.flip_idx is None:
            if augment.fliplr or augment.flipud:
                logger.warning("flips are off: the dataset has keypoints and no `flip_idx`")
            augment = augment.without_mirrors()
        if self.shapes is not None:
            augment = replace(augment, mosaic=0.0)
        book = RecipeBook(self.order, augment, self.size, self.store.loaded_shape)
        return (TrainMaker if self.paint else PieceMaker)(self.store, book, extras)

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
        first, last = (start + (stop - start) * k // self.world for k in (self.rank, self.rank + 1))
        return Job(epoch, range(first, last), size, mixing)

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
        rect: give each image the smallest canvas of whole strides; images with equal canvases
            share batches. Else every canvas is `size`.
        rank: this process takes every `world`-th batch from here on.

    The other arguments are those of `TrainLoader`.
    """

    maker: type[ValMaker] = ValMaker

    def __init__(
        self,
        index: LabelIndex,
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
        groups = self._groups(size, stride if rect else None)
        # Largest first: memory that doesn't suffice shows at once.
        ordered = sorted(groups.items(), key=lambda item: (-item[0][0] * item[0][1], item[0]))
        jobs = [
            Job(0, members[start : start + batch], shape)
            for shape, members in ordered
            for start in range(0, len(members), batch)
        ]
        self.jobs = jobs[rank::world]
        self._line = Line(self.maker(store, extras), min(workers, len(self.jobs)), pin_memory)

    def _groups(self, size: Size, stride: int | None) -> dict[Size, list[int]]:
        """Return the images of each canvas, in order; without a stride all have `size`."""
        if stride is None:
            return {size: list(range(len(self.index)))}
        groups: dict[Size, list[int]] = {}
        fitted = fitted_shapes(np.asarray(self.index.shapes).reshape(-1, 2), self.store.size)
        for i, (rows, columns) in enumerate((-(-fitted // stride) * stride).tolist()):
            groups.setdefault((rows, columns), []).append(i)
        return groups

    def __len__(self) -> int:
        return len(self.jobs)

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's batches, in the same order each time."""
        return (batch for batch in self._line.run(self.jobs) if len(batch))

    def close(self) -> None:
        """End the workers; a later pass starts new ones."""
        self._line.close()
