# SPDX-License-Identifier: Apache-2.0
"""Batches made here or in worker processes: jobs go in, batches come out, in the same order.

Jobs are whole batches: a worker writes its samples straight into one array, and the main process
only takes it over. A user's mistake that a worker finds comes back as an error without a traceback.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.queues
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from yolo.data.batch import Batch, Extras, build_targets
from yolo.data.cache import ImageStore
from yolo.data.images import cv2
from yolo.data.letterbox import Placement
from yolo.data.sample import Sample
from yolo.errors import DataError, YoloError
from yolo.plugins import load_plugins, loaded_plugins

Size = tuple[int, int]

AHEAD = 2  # batches that a worker makes before they are asked for

_GRACE = 60  # seconds that a worker lives on after SIGTERM
_LONGEST_FOLDER = 70  # characters of the temporary folder; a socket's whole path may have 107


@dataclass(frozen=True, slots=True)
class Job:
    """One batch to make: an epoch, the images' places or dataset positions, and the canvas.

    `mixing` is False where no image may be made of several.
    """

    epoch: int
    places: Sequence[int]
    size: Size
    mixing: bool = True


class Maker(Dataset[Any]):
    """Makes batches; what is sent to workers.

    Args:
        store: images and labels.
        extras: builds what a task's targets need besides boxes.
    """

    def __init__(self, store: ImageStore, extras: Extras | None) -> None:
        self.store, self.extras = store, extras

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle for a worker that isn't a fork of this process (macOS, Windows, Python 3.14).

        What `_new_maker` does happens before the state is read, which may hold objects of a user's
        plugin: the worker finds their classes.
        """
        return _new_maker, (type(self), loaded_plugins()), self.__dict__

    def make(self, job: Job) -> Batch:
        """Make the batch of a job."""
        raise NotImplementedError

    def __getitems__(self, job: Job) -> Batch | YoloError:
        """Make a batch inside a worker (torch's hook for a whole batch at once)."""
        try:
            return self.make(job)
        except YoloError as error:
            return type(error)(str(error))

    def _stack(self, job: Job) -> np.ndarray:
        """Return room for a batch's images."""
        shape = (len(job.places), *job.size, self.store.channels)
        return np.empty(shape, self.store.dtype)

    def _batch(
        self, images: np.ndarray, samples: list[Sample], size: Size, placements: list[Placement]
    ) -> Batch:
        known = self.store.index.num_classes
        for sample in samples:
            highest = int(sample.instances.classes.max(initial=-1))
            if highest >= known:  # on a device it would end the process
                text = f"expected class ids from 0 to {known - 1}, found {highest}"
                hint = "a transform of your own has to keep to the dataset's classes"
                raise DataError(f"{sample.path}: {text}; {hint}")
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


def _start_method() -> str:
    """Return how processes are started here, without settling it for the user's own ones."""
    settled = multiprocessing.get_start_method(allow_none=True)
    return settled or multiprocessing.get_all_start_methods()[0]  # the first is the default


def _start_worker(parent: int, _: int) -> None:
    """Set up a worker process: one thread, and the main process alone answers signals.

    SIGTERM often goes to all processes of a job; a worker outlives it by what a step and its
    checkpoint may take.

    Args:
        parent: id of the process that the worker works for. Where that was killed before this call
            torch would take the process that has adopted the worker for it, and wait for ever.
    """
    if os.getppid() != parent:
        os._exit(1)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    if len(tempfile.gettempdir()) > _LONGEST_FOLDER and os.path.isdir("/tmp"):
        # Batches are handed over by a socket there. Where it can't be made, torch loses the batch
        # and waits for it for ever.
        tempfile.tempdir = "/tmp"
    # What can't be pickled is dropped by Python with a traceback; the main process waits for it.
    feeder: Any = multiprocessing.queues.Queue
    feeder._on_queue_feeder_error = _tell_instead
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))


def _tell_instead(queue: Any, error: Exception, made: Any) -> None:
    """Send word of a batch that can't be sent, in its place (a worker's thread calls this).

    Args:
        queue: where the batch was to go.
        error: why it can't.
        made: (number, batch), or its bytes where the pipe itself fails: the end of this process is
            all that the main process can notice then.
    """
    if not isinstance(made, tuple):
        os._exit(1)
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    text = f"a batch can't be sent from the process that made it ({reason})"
    queue.put((made[0], DataError(f"{text}; mend what your own parts put into it, or workers=0")))


def _as_made(made: Any) -> Any:
    """Stand for torch's collation: what a maker returns is a batch already."""
    return made


@contextmanager
def lost_worker_told() -> Iterator[None]:
    """Say in a line that a worker has died; torch raises it wherever the main process just is.

    Raises:
        DataError: in place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0].rstrip(". ")
        raise DataError(
            f"a process that loads images has died ({reason}); where memory runs out, use fewer "
            "workers= or a smaller batch="
        ) from error


class Line:
    """Runs jobs, here or in persistent worker processes.

    Workers draw nothing from, and leave nothing in, this process: the `DataLoader` gets a generator
    of its own, because it would otherwise take a number from torch's global one each epoch.

    Args:
        maker: makes the batches.
        workers: processes; 0 makes batches here.
        pin_memory: yield batches in page-locked memory.
    """

    def __init__(self, maker: Maker, workers: int, pin_memory: bool) -> None:
        self.maker, self.workers, self.pin_memory = maker, workers, pin_memory
        self._jobs: list[Job] = []
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
                batch_sampler=self._jobs,  # type: ignore[arg-type]  # jobs in place of index lists
                num_workers=self.workers,
                prefetch_factor=AHEAD,
                multiprocessing_context=_start_method(),
                collate_fn=_as_made,
                pin_memory=self.pin_memory,
                worker_init_fn=partial(_start_worker, os.getpid()),
                persistent_workers=True,
                generator=torch.Generator().manual_seed(0),
            )
        self._jobs[:] = jobs
        for made in self._loader:
            if isinstance(made, YoloError):
                raise made
            yield made

    def close(self) -> None:
        """End the workers; a later run starts new ones."""
        loader, self._loader = self._loader, None
        iterator = getattr(loader, "_iterator", None)
        if iterator is not None:
            # torch has no public call for it, and a reference elsewhere (a traceback's frames)
            # would keep the processes alive.
            iterator._shutdown_workers()
            for worker in iterator._workers:  # one may wait for ever for what a dead one held
                worker.kill()
