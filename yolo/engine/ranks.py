# SPDX-License-Identifier: Apache-2.0
"""Several processes that train one network together, started by torch's own launcher (`torchrun`).

All ranks do the same: they build the same parts, take their share of every batch, add up gradients
and losses, and find the same scores. Rank 0 alone writes files and speaks.
"""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from yolo.engine.runtime import listed_devices, select_device
from yolo.errors import ConfigError

TIMEOUT = datetime.timedelta(minutes=30)
"""For a collective call: what one rank may do alone, as scanning a large dataset, takes time. Where
a rank ends, the launcher ends the others much earlier."""


class Ranks:
    """This process among the ranks of a run; alone, everything is the identity.

    Attributes:
        rank: 0 to world - 1.
        world: number of ranks.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank = rank
        self.world = world
        self._joint = False
        # Numbers of the host go over the CPU, so that a CUDA step needn't be waited for.
        self._control: Any = dist.new_group(backend="gloo") if world > 1 else None

    @property
    def main(self) -> bool:
        """Whether this rank writes and speaks."""
        return self.rank == 0

    @contextmanager
    def joint(self) -> Iterator[None]:
        """Where all ranks do the same step: here alone `sum` adds up over them."""
        self._joint = True
        try:
            yield
        finally:
            self._joint = False

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over the ranks within `joint`, else `value`."""
        if self.world == 1 or not self._joint:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def largest(self, number: int) -> int:
        """Return the largest of the ranks' numbers."""
        if self.world == 1:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self._control)
        return int(value)

    def share(self, value: Any) -> Any:
        """Return rank 0's value: plain data or tensors."""
        if self.world == 1:
            return value
        box = [value if self.main else None]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in their order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self._control)
        return values

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self.world > 1:
            dist.barrier(group=self._control)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let rank 0 go first: what it leaves in a cache, the others find."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def share_buffers(self, module: nn.Module) -> None:
        """Give a module the buffers of rank 0's: those of BatchNorm differ."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def wrap(self, model: nn.Module, device: torch.device, sync_bn: bool = False) -> nn.Module:
        """Return the model with gradients averaged over the ranks.

        Args:
            model: its parameters become rank 0's.
            device: where it is.
            sync_bn: make its BatchNorm layers work on the batch of all ranks, in place.

        Raises:
            ConfigError: if BatchNorm can't be synchronised there.
        """
        if self.world == 1:
            return model
        if sync_bn and device.type != "cuda":
            raise ConfigError(f"sync_bn=True needs CUDA devices, found {device}; leave it out")
        if sync_bn:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        places = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=places)


def own_device(device: Any) -> torch.device:
    """Return the device of this process: of those that the option names, its own one.

    Raises:
        ConfigError: as `select_device`.
    """
    place = os.environ.get("LOCAL_RANK")
    named = listed_devices(device)
    if place is None or not torch.cuda.is_available() or "cpu" in named:
        return select_device(device)
    return select_device(named[int(place)] if len(named) > int(place) else int(place))


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the other ranks if a launcher started this process (RANK, WORLD_SIZE, ... are set).

    A process group that is there already is used, and left.
    """
    own = not dist.is_available() or not dist.is_initialized()
    if own and int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Ranks()
        return
    if own:
        cuda = device.type == "cuda"
        if cuda:
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    logger = logging.getLogger("yolo")
    level = logger.level
    try:
        ranks = Ranks(dist.get_rank(), dist.get_world_size())
        if not ranks.main:
            logger.setLevel(logging.ERROR)  # rank 0 says it
        yield ranks
        ranks.wait()
    finally:
        logger.setLevel(level)
        if own:
            dist.destroy_process_group()
