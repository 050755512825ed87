# SPDX-License-Identifier: Apache-2.0
"""One pass over the images of a split: read headers, ask for labels, report what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np

from yolo.data.images import image_shape
from yolo.data.labels import LabelledImage
from yolo.data.report import Problem, ScanReport
from yolo.data.sample import Instances
from yolo.errors import DataError

T = TypeVar("T")
R = TypeVar("R")

Label = Callable[[LabelledImage, T], list[Problem]]
"""Fills in the objects of an image, by what is known of it; returns the findings. A `DataError`
means that the image can't be used."""


class Source(Protocol):
    """A split's images with labels, ready to be scanned."""

    def fingerprint(self) -> str | None:
        """Return a hash that changes with the labels; None if they can't be kept in a cache."""

    def scan(self, report: ScanReport, workers: int) -> Iterator[LabelledImage]:
        """Report what is wrong and yield what is usable, in order."""


def scan_files(
    items: Iterable[tuple[str, T]], label: Label[T], report: ScanReport, workers: int
) -> Iterator[LabelledImage]:
    """Scan image files, in `workers` threads; yield what is usable, in order.

    Args:
        items: absolute file names, and what `label` has to know of each.
        label: fills in the objects.
        report: receives the findings.
        workers: number of threads.
    """

    def read(item: tuple[str, T]) -> tuple[LabelledImage | None, list[Problem]]:
        path, known = item
        try:
            image = LabelledImage(path, image_shape(path), Instances.empty())
            return image, label(image, known)
        except (DataError, FileNotFoundError) as error:
            return None, [Problem(path, 0, str(error).removeprefix(f"{path}: "), "image")]

    for image, problems in in_threads(read, items, workers):
        for problem in problems:
            report.add(problem)
        if image is not None:
            yield image


def evenly_spaced(count: int, fraction: float) -> np.ndarray:
    """Choose a share of 0..count-1, spread over the whole range, at least one.

    The first part of a sorted list is often one scene or one class; a spread choice isn't, and it
    is as repeatable.

    Args:
        count: how many there are.
        fraction: the share to choose, above 0, at most 1.
    """
    if fraction >= 1 or count == 0:
        return np.arange(count)
    chosen = max(1, round(count * fraction))
    return np.arange(chosen) * count // chosen


def in_threads(
    work: Callable[[T], R], items: Iterable[T], workers: int, chunk: int = 64
) -> Iterator[R]:
    """Map `work` over items in threads, results in the order of the items.

    Threads, not processes: opening files is what takes the time.
    """
    listed = list(items)
    pieces = [listed[i : i + chunk] for i in range(0, len(listed), chunk)]
    pool = ThreadPoolExecutor(workers, thread_name_prefix="yolo-scan")
    try:
        for results in pool.map(lambda piece: [work(item) for item in piece], pieces):
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)
