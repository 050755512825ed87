# SPDX-License-Identifier: Apache-2.0
"""Training of classifiers: the general loop on random crops."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from yolo.data.index import LabelIndex
from yolo.engine import inputs
from yolo.engine.trainer import Trainer
from yolo.errors import ConfigError, nearest
from yolo.tasks.classify.data import CenterLoader, CropAugment, CropLoader
from yolo.tasks.classify.val import center_loader

LOGGER = logging.getLogger(__name__)

WITHOUT_EFFECT = (
    "rect", "degrees", "translate", "shear", "perspective", "bgr", "mosaic", "mixup", "cutmix",
    "copy_paste", "augment_on",
)  # fmt: skip
"""Options of training that crops of whole images have no use for."""


class ClassificationTrainer(Trainer):
    """Train a classifier; see `Trainer` for what a subclass may override."""

    @cached_property
    def train_index(self) -> LabelIndex:
        """The training images and their classes."""
        cache = inputs.cache_folder(self.args, self.save_dir)
        return inputs.scan(self.args, self.spec, self.data, "train", cache, self.args.fraction)

    def build_model(self) -> Any:
        """Build the network, with the dropout of the options."""
        built = super().build_model()
        for module in built.head.modules():
            if isinstance(module, nn.Dropout):
                module.p = self.args.dropout
        return built

    def build_criterion(self) -> nn.Module:
        """Build the criterion with the smoothing and the weights of the options."""
        weights = class_weights(
            self.args.class_weights, self.model.names, self.train_index.class_counts
        )
        criterion: nn.Module = self.spec.criterion(
            self.args.label_smoothing, weights, self.ranks.sum
        )
        return criterion.to(self.device)

    def build_train_loader(self) -> CropLoader:
        """Build the loader of augmented crops."""
        config = self.args
        for name in WITHOUT_EFFECT:
            if getattr(config, name) != type(config).model_fields[name].default:
                LOGGER.warning("option '%s' has no effect on crops of whole images", name)
        cache = inputs.cache_folder(config, self.save_dir)
        store = inputs.image_store(
            config, self.train_index, self.imgsz, self.data, cache, config.cache, fit=False
        )
        gains = {f.name: getattr(config, f.name) for f in fields(CropAugment) if f.name != "custom"}
        return CropLoader(
            self.train_index,
            store,
            CropAugment(**gains, custom=config.augmentations),
            batch=self.batch_size,
            size=self.imgsz,
            seed=config.seed,
            sampler=config.sampler,
            workers=inputs.worker_count(config),
            pin_memory=self.device.type == "cuda",
            extras=inputs.extras(config, self.spec, self.data),
            rank=self.ranks.rank,
            world=self.ranks.world,
        )

    def build_val_loader(self) -> CenterLoader:
        """Build the loader of the centre crops that score every epoch."""
        config = inputs.val_config(self)
        cache = inputs.cache_folder(self.args, self.save_dir)
        index = inputs.scan(config, self.spec, self.data, self.args.split, cache)
        store = inputs.image_store(
            config, index, self.imgsz, self.data, cache, self.args.cache, fit=False
        )
        return center_loader(config, index, store, self.ranks)


def class_weights(wanted: Any, names: Mapping[int, str], count: Any) -> list[float] | None:
    """Turn the option `class_weights` into a weight for each class.

    Args:
        wanted: None; "balanced", so that the images of each class weigh the same together and an
            image weighs 1 on average; a weight for each class; or class name -> weight, 1 for the
            others.
        names: class id -> name.
        count: gives (C,) images of each class; called when it matters.

    Raises:
        ConfigError: if the weights don't fit the classes, or are no numbers from 0 on.
    """
    if wanted is None:
        return None
    if wanted == "balanced":
        counts = np.asarray(count())
        present = counts > 0
        shares = counts.sum() / (present.sum() * np.maximum(counts, 1))
        return np.where(present, shares, 1.0).tolist()
    if isinstance(wanted, Mapping):
        for name in wanted:
            if name not in names.values():
                raise ConfigError(
                    f"class_weights: expected names of the {len(names)} classes, found {name!r}. "
                    f"{nearest(name, names.values())}"
                )
        weights = [float(wanted.get(name, 1.0)) for name in names.values()]
    else:
        weights = [float(weight) for weight in wanted]
    if len(weights) != len(names) or min(weights) < 0 or not any(weights):
        raise ConfigError(
            f"class_weights: expected {len(names)} numbers from 0 on, one a class and not all 0, "
            f"found {wanted!r:.80}"
        )
    return weights
