# SPDX-License-Identifier: Apache-2.0
"""The parts of a run, built from options: data, network, loaders, optimizer, average, validator."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yolo.cfg.schema import TrainConfig, ValConfig
from yolo.data.cache import ImageStore
from yolo.data.datasets import DatasetSpec, read_dataset
from yolo.data.index import LabelIndex, build_index
from yolo.data.loader import Batch, TrainLoader, ValLoader, normalize
from yolo.data.recipe import Augment, close_epoch
from yolo.engine import optim
from yolo.engine.checkpoint import Checkpoint, load_checkpoint
from yolo.engine.ema import ModelEMA, power_decay
from yolo.engine.runtime import usable_cores
from yolo.engine.stopping import BestEpoch
from yolo.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from yolo.cfg.schema import CommonConfig
    from yolo.engine.trainer import Trainer
    from yolo.engine.validator import Validator
    from yolo.nn.model import BaseModel
    from yolo.tasks.spec import TaskSpec

LOGGER = logging.getLogger(__name__)


# ---------------------------------------------------------------------- data


def cache_folder(config: CommonConfig, save_dir: Path | None) -> Path | None:
    """Return where caches go: `cache_dir`, else inside the run folder, else nowhere."""
    if config.cache_dir:
        return Path(config.cache_dir)
    return save_dir / "cache" if save_dir is not None else None


def scan(
    config: CommonConfig, spec: TaskSpec, data: DatasetSpec, split: str, cache: Path | None
) -> LabelIndex:
    """Read a split's labels and say what was found."""
    index, report = build_index(
        data,
        split,
        spec.label_format,
        cache,
        single_cls=config.single_cls,
        classes=config.classes,
        fraction=config.fraction if split == "train" else 1.0,
        strict=config.strict,
    )
    report.log()
    return index


def input_size(imgsz: int | Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """Return (h, w) in pixels, each side rounded up to a multiple of the largest stride."""
    sides = (imgsz, imgsz) if isinstance(imgsz, int) else tuple(imgsz)
    stride = max(strides)
    rounded = [math.ceil(side / stride) * stride for side in sides]
    if tuple(rounded) != tuple(sides):
        LOGGER.warning("imgsz %s rounded up to %s, multiples of %d", sides, rounded, stride)
    return rounded[0], rounded[1]


def worker_count(config: CommonConfig) -> int:
    """Return the loader processes to use: as asked, but never more than usable cores."""
    return min(config.workers, usable_cores())


def train_loader(trainer: Trainer) -> TrainLoader:
    """Build the loader of augmented training batches."""
    config: TrainConfig = trainer.args
    cache = cache_folder(config, trainer.save_dir)
    index = scan(config, trainer.spec, trainer.data, "train", cache)
    store = ImageStore(
        index,
        trainer.imgsz,
        channels=trainer.data.channels,
        mode="ram" if config.cache is True else config.cache,
        cache_dir=cache,
    )
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
        close_epoch=close_epoch(trainer.epochs, config.close_mosaic),
        pin_memory=trainer.device.type == "cuda",
    )


def val_loader(
    config: ValConfig, index: LabelIndex, size: tuple[int, int], stride: int, data: DatasetSpec
) -> ValLoader:
    """Build the loader of validation batches."""
    store = ImageStore(index, size, channels=data.channels)
    return ValLoader(
        index,
        store,
        batch=int(config.batch),
        size=size,
        stride=stride,
        rect=config.rect,
        workers=worker_count(config),
    )


def preprocess(batch: Batch, device: torch.device) -> tuple[Tensor, Any]:
    """Move a batch to the device; return (images (B, C, H, W) in 0..1, targets)."""
    moved = batch.to(device, non_blocking=True)
    return normalize(moved.images, torch.float32), moved.targets


# ---------------------------------------------------------------------- network


def class_names(config: CommonConfig, data: DatasetSpec) -> dict[int, str]:
    """Return the classes to learn."""
    return {0: "item"} if config.single_cls else dict(data.names)


def model(trainer: Trainer) -> tuple[BaseModel, list[str]]:
    """Build the network; return it with the names of its frozen modules.

    Raises:
        ConfigError: if everything would be frozen.
    """
    config: TrainConfig = trainer.args
    names = class_names(config, trainer.data)
    network = {k: v for k, v in trainer.network.items() if k != "names"}
    built: BaseModel = trainer.spec.model(network, ch=trainer.data.channels, nc=len(names))
    built.names = names
    weights, origin = trainer.initial_weights, str(config.model)
    if isinstance(config.pretrained, (str, Path)) and trainer.resumed_from is None:
        weights, origin = load_checkpoint(config.pretrained).weights, str(config.pretrained)
    if weights is not None:
        trainer.progress.line(take_weights(built, weights, origin))
    frozen = frozen_modules(built, config.freeze)
    for name, parameter in built.named_parameters():
        if any(name.startswith(f"{prefix}.") for prefix in frozen):
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in built.parameters()):
        raise ConfigError(f"freeze={config.freeze!r} freezes all of the network; freeze less")
    layout = torch.contiguous_format if config.channels_last is False else torch.channels_last
    return built.to(trainer.device, memory_format=layout), frozen


def take_weights(built: BaseModel, weights: Mapping[str, Tensor], origin: str) -> str:
    """Load the weights that fit; return a sentence that lists what was and wasn't taken."""
    report = built.load_weights(weights)
    text = f"weights of {origin}: took {len(report.taken)} of {len(built.state_dict())} entries"
    left = sorted({*report.mismatched, *report.missing})
    if left:
        shown = sorted({re.sub(r"\.\w+$", "", name) for name in left})
        more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
        text += f"; new: {', '.join(shown[:12])}{more}"
    if not report.taken:
        raise CheckpointError(f"weights of {origin}: none of them fits this network")
    return text


def frozen_modules(built: nn.Module, freeze: Any) -> list[str]:
    """Turn `freeze` (first N layers, indices, or module names) into names of modules.

    Raises:
        ConfigError: if a layer doesn't exist.
    """
    if freeze is None:
        return []
    wanted = (
        range(freeze)
        if isinstance(freeze, int)
        else freeze
        if not isinstance(freeze, str)
        else [freeze]
    )
    names = [f"model.{item}" if isinstance(item, int) else str(item) for item in wanted]
    known = {name for name, _ in built.named_modules()}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"freeze={freeze!r}: the network has no module {name!r}; its layers are model.0 "
                f"to model.{len(built.model) - 1}"  # type: ignore[arg-type]
            )
    return names


def set_train_mode(built: nn.Module, frozen: Sequence[str]) -> None:
    """Put the network into training mode, frozen parts with their BatchNorm into eval mode."""
    built.train()
    for name in frozen:
        built.get_submodule(name).eval()


# ---------------------------------------------------------------------- optimization


def batch_size(trainer: Trainer) -> int:
    """Return the images a step: as asked, or what fits the memory of a CUDA device."""
    batch = trainer.args.batch
    if isinstance(batch, int) and batch > 0:
        return batch
    if trainer.device.type != "cuda":
        trainer.progress.line(f"batch={batch} needs a CUDA device to measure; using batch=16")
        return 16
    from yolo.engine.autobatch import fitting_batch

    share = 0.6 if batch == -1 else float(batch)
    chosen = fitting_batch(trainer, share)
    trainer.progress.line(f"batch={batch}: {chosen} images fit {share:.0%} of the memory")
    return chosen


def optimizer(trainer: Trainer) -> tuple[torch.optim.Optimizer, optim.Schedule, dict[str, Any]]:
    """Build optimizer and schedule; return them with the options as resolved."""
    config: TrainConfig = trainer.args
    images, batches = len(trainer.train_loader.index), len(trainer.train_loader)
    steps = math.ceil(images / max(trainer.batch_size, config.nbs)) * trainer.epochs
    choice = optim.OptimizerChoice(
        config.optimizer, config.lr0, config.momentum, config.warmup_bias_lr
    )
    if config.optimizer == "auto":
        choice = optim.choose_optimizer(steps, trainer.model.nc)
        given = {"lr": "lr0", "momentum": "momentum", "warmup_bias_lr": "warmup_bias_lr"}
        set_by_user = config.model_fields_set
        choice = replace(
            choice, **{k: getattr(config, v) for k, v in given.items() if v in set_by_user}
        )
    accumulate = max(round(config.nbs / trainer.batch_size), 1)
    built = optim.build_optimizer(
        trainer.model,
        choice.name,
        lr=choice.lr,
        momentum=choice.momentum,
        weight_decay=config.weight_decay * trainer.batch_size * accumulate / config.nbs,
    )
    schedule = optim.Schedule(
        lr0=choice.lr,
        lrf=config.lrf,
        epochs=trainer.epochs,
        cosine=config.cos_lr,
        warmup_steps=optim.warmup_steps(config.warmup_epochs, trainer.epochs, batches),
        warmup_bias_lr=choice.warmup_bias_lr,
        momentum=choice.momentum,
        warmup_momentum=min(config.warmup_momentum, choice.momentum),
        accumulate=min(accumulate, max(batches * trainer.epochs, 1)),
    )
    resolved = {
        "optimizer": choice.name,
        "lr0": choice.lr,
        "momentum": choice.momentum,
        "warmup_bias_lr": choice.warmup_bias_lr,
    }
    return built, schedule, resolved


def step_unless(bad: Tensor, built: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Take an optimizer step unless `bad` (a 0-d bool tensor on the device) holds.

    On CUDA a fused optimizer reads the flag on the device, so that the host doesn't wait for it.
    """
    if scaler.is_enabled():
        scaler.step(built)  # skips by itself
        scaler.update()
    elif bad.device.type == "cuda" and built.defaults.get("fused"):
        fused: Any = built
        fused.found_inf = bad.float()
        fused.grad_scale = None
        built.step()
    elif not bad:
        built.step()


def ema(trainer: Trainer) -> ModelEMA:
    """Build the moving average of the weights."""
    return ModelEMA(trainer.model, power_decay())


# ---------------------------------------------------------------------- validation


def val_config(trainer: Trainer) -> ValConfig:
    """Return the options with which a trainer validates: those of `val` with the same names."""
    schema = trainer.spec.val_config
    train = trainer.args
    shared = {
        name: getattr(train, name)
        for name in schema.model_fields
        if name in type(train).model_fields and name not in {"rect", "batch"}
    }
    return schema(**shared, batch=trainer.batch_size)


def validator(trainer: Trainer) -> Validator:
    """Build the validator of a training run."""
    return trainer.spec.validator(
        val_config(trainer),
        trainer.spec,
        trainer.callbacks,
        trainer.device,
        trainer.save_dir,
        trainer.progress,
    )


def test_loader(trainer: Trainer) -> ValLoader:
    """Build the loader of the images that score a training run."""
    config = val_config(trainer)
    cache = cache_folder(trainer.args, trainer.save_dir)
    index = scan(config, trainer.spec, trainer.data, trainer.args.split, cache)
    return val_loader(config, index, trainer.imgsz, max(trainer.model.stride), trainer.data)


def loader_for(config: ValConfig, spec: TaskSpec, net: BaseModel) -> ValLoader:
    """Build the loader for scoring a model by itself."""
    data = read_dataset(config.data, config.cache_dir)
    index = scan(config, spec, data, config.split, cache_folder(config, None))
    return val_loader(config, index, input_size(config.imgsz, net.stride), max(net.stride), data)


def best_epoch(trainer: Trainer) -> BestEpoch:
    """Build what follows the monitored metric."""
    config: TrainConfig = trainer.args
    known = [
        *trainer.validator.metrics.results_dict,
        *trainer.label_loss_items(prefix="val"),
        *trainer.label_loss_items(prefix="train"),
    ]
    monitor = config.monitor or trainer.spec.fitness
    return BestEpoch.for_metric(monitor, config.mode, config.patience, known)


# ---------------------------------------------------------------------- resuming


def resumed_folder(saved: Checkpoint, config: TrainConfig) -> Path:
    """Return the folder of the run that is resumed.

    Raises:
        CheckpointError: if it isn't there any more.
    """
    folder = Path((saved.state or {})["save_dir"])
    if not folder.is_dir():
        raise CheckpointError(
            f"resume: the run folder {folder} isn't there any more; move it back, or start a new "
            "run from these weights"
        )
    return folder


def warn_about_threads(threads: int) -> None:
    """Warn if the thread count differs, since sums on the CPU depend on it."""
    if threads != torch.get_num_threads():
        LOGGER.warning(
            "the run was started with %d torch threads and goes on with %d: results may differ "
            "in the last bits",
            threads,
            torch.get_num_threads(),
        )


def seconds_of(text: str) -> float:
    """Turn "90s", "10min" or "2h" into seconds."""
    number, unit = re.fullmatch(r"([\d.]+)\s*(s|sec|min|h)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "sec": 1, "min": 60, "h": 3600}[unit]
