# SPDX-License-Identifier: Apache-2.0
"""What a network learns from another one, chosen by name. A user's own is one decorator away.

    @DISTILLERS.register("mine")
    class Mine(Distiller):
        names = ("mine",)

        def forward(self, student, teacher, noise):
            return {"mine": ...}  # (B,): one number an image

A distiller is made of two views of one image, which tell it the shapes; options after these two can
be set as in `distill={"name": "cwd", "tau": 2}`. Its parameters are trained beside the student's
and stay out of the student's files.

Shape letters: B batch, C channels, H W cells of a map, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo.errors import ConfigError
from yolo.registry import Registry


@dataclass(frozen=True, slots=True)
class View:
    """What a network makes of a batch of images.

    Attributes:
        maps: (B, C, H, W) of each level that enters the head, fine to coarse.
        raw: the head's raw output by name.
        rows: outputs of further rows of the network, by their number.
    """

    maps: Sequence[Tensor]
    raw: Mapping[str, Any]
    rows: Mapping[int, Any] = field(default_factory=dict)


class Exits(NamedTuple):
    """Raw outputs of further heads on the student, which learn from the labels as its own does.

    Attributes:
        outputs: each as the head gives it.
        gain: factor of their loss.
    """

    outputs: Sequence[Mapping[str, Tensor]]
    gain: float


Terms = Mapping[str, Tensor | Exits]


class Distiller(nn.Module):
    """Base of what compares a student with its teacher.

    Args:
        student: view of one image, which tells all shapes.
        teacher: view of the same image.

    Attributes:
        names: the logged terms.
        gain: factor of all terms when the options have none.
        needs_teacher: there is nothing to learn from the student's own average.
        rows: further rows of the student whose outputs it wants to see.
    """

    names: tuple[str, ...] = ()
    gain: float = 1.0
    needs_teacher = True
    rows: Sequence[int] = ()

    def __init__(self, student: View, teacher: View) -> None:
        super().__init__()

    def forward(self, student: View, teacher: View, noise: torch.Generator) -> Terms:
        """Compare; the gradient reaches the student alone.

        Args:
            student: of the network in training.
            teacher: of the same images, without gradient.
            noise: source of all that is random here, on the device of the images.

        Returns:
            For each of `names` the loss of each image (B,), float32; or `Exits`.
        """
        raise NotImplementedError(f"{type(self).__name__} must say what it compares")


DISTILLERS: Registry[type[Distiller]] = Registry("distill")


def positive(name: str, value: float) -> float:
    """Return an option's value.

    Raises:
        ConfigError: if it isn't above 0.
    """
    if not value > 0:
        raise ConfigError(f"distill: expected {name} above 0, found {value!r}")
    return value


class FeatureDistiller(Distiller):
    """Base of what compares the maps that enter the heads, level by level.

    A 1x1 convolution without activation takes each of the student's maps to the teacher's width
    where widths differ.

    Args:
        student: view of one image.
        teacher: view of the same image.
    """

    def __init__(self, student: View, teacher: View) -> None:
        super().__init__(student, teacher)
        widths = [(s.shape[1], t.shape[1]) for s, t in zip(student.maps, teacher.maps, strict=True)]
        self.adapters = nn.ModuleList(
            nn.Conv2d(own, wanted, 1) if own != wanted else nn.Identity() for own, wanted in widths
        )

    def forward(self, student: View, teacher: View, noise: torch.Generator) -> Terms:
        """Return the mean over the levels of `compare`, under the only name."""
        levels = [
            self.compare(i, adapter(own), wanted, noise)
            for i, (adapter, own, wanted) in enumerate(
                zip(self.adapters, student.maps, teacher.maps, strict=True)
            )
        ]
        return {self.names[0]: torch.stack(levels).mean(0)}

    def compare(self, level: int, own: Tensor, wanted: Tensor, noise: torch.Generator) -> Tensor:
        """Return the loss (B,) of two maps (B, C, H, W)."""
        raise NotImplementedError(f"{type(self).__name__} must say how maps are compared")


@DISTILLERS.register("cwd")
class ChannelWise(FeatureDistiller):
    """Let each channel be active where the teacher's is.

    Args:
        student: view of one image.
        teacher: view of the same image.
        tau: temperature of the softmax over a channel's cells.

    Source: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021,
    arXiv:2011.13256, equations 3 and 4.
    """

    names = ("cwd",)
    gain = 5.0

    def __init__(self, student: View, teacher: View, *, tau: float = 1.0) -> None:
        super().__init__(student, teacher)
        self.tau = positive("tau", tau)

    def compare(self, level: int, own: Tensor, wanted: Tensor, noise: torch.Generator) -> Tensor:
        """Return the mean over the channels of the divergence of their softmax over the cells."""
        return divergence(own.flatten(2), wanted.flatten(2), self.tau).mean(1)


@DISTILLERS.register("mgd")
class MaskedGenerative(FeatureDistiller):
    """Make the teacher's whole map of a part of the student's.

    Cells of the student's map are dropped at random, and two convolutions that belong to the
    distiller generate the teacher's map from the rest. The error is the mean over the map, where
    the paper has the sum times a factor near 1e-5: so the gain depends neither on the input's size
    nor on widths.

    Args:
        student: view of one image.
        teacher: view of the same image.
        mask: share of the cells that are dropped, 0 <= share < 1.

    Source: Yang et al., Masked Generative Distillation, ECCV 2022, arXiv:2205.01529, section 3.
    """

    names = ("mgd",)
    gain = 10.0

    def __init__(self, student: View, teacher: View, *, mask: float = 0.65) -> None:
        super().__init__(student, teacher)
        if not 0 <= mask < 1:
            raise ConfigError(f"distill: expected mask from 0 on and below 1, found {mask!r}")
        self.mask = mask
        self.generators = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for width in (wanted.shape[1] for wanted in teacher.maps)
        )

    def compare(self, level: int, own: Tensor, wanted: Tensor, noise: torch.Generator) -> Tensor:
        """Return the mean squared error of the generated map."""
        batch, _, height, width = own.shape
        drawn = torch.rand(batch, 1, height, width, generator=noise, device=own.device)
        made = self.generators[level](own * (drawn >= self.mask))
        return (made.float() - wanted.float()).square().mean((1, 2, 3))


def divergence(own: Tensor, wanted: Tensor, tau: float) -> Tensor:
    """Kullback-Leibler divergence of softened distributions, times the squared temperature.

    The factor keeps the gradient's size where it is at a temperature of 1.

    Args:
        own: (..., K) the student's logits.
        wanted: (..., K) the teacher's.
        tau: temperature, > 0.

    Returns:
        (...) float32, >= 0; 0 where both are alike.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531,
    section 2.
    """
    log_own = (own.float() / tau).log_softmax(-1)
    log_wanted = (wanted.float() / tau).log_softmax(-1)
    return F.kl_div(log_own, log_wanted, reduction="none", log_target=True).sum(-1) * tau**2
