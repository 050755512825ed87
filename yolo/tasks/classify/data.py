# SPDX-License-Identifier: Apache-2.0
"""Batches for classification: random crops for training, centre crops for scoring.

What is drawn for a sample depends on (seed, epoch, place in the epoch's order) alone: torchvision's
transforms draw from torch's global generator, so it is set from that key for one sample and put
back behind it. Workers, ranks and restarts change nothing.

H, W, C: height, width, channels of an image.

Sources: crops, Szegedy et al., arXiv:1409.4842, section 6; RandAugment, arXiv:1909.13719;
AutoAugment, arXiv:1805.09501; AugMix, arXiv:1912.02781; erasing, arXiv:1708.04896.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from yolo.data.batch import Batch, Extras
from yolo.data.cache import ImageStore
from yolo.data.class_folders import whole_image
from yolo.data.crop import center_crop
from yolo.data.letterbox import FILL, Placement, fill_value
from yolo.data.loader import TrainLoader, ValLoader, ValMaker
from yolo.data.order import EpochOrder
from yolo.data.pixels import finish_colour
from yolo.data.recipe import Transform
from yolo.data.sample import Instances, Sample
from yolo.data.transforms import require_kind, run_custom
from yolo.data.workers import Job, Maker

Size = tuple[int, int]

# Last words of the random keys; others belong to data/order, data/recipe and engine/inputs.
_CROP, _CUSTOM = 5, 6

POLICIES: dict[str, Callable[..., Any]] = {
    "randaugment": v2.RandAugment,
    "autoaugment": v2.AutoAugment,
    "augmix": v2.AugMix,
}


@dataclass(frozen=True, slots=True)
class CropAugment:
    """Gains of the augmentation.

    Attributes:
        scale: a crop covers 1 - scale to 1 of the image's area.
        fliplr: probability of a left-right flip.
        flipud: probability of an up-down flip.
        auto_augment: a key of `POLICIES`; None jitters the colours by the three gains that follow.
        hsv_h: hue, +/- share of the circle, at most 0.5.
        hsv_s: saturation, +/- share.
        hsv_v: brightness and contrast, +/- share.
        erasing: probability of an erased rectangle.
        custom: called in order on the finished sample; see `transforms.run_custom`. They may change
            `image_class`.
    """

    scale: float = 0.5
    fliplr: float = 0.5
    flipud: float = 0.0
    auto_augment: str | None = "randaugment"
    hsv_h: float = 0.015
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    erasing: float = 0.4
    custom: tuple[Transform, ...] = ()

    def pipeline(self, size: Size, channels: int, dtype: np.dtype[Any]) -> v2.Compose:
        """Return the transforms from a whole image to a (C, h, w) tensor of `size`.

        Eight-bit colour and grey images pass as Pillow pictures: its operations are the fastest on
        one core, and don't depend on the number of threads. Others (more channels, 16 bits) pass as
        float tensors, without policies and colours, which aren't defined for them.
        """
        area = (1.0 - self.scale or 1e-3, 1.0)
        steps: list[Any] = [
            v2.RandomResizedCrop(size, area, antialias=True),
            v2.RandomHorizontalFlip(self.fliplr),
            v2.RandomVerticalFlip(self.flipud),
        ]
        if is_picture(channels, dtype):
            steps += [*self._colours(channels), v2.PILToTensor()]
        return v2.Compose([*steps, v2.RandomErasing(self.erasing, value=fill_value(dtype))])

    def _colours(self, channels: int) -> list[Any]:
        if self.auto_augment is not None:
            bilinear = v2.InterpolationMode.BILINEAR
            policy = POLICIES[self.auto_augment]
            return [policy(interpolation=bilinear, fill=[FILL] * channels)]
        if not (self.hsv_h or self.hsv_s or self.hsv_v):
            return []
        return [v2.ColorJitter(self.hsv_v, self.hsv_v, self.hsv_s, min(self.hsv_h, 0.5))]


def is_picture(channels: int, dtype: np.dtype[Any]) -> bool:
    """Tell images that Pillow knows from others."""
    return channels in (1, 3) and dtype == np.uint8


@contextmanager
def generators_from(key: list[int]) -> Iterator[None]:
    """Set the global generators of Python, NumPy and torch (CPU) by `key`; put them back after."""
    words = np.random.SeedSequence(key).generate_state(2, np.uint64).tolist()
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(words[0])
    np.random.seed(words[1] % 2**32)
    # The CPU's alone: torch.manual_seed would set those of CUDA devices, too.
    torch.default_generator.manual_seed(words[0] >> 1)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class CropMaker(Maker):
    """Makes batches of random, augmented crops of whole images."""

    def __init__(
        self, store: ImageStore, order: EpochOrder, augment: CropAugment, extras: Extras | None
    ) -> None:
        super().__init__(store, extras)
        self.order = order
        self.augment = augment
        self._pipelines: dict[Size, v2.Compose] = {}

    def make(self, job: Job) -> Batch:
        """Make the samples at places of an epoch's order."""
        images = self._stack(job)
        samples = [
            self._sample(job, place, image) for image, place in zip(images, job.places, strict=True)
        ]
        return self._batch(images, samples, job.size, [])

    def _sample(self, job: Job, place: int, rgb: np.ndarray) -> Sample:
        index = int(self.order.places(job.epoch)[place])
        key = [self.order.seed, job.epoch, place]
        image = self.store.load(index)
        require_kind(self.store.path, index, image, rgb)
        sample = Sample(
            rgb,
            image_class=class_of(self.store, index),
            path=self.store.path(index),
            index=index,
            original_shape=self.store.original_shape(index),
        )
        with generators_from([*key, _CROP]):
            rgb[...] = self._augmented(image, job.size)
            if self.augment.custom:
                sample.image = finish_colour(rgb.copy(), rgb=np.empty_like(rgb))  # BGR
                sample.rng = np.random.default_rng([*key, _CUSTOM])
                sample = run_custom(sample, self.augment.custom)
                finish_colour(np.array(sample.image), rgb=rgb)
        sample.instances = instances_of(sample.image_class, job.size)
        return sample

    def _augmented(self, image: np.ndarray, size: Size) -> np.ndarray:
        """Return the augmented crop of a BGR image, (h, w, C) RGB."""
        channels = image.shape[2]
        if size not in self._pipelines:
            self._pipelines[size] = self.augment.pipeline(size, channels, image.dtype)
        given: Any
        if is_picture(channels, image.dtype):
            given = Image.fromarray(image[..., 0] if channels == 1 else image[..., ::-1])
        else:
            given = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)
        done = self._pipelines[size](given).permute(1, 2, 0).numpy()
        return done if done.dtype == image.dtype else np.rint(done)


def class_of(store: ImageStore, index: int) -> int | None:
    """Return the class of an image; None where its file turned out to be corrupt."""
    instances = store.instances(index)
    return int(instances.classes[0]) if len(instances) else None


def instances_of(image_class: int | None, size: Size) -> Instances:
    """Return the class of a finished sample in the form that targets are built from."""
    return Instances.empty() if image_class is None else whole_image(image_class, size)


class CropLoader(TrainLoader):
    """Augmented crops; takes a `CropAugment`, and has no use for `rect`."""

    def _maker(self, augment: Any, extras: Extras | None) -> CropMaker:
        return CropMaker(self.store, self.order, augment, extras)


class CenterMaker(ValMaker):
    """Makes batches of centre crops; corrupt images are left out."""

    def _put(self, image: np.ndarray, canvas: np.ndarray) -> Placement:
        crop, placement = center_crop(image, (canvas.shape[0], canvas.shape[1]))
        finish_colour(crop, rgb=canvas)
        return placement

    def _sample(self, index: int, canvas: np.ndarray, placement: Placement) -> Sample:
        image_class = class_of(self.store, index)
        instances = instances_of(image_class, (canvas.shape[0], canvas.shape[1]))
        path, original = self.store.path(index), placement.original
        return Sample(canvas, instances, image_class, path, index, original, placement.matrix)


class CenterLoader(ValLoader):
    """Centre crops, in a fixed mixed order: every batch, and its picture, shows many classes."""

    maker = CenterMaker

    def _groups(self, size: Size, stride: int | None) -> dict[Size, list[int]]:
        return {size: np.random.default_rng(0).permutation(len(self.index)).tolist()}
