# SPDX-License-Identifier: Apache-2.0
"""The parts of a run that decide its steps and its end: batch, optimizer, average, validator."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yolo.engine import optim
from yolo.engine.ema import ModelEMA, power_decay
from yolo.engine.inputs import val_config
from yolo.engine.network import rate_factors
from yolo.engine.stopping import BestEpoch
from yolo.engine.table import loss_column
from yolo.errors import ConfigError

if TYPE_CHECKING:
    from yolo.cfg.schema import TrainConfig
    from yolo.engine.parts import TrainerParts
    from yolo.engine.trainer import Trainer
    from yolo.engine.validator import Validator


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


def optimizer(
    trainer: TrainerParts,
) -> tuple[torch.optim.Optimizer, optim.Schedule, dict[str, Any]]:
    """Build optimizer and schedule; return them with the options as resolved."""
    config: TrainConfig = trainer.args
    images, batches = len(trainer.train_loader.index), len(trainer.train_loader)
    steps = math.ceil(images / max(trainer.batch_size, config.nbs)) * trainer.epochs
    choice = optim.OptimizerChoice(
        config.optimizer, config.lr0, config.momentum, config.warmup_bias_lr
    )
    if config.optimizer == "auto":
        choice = optim.choose_optimizer(steps, trainer.model.nc, trainer.fresh)
        given = {"lr": "lr0", "momentum": "momentum", "warmup_bias_lr": "warmup_bias_lr"}
        set_by_user = config.model_fields_set
        choice = replace(
            choice, **{k: getattr(config, v) for k, v in given.items() if v in set_by_user}
        )
    accumulate = max(round(config.nbs / trainer.batch_size), 1)
    built = optim.build_optimizer(
        trainer.learner,
        choice.name,
        lr=choice.lr,
        momentum=choice.momentum,
        weight_decay=config.weight_decay * trainer.batch_size * accumulate / config.nbs,
        factors=rate_factors(trainer.model, config.layer_lr),
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


def compiled(model: nn.Module, option: bool | str) -> Callable[..., Any]:
    """Return what runs a network through `torch.compile`.

    Args:
        model: the network; it stays as it is.
        option: True, or one of torch's modes by name.

    Raises:
        ConfigError: by what is returned, where torch can't compile.
    """
    whole = torch.compile(model, mode=None if option is True else str(option))

    def run(*given: Any) -> Any:
        try:
            return whole(*given)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            text = f"compile={option!r}: torch can't compile this network here"
            raise ConfigError(f"{text} ({reason:.200}); leave compile= out") from error

    return run


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


def ema(trainer: TrainerParts) -> ModelEMA:
    """Build the moving average of the weights."""
    return ModelEMA(trainer.model, power_decay())


def validator(trainer: TrainerParts) -> Validator:
    """Build the validator of a training run."""
    built: Validator = trainer.spec.validator(
        val_config(trainer),
        trainer.spec,
        trainer.callbacks,
        trainer.device,
        trainer.save_dir,
        trainer.progress,
    )
    built.ranks = trainer.ranks
    return built


def best_epoch(trainer: Trainer) -> BestEpoch:
    """Build what follows the monitored metric."""
    config: TrainConfig = trainer.args
    known = [
        *trainer.validator.metrics.results_dict,
        *(loss_column("val", name) for name in trainer.task_criterion.names),
        *trainer.label_loss_items(prefix="train"),
    ]
    monitor = config.monitor or trainer.spec.fitness
    return BestEpoch.for_metric(monitor, config.mode, config.patience, known)


def seconds_of(text: str) -> float:
    """Turn "90s", "10min" or "2h" into seconds."""
    number, unit = re.fullmatch(r"([\d.]+)\s*(s|sec|min|h)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "sec": 1, "min": 60, "h": 3600}[unit]
