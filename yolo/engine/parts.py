# SPDX-License-Identifier: Apache-2.0
"""The parts that a training run is made of: what a task, or a user's trainer, may replace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yolo.engine import build, distill, inputs, network, resume
from yolo.engine.folders import run_folder

if TYPE_CHECKING:
    from yolo.data.batch import Batch
    from yolo.data.datasets import DatasetSpec
    from yolo.engine.checkpoint import Checkpoint
    from yolo.engine.ema import ModelEMA
    from yolo.engine.events import Callbacks
    from yolo.engine.progress import Progress
    from yolo.engine.ranks import Ranks
    from yolo.engine.validator import Validator
    from yolo.nn.losses import Targets
    from yolo.tasks.spec import TaskSpec


class TrainerParts:
    """How a trainer builds its parts; `Trainer` says when.

    Attributes:
        args: the resolved options; a task's own are among them.
        save_dir: the run folder.
        device: where the network trains.
        ranks: the processes that train it together.
        data: the dataset.
        fresh: the network starts from random weights.
        frozen: names of the modules that stay as they are.
        task_criterion: the task's loss.
        criterion: what is minimised: that, and the terms of distillation beside it.
        learner: the network, or a module of it and what else is trained (`distill.Learner`).
        iteration: batches of the whole run that are done.
    """

    args: Any
    spec: TaskSpec
    network: Mapping[str, Any]
    initial_weights: Mapping[str, Tensor] | None
    fresh: bool
    resumed_from: Checkpoint | None
    callbacks: Callbacks
    progress: Progress
    save_dir: Path
    device: torch.device
    ranks: Ranks
    epochs: int
    imgsz: Any
    batch_size: Any
    epoch: int
    batch_i: int
    iteration: int
    data: DatasetSpec
    model: Any
    learner: Any
    frozen: list[str]
    criterion: Any
    task_criterion: Any
    ema: ModelEMA
    validator: Validator
    train_loader: Any
    test_loader: Any

    def build_folder(self) -> Any:
        """Choose and create the run folder."""
        if self.resumed_from is not None:
            return resume.run_folder_of(self.resumed_from)
        args = self.args
        return run_folder(args.project, args.name, self.spec.name, "train", args.exist_ok)

    def build_data(self) -> DatasetSpec:
        """Find out what `data` describes."""
        return inputs.dataset(self.args, self.spec, self.save_dir)

    def build_model(self) -> Any:
        """Build the network for the data's classes, with weights taken over where they fit."""
        model, self.frozen = network.build_model(self)
        return model

    def build_learner(self) -> nn.Module:
        """Build what is trained: the network, and what distillation trains beside it."""
        return distill.build_learner(self)

    def build_criterion(self) -> nn.Module:
        """Build the loss from the spec's criterion and the options; each task knows how."""
        raise NotImplementedError(f"{type(self).__name__} must say how its criterion is built")

    def build_train_loader(self) -> Any:
        """Build the loader of training batches."""
        return inputs.train_loader(self)

    def build_val_loader(self) -> Any:
        """Build the loader of the images that score every epoch."""
        return inputs.epoch_val_loader(self)

    def build_optimizer(self) -> Any:
        """Return the optimizer, its schedule, and the options as they were resolved."""
        return build.optimizer(self)

    def build_ema(self) -> Any:
        """Build the moving average of the weights."""
        return build.ema(self)

    def build_validator(self) -> Any:
        """Build the validator that scores every epoch."""
        return build.validator(self)

    def preprocess_batch(self, batch: Batch) -> tuple[Tensor, Targets]:
        """Move a batch to the device and return (images (B, C, H, W) in 0..1, targets)."""
        args = self.args
        images, targets = inputs.preprocess(batch, self.device, network.memory_format(args))
        if args.multi_scale:
            stride = max(self.model.stride)
            size = inputs.step_size(
                targets.size, args.multi_scale, stride, args.seed, self.iteration
            )
            images = inputs.resize_images(images, size)
            targets = self.resize_targets(targets, size)
        return images, targets

    def resize_targets(self, targets: Targets, size: tuple[int, int]) -> Targets:
        """Scale a batch's targets to (h, w); a task with further geometry extends this."""
        return inputs.resize_targets(targets, size)

    def validate(self) -> dict[str, float]:
        """Score the averaged weights; return metrics and losses by column name."""
        self.ranks.share_buffers(self.ema.ema)
        metrics = self.validator.run(
            self.ema.ema, self.test_loader, criterion=self.task_criterion, final=False
        )
        return dict(metrics.results_dict) | self.validator.losses
