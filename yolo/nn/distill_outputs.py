# SPDX-License-Identifier: Apache-2.0
"""Learning from a teacher's outputs: classes, distances, masks, keypoints, angles, shallow exits.

Shape letters: B batch, A anchor points, C classes, R bins a side, H W cells of a map, N prototypes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo.errors import ConfigError
from yolo.nn.conv import Conv
from yolo.nn.distill import DISTILLERS, Distiller, Exits, Terms, View, divergence, positive


def unlike_masks(own: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """Squared difference of mask logits over the map, as a share of the teacher's mean square.

    The share counts from a mean square of 1 on. Both networks may have prototypes of their own, of
    any number: since masks are linear in them, the sums over the map are products of (N, N).

    Args:
        own: `mask_coefficient` (B, N, A) and `proto` (B, N, H, W).
        wanted: the teacher's.

    Returns:
        (B, A) float32, >= 0.
    """
    with torch.autocast(own["proto"].device.type, enabled=False):
        c, d = (raw["mask_coefficient"].float() for raw in (own, wanted))
        p, q = (raw["proto"].float().flatten(2) for raw in (own, wanted))
        p, q = p / p.shape[2] ** 0.5, q / q.shape[2] ** 0.5
        mine = (c * (p @ p.mT @ c)).sum(1)
        both = (c * (p @ q.mT @ d)).sum(1)
        theirs = (d * (q @ q.mT @ d)).sum(1)
    return (mine - 2 * both + theirs).clamp(min=0) / theirs.clamp(min=1)


def unlike_keypoints(own: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """Mean smooth L1 distance (B, A) of raw `kpts` (B, K*D, A): half cells, visibility logits."""
    pair = own["kpts"].float(), wanted["kpts"].float()
    return F.smooth_l1_loss(*pair, reduction="none").mean(1)


def unlike_angles(own: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """Twice the squared sine (B, A) of the difference of `angle` (B, 1, A), radians; 0..2."""
    return 2 * (own["angle"].float() - wanted["angle"].float())[:, 0].sin().square()


FURTHER: Mapping[str, tuple[str, Callable[..., Tensor]]] = {
    "mask_coefficient": ("mask", unlike_masks),
    "kpts": ("kpt", unlike_keypoints),
    "angle": ("angle", unlike_angles),
}
"""By the output that a head has at each anchor point: the term, and how two of them differ."""


@DISTILLERS.register("logit")
class Outputs(Distiller):
    """Let the student say what the teacher says.

    A head with one answer an image (`logits`) learns the teacher's softened softmax. A head with
    scores at anchor points has an independent sigmoid a class, so each is a distribution over yes
    and no, and is learned as such; its `boxes`, where they are distributions over bins, are learned
    side by side, weighted by how sure the teacher is of anything there; so are masks, keypoints and
    angles, where the head gives them. All are divided by the sum of that certainty over the image,
    as the terms of the labels are by the sum of their quality.

    Args:
        student: view of one image.
        teacher: view of the same image.
        tau: temperature of the classes; None takes 4 for a softmax, 1 for sigmoids.
        box_tau: temperature of the bins.
        cls: gain of the classes; None takes 1 for a softmax, 0.5 for sigmoids.
        ld: gain of the bins.
        further: gain of masks, keypoints and angles.

    Raises:
        ConfigError: if the head has neither kind of output, or other bins or keypoints than the
            teacher's.

    Source: Hinton et al., arXiv:1503.02531, section 2; Yang et al., Bridging Cross-task Protocol
    Inconsistency for Distillation in Dense Object Detection, ICCV 2023, arXiv:2308.14286 (a binary
    distribution a class); Zheng et al., Localization Distillation, CVPR 2022, arXiv:2102.12252,
    section 3.2.
    """

    names: tuple[str, ...] = ("kd",)

    def __init__(
        self,
        student: View,
        teacher: View,
        *,
        tau: float | None = None,
        box_tau: float = 10.0,
        cls: float | None = None,
        ld: float = 1.5,
        further: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        self.whole = "logits" in student.raw
        if not self.whole and "scores" not in student.raw:
            raise ConfigError(
                "distill: expected a head that gives 'logits' or 'scores', found "
                f"{', '.join(student.raw)}; choose a distiller of features, as cwd"
            )
        self.tau = positive("tau", tau if tau is not None else 4.0 if self.whole else 1.0)
        self.box_tau = positive("box_tau", box_tau)
        self.gains = {"kd": cls if cls is not None else 1.0 if self.whole else 0.5, "ld": ld}
        sides = [
            len(view.raw["boxes"][0]) if "boxes" in view.raw else 0 for view in (student, teacher)
        ]
        if sides[0] != sides[1]:
            raise ConfigError(
                f"distill: the network has reg_max {sides[0] // 4}, the teacher {sides[1] // 4}; "
                "take a teacher with the same, or a distiller of features, as cwd"
            )
        self.bins = sides[0] // 4
        if self.bins > 1:
            self.names = (*self.names, "ld")
        self.further = [FURTHER[key] for key in FURTHER if key in student.raw]
        for name, _ in self.further:
            self.names = (*self.names, name)
            self.gains[name] = further
        points = [view.raw["kpts"].shape[1] for view in (student, teacher) if "kpts" in view.raw]
        if len({*points}) > 1:
            raise ConfigError(
                f"distill: the network gives {points[0]} numbers of keypoints, the teacher "
                f"{points[1]}; take a teacher with the same, or a distiller of features, as cwd"
            )

    def forward(self, student: View, teacher: View, noise: torch.Generator) -> Terms:
        """Return `kd`, with bins `ld`, and what else the head gives, times their gains."""
        if self.whole:
            found = divergence(student.raw["logits"], teacher.raw["logits"], self.tau)
            return {"kd": found * self.gains["kd"]}
        logits = teacher.raw["scores"].float()
        sure = logits.sigmoid().amax(1)
        total = sure.sum(1).clamp(min=1)
        wrong = binary_divergence(student.raw["scores"].float(), logits, self.tau)
        terms = {"kd": wrong.sum((1, 2)) / total}
        if self.bins > 1:
            own, wanted = (
                view.raw["boxes"].mT.unflatten(2, (4, -1)) for view in (student, teacher)
            )
            sides = divergence(own, wanted, self.box_tau).mean(2)
            terms["ld"] = (sides * sure).sum(1) / total
        for name, unlike in self.further:
            terms[name] = (unlike(student.raw, teacher.raw) * sure).sum(1) / total
        return {name: value * self.gains[name] for name, value in terms.items()}


def binary_divergence(own: Tensor, wanted: Tensor, tau: float) -> Tensor:
    """Kullback-Leibler divergence of yes and no, of logits of any shape; as `divergence` else."""
    own, wanted = own / tau, wanted / tau
    expected = wanted.sigmoid() * (wanted - own)
    return (expected + F.softplus(own) - F.softplus(wanted)) * tau**2


@DISTILLERS.register("self")
class Self(Outputs):
    """Learn from oneself: from the averaged weights, or from an earlier state.

    The terms are those of `logit`. A network with one answer an image also learns at shallow exits:
    rows of the backbone get a head of their own while training lasts, which learns the labels, the
    answer of the deepest head, and its map.

    Args:
        student: view of one image.
        teacher: view of the same image.
        exits: how many shallow exits, 0 for none; None takes 3 where the head allows it.
        alpha: share of an exit's loss that comes from the deepest answer, 0..1; the rest is the
            labels'.
        exit_tau: temperature of the deepest answer.
        hint: gain of the squared difference from the deepest map, a mean over the map.
        **outputs: those of `logit`.

    Raises:
        ConfigError: if the head allows no exits.

    Source: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017,
    arXiv:1703.01780, section 2 (the average teaches); Zhang et al., Be Your Own Teacher, ICCV 2019,
    arXiv:1905.08094, section 3 (exits).
    """

    needs_teacher = False

    def __init__(
        self,
        student: View,
        teacher: View,
        *,
        exits: int | None = None,
        alpha: float = 0.3,
        exit_tau: float = 3.0,
        hint: float = 0.03,
        tau: float | None = None,
        box_tau: float = 10.0,
        cls: float | None = None,
        ld: float = 1.5,
        further: float = 1.0,
    ) -> None:
        super().__init__(
            student, teacher, tau=tau, box_tau=box_tau, cls=cls, ld=ld, further=further
        )
        if exits and not self.whole:
            raise ConfigError(
                f"distill: exits={exits} needs a head with one answer an image; leave exits out"
            )
        if not 0 <= alpha <= 1:
            raise ConfigError(f"distill: expected alpha from 0 to 1, found {alpha!r}")
        self.gains |= {"exit": 1 - alpha, "exit_kd": alpha, "hint": hint}
        self.exit_tau = positive("exit_tau", exit_tau)
        self.heads = nn.ModuleList()
        count = 3 if exits is None else exits
        if self.whole and count:
            self.names = (*self.names, "exit", "exit_kd", "hint")
            deepest = student.maps[0]
            self.rows = last_rows(student.rows, deepest)[-count:]
            for row in self.rows:
                self.heads.append(Exit(student.rows[row], deepest, student.raw["logits"].shape[1]))

    def forward(self, student: View, teacher: View, noise: torch.Generator) -> Terms:
        """Return the terms of `logit`, and those of the exits."""
        terms = dict(super().forward(student, teacher, noise))
        if not self.heads:
            return terms
        told = [head(student.rows[row]) for head, row in zip(self.heads, self.rows, strict=True)]
        answer, deepest = student.raw["logits"].detach(), student.maps[0].detach().float()
        agreement = [divergence(logits, answer, self.exit_tau) for logits, _ in told]
        distance = [(own.float() - deepest).square().mean((1, 2, 3)) for _, own in told]
        terms["exit"] = Exits([{"logits": logits} for logits, _ in told], self.gains["exit"])
        terms["exit_kd"] = torch.stack(agreement).sum(0) * self.gains["exit_kd"]
        terms["hint"] = torch.stack(distance).sum(0) * self.gains["hint"]
        return terms


class Exit(nn.Module):
    """A head on an early map: strided 3x3 Convs down to the deepest map's shape, mean, classes.

    Args:
        early: the map (B, C, H, W) that it will get.
        deepest: the map whose shape it makes of it.
        nc: number of classes.
    """

    def __init__(self, early: Tensor, deepest: Tensor, nc: int) -> None:
        super().__init__()
        width, last = early.shape[1], deepest.shape[1]
        steps = (early.shape[-1] // deepest.shape[-1]).bit_length() - 1
        widths = [width * 2**i for i in range(steps)] + [last]
        self.body = nn.Sequential(*(Conv(one, other, 3, 2) for one, other in pairwise(widths)))
        self.linear = nn.Linear(last, nc)

    def forward(self, early: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (B, nc) and the map (B, C, H, W) that they are made of."""
        own = self.body(early)
        return self.linear(own.mean((2, 3))), own


def last_rows(rows: Mapping[int, object], deepest: Tensor) -> Sequence[int]:
    """Return for each size of map above the deepest one's the last row that has it."""
    last: dict[int, int] = {}
    for number, value in rows.items():
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[-1] > deepest.shape[-1]:
            last[value.shape[-1]] = number
    return sorted(last.values())
