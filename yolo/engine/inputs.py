# SPDX-License-Identifier: Apache-2.0
"""What goes into a run: datasets, loaders, and batches on their way to the network.

Shape letters: B images, C channels, H W pixels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from yolo.cfg.schema import TrainConfig, ValConfig
from yolo.data.batch import Extras
from yolo.data.cache import ImageStore
from yolo.data.datasets import DatasetSpec, read_dataset
from yolo.data.index import LabelIndex, build_index
from yolo.data.loader import Batch, TrainLoader, ValLoader, normalize
from yolo.data.recipe import Augment
from yolo.engine.runtime import usable_cores

if TYPE_CHECKING:
    from yolo.cfg.schema import CommonConfig
    from yolo.engine.parts import TrainerParts
    from yolo.engine.ranks import Ranks
    from yolo.nn.losses import Targets
    from yolo.nn.model import BaseModel
    from yolo.tasks.spec import TaskSpec

LOGGER = logging.getLogger(__name__)

Size = tuple[int, int]

_SIZES = 4
"""Last word of the random key of `step_size`; the samples have the smaller ones (data/recipe)."""


# ---------------------------------------------------------------------- datasets


def cache_folder(config: CommonConfig, save_dir: Path | None) -> Path | None:
    """Return where caches go: `cache_dir`, else inside the run folder, else nowhere."""
    if config.cache_dir:
        return Path(config.cache_dir)
    return save_dir / "cache" if save_dir is not None else None


def dataset(config: CommonConfig, spec: TaskSpec, save_dir: Path | None) -> DatasetSpec:
    """Find out what `data` describes."""
    cache = cache_folder(config, save_dir)
    kinds = spec.label_format().kinds
    data = read_dataset(config.data, cache, kinds=kinds)
    if "keypoints" in kinds:
        data.keypoint_shape()  # better missed now than row by row
    return data


def scan(
    config: CommonConfig,
    spec: TaskSpec,
    data: DatasetSpec,
    split: str,
    cache: Path | None,
    fraction: float = 1.0,
) -> LabelIndex:
    """Read a split's labels and say what was found."""
    index, report = build_index(
        data,
        split,
        spec.label_format,
        cache,
        single_cls=config.single_cls,
        classes=config.classes,
        fraction=fraction,
        strict=config.strict,
    )
    report.log()
    return index


def input_size(imgsz: int | Sequence[int], strides: Sequence[int]) -> Size:
    """Return (h, w) in pixels, each side rounded up to a multiple of the largest stride."""
    sides = (imgsz, imgsz) if isinstance(imgsz, int) else tuple(imgsz)
    stride = max(strides)
    rounded = [math.ceil(side / stride) * stride for side in sides]
    if tuple(rounded) != tuple(sides):
        LOGGER.warning("imgsz %s rounded up to %s, multiples of %d", sides, rounded, stride)
    return rounded[0], rounded[1]


# ---------------------------------------------------------------------- loaders


def extras(config: CommonConfig, spec: TaskSpec, data: DatasetSpec) -> Extras | None:
    """Return what makes a task's targets beyond boxes; None where boxes are all."""
    return spec.extras(config, data) if spec.extras else None


def worker_count(config: CommonConfig) -> int:
    """Return the loader processes to use: as asked, but never more than usable cores."""
    return min(config.workers, usable_cores())


def image_store(
    config: CommonConfig,
    index: LabelIndex,
    size: Size,
    data: DatasetSpec,
    folder: Path | None = None,
    cache: bool | Literal["ram", "disk"] = False,
    fit: bool = True,
) -> ImageStore:
    """Build what loads the images of an index, and keeps them as `cache` says."""
    return ImageStore(
        index,
        size,
        channels=data.channels,
        mode="ram" if cache is True else cache,
        cache_dir=folder,
        strict=config.strict,
        fit=fit,
    )


def train_loader(trainer: TrainerParts) -> TrainLoader:
    """Build the loader of augmented training batches."""
    config: TrainConfig = trainer.args
    cache = cache_folder(config, trainer.save_dir)
    index = scan(config, trainer.spec, trainer.data, "train", cache, config.fraction)
    store = image_store(config, index, trainer.imgsz, trainer.data, cache, config.cache)
    options = {f.name: getattr(config, f.name) for f in fields(Augment) if hasattr(config, f.name)}
    return TrainLoader(
        index,
        store,
        Augment(**options, custom=config.augmentations, flip_idx=trainer.data.flip_idx),
        batch=trainer.batch_size,
        size=trainer.imgsz,
        seed=config.seed,
        workers=worker_count(config),
        rect=config.rect,
        stride=max(trainer.model.stride),
        sampler=config.sampler,
        pin_memory=trainer.device.type == "cuda",
        paint=config.augment_on == "cpu",
        extras=extras(config, trainer.spec, trainer.data),
        rank=trainer.ranks.rank,
        world=trainer.ranks.world,
    )


def val_config(trainer: TrainerParts) -> ValConfig:
    """Return the options with which a trainer validates: those of `val` with the same names.

    Precision is not among them, so that `val()` of the best weights gives the same numbers.
    """
    schema = trainer.spec.val_config
    train = trainer.args
    shared = {
        name: getattr(train, name)
        for name in schema.model_fields
        if name in type(train).model_fields and name not in {"rect", "batch", "amp", "half"}
    }
    return schema(**shared, batch=trainer.batch_size)


def val_loader(
    config: ValConfig,
    index: LabelIndex,
    store: ImageStore,
    stride: int,
    extra_targets: Extras | None = None,
    ranks: Ranks | None = None,
) -> ValLoader:
    """Build the loader of validation batches, of this rank's share of them."""
    return ValLoader(
        index,
        store,
        batch=int(config.batch),
        size=store.size,
        stride=stride,
        rect=config.rect,
        workers=worker_count(config),
        extras=extra_targets,
        rank=ranks.rank if ranks else 0,
        world=ranks.world if ranks else 1,
    )


def epoch_val_loader(trainer: TrainerParts) -> ValLoader:
    """Build the loader of the images that score a training run after each epoch."""
    config = val_config(trainer)
    cache = cache_folder(trainer.args, trainer.save_dir)
    index = scan(config, trainer.spec, trainer.data, trainer.args.split, cache)
    store = image_store(config, index, trainer.imgsz, trainer.data, cache, trainer.args.cache)
    extra_targets = extras(config, trainer.spec, trainer.data)
    stride = max(trainer.model.stride)
    return val_loader(config, index, store, stride, extra_targets, trainer.ranks)


def loader_for(config: ValConfig, spec: TaskSpec, net: BaseModel) -> ValLoader:
    """Build the loader for scoring a model by itself."""
    data = dataset(config, spec, None)
    index = scan(config, spec, data, config.split, cache_folder(config, None), config.fraction)
    store = image_store(config, index, input_size(config.imgsz, net.stride), data)
    return val_loader(config, index, store, max(net.stride), extras(config, spec, data))


# ---------------------------------------------------------------------- on the device


def preprocess(
    batch: Batch, device: torch.device, layout: torch.memory_format = torch.channels_last
) -> tuple[Tensor, Targets]:
    """Move a batch to the device; return (images (B, C, H, W) in 0..1, targets)."""
    moved = batch.to(device, non_blocking=True)
    return normalize(moved.images, torch.float32).contiguous(memory_format=layout), moved.targets


def step_size(size: Size, share: float, stride: int, seed: int, iteration: int) -> Size:
    """Draw the input size of one step for `multi_scale`.

    The longer side becomes a multiple of the stride, every one from 1 - share to 1 + share times
    its length as likely as the others; the shorter side follows as well as the stride allows. What
    is drawn depends on (seed, iteration) alone, so that it is the same after a restart.

    Args:
        size: usual (h, w) in pixels.
        share: 0 <= share < 1.
        stride: largest stride of the network.
        seed: of the run.
        iteration: 0-based number of the step in the whole run.
    """
    longer = max(size)
    low = max(math.ceil(longer * (1 - share) / stride), 1)
    high = max(math.floor(longer * (1 + share) / stride), low)
    drawn = int(np.random.default_rng([seed, iteration, _SIZES]).integers(low, high + 1)) * stride
    h, w = (max(round(side * drawn / longer / stride), 1) * stride for side in size)
    return h, w


def resize_images(images: Tensor, size: Size) -> Tensor:
    """Resize (B, C, H, W) images bilinearly to (h, w) where they are."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def resize_targets(targets: Targets, size: Size) -> Targets:
    """Return targets with boxes and ignored regions scaled to (h, w), and the `extras` as given."""
    (old_h, old_w), (h, w) = targets.size, size

    def scaled(boxes: Tensor) -> Tensor:  # plain numbers, since a new tensor would have to travel
        x, y = boxes[..., 0::2] * (w / old_w), boxes[..., 1::2] * (h / old_h)
        return torch.stack((x, y), -1).flatten(-2)

    ignore = None if targets.ignore is None else scaled(targets.ignore)
    boxes, extras = scaled(targets.boxes), dict(targets.extras)  # a task may put scaled ones in
    return replace(targets, boxes=boxes, ignore=ignore, size=size, extras=extras)
