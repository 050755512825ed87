# SPDX-License-Identifier: Apache-2.0
"""Batches on their way to the device: while a step runs, the next batch travels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import TypeVar

import torch
from torch import Tensor

from yolo.data.batch import Batch

T = TypeVar("T")


def feed(batches: Iterable[Batch], device: torch.device) -> Iterable[Batch]:
    """Return batches that are on a CUDA device, or on their way there.

    Each is copied, and painted where its images come in pieces, on a stream beside that of the
    steps, one batch ahead of them. Out of page-locked memory that lets neither the host nor the
    steps wait. What is ahead counts nowhere: a run that goes on makes it again, by its place.

    For other devices batches stay as they are; `inputs.preprocess` moves them.
    """
    return batches if device.type != "cuda" else _sent(batches, device)


def _sent(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    steps, beside = torch.cuda.current_stream(device), torch.cuda.Stream(device)

    def send(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(beside):
            return batch.to(device, non_blocking=True), beside.record_event()

    def keep(tensor: Tensor) -> Tensor:
        tensor.record_stream(steps)  # the memory belongs to the other stream, which may be ahead
        return tensor

    for batch, arrival in one_ahead(map(send, batches)):
        steps.wait_event(arrival)
        yield batch.map(keep)


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield items in their order; each is given away once the next one has been asked for."""
    for item, _ in pairwise(chain(items, [None])):
        yield item  # type: ignore[misc]  # the pair of None and nothing doesn't exist
