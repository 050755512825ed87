# SPDX-License-Identifier: Apache-2.0
"""Distillation in a training run: the teacher, how much it counts, and the further loss terms.

What a network learns from another is in `yolo.nn.distill`. Here the student is wrapped together
with the distiller's own parameters into one module, so that they share the optimizer, the average
of gradients over ranks, and the state of a run; the teacher stands outside of it. The criterion is
wrapped likewise, so that the loop doesn't know of any of this.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from yolo.engine.checkpoint import digest, load_checkpoint
from yolo.engine.network import load_model, memory_format
from yolo.errors import CheckpointError, ConfigError, ModelError, nearest
from yolo.nn import distill_outputs as distill_outputs  # registers itself
from yolo.nn.distill import DISTILLERS, Distiller, Exits, Terms, View
from yolo.nn.losses import LossReport

if TYPE_CHECKING:
    from yolo.engine.parts import TrainerParts
    from yolo.nn.model import BaseModel

PROBE = 64
"""Least side of the black image on which shapes are measured, pixels."""

_NOISE = 3
"""Tells this use of the seed from others."""


@dataclass(frozen=True)
class Strength:
    """What all terms of a distiller are multiplied by, as the run goes on.

    Attributes:
        gain: at its height; None takes the distiller's own.
        ramp: share of the run over which it rises from 0.
        until: share of the run after which the teacher isn't asked any more.
        decay: how it falls from then on to `until`: "constant" (not at all), "linear", "cosine".
    """

    gain: float | None = None
    ramp: float = 0.0
    until: float = 1.0
    decay: str = "constant"

    def __post_init__(self) -> None:
        falls = {"constant", "linear", "cosine"}
        if self.decay not in falls:
            raise ConfigError(
                f"distill: expected decay as one of {', '.join(sorted(falls))}, found "
                f"{self.decay!r}. {nearest(str(self.decay), falls)}"
            )
        if not (self.gain is None or self.gain >= 0):
            raise ConfigError(f"distill: expected gain >= 0, found {self.gain!r}")
        if not 0 <= self.ramp <= self.until <= 1:
            raise ConfigError(
                f"distill: expected 0 <= ramp <= until <= 1, found ramp {self.ramp!r} and until "
                f"{self.until!r}; both are shares of the run"
            )

    def at(self, done: float) -> float:
        """Return the share of `gain` that holds when a share of the run is done."""
        if done >= self.until:
            return 0.0
        up = min(done / self.ramp, 1.0) if self.ramp else 1.0
        left = 1 - done / self.until
        falls = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(left * math.pi)) / 2}
        return up * falls[self.decay]


class Lesson(NamedTuple):
    """What a `Learner` gives: what the student made, and what it learns beside the labels."""

    raw: Any
    terms: Terms
    features: Sequence[Any] = ()

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What loss terms are made of: most of the head's outputs, some of what lies before."""
        return self.raw, self.features


class Learner(nn.Module):
    """A student with its distiller, trained as one module.

    Args:
        student: the network.
        distiller: built for it.
        strength: of the distiller's terms.
        trainer: asked for the progress and, where nobody else teaches, the average.
        teacher: a frozen network; None: the average teaches.

    Attributes:
        fingerprint: of the frozen teacher's weights; "" without.
    """

    def __init__(
        self,
        student: BaseModel,
        distiller: Distiller,
        strength: Strength,
        trainer: TrainerParts,
        teacher: BaseModel | None,
    ) -> None:
        super().__init__()
        self.student = student
        self.distiller = distiller
        self.strength = strength
        # No submodule: neither moved, nor trained, nor averaged, nor saved with this one.
        self.teacher = lambda: trainer.ema.ema if teacher is None else teacher
        self.done = lambda: _share_done(trainer)
        self.key = lambda: (trainer.args.seed, trainer.ranks.rank, trainer.iteration, _NOISE)
        self.fingerprint = "" if teacher is None else digest(teacher.state_dict())

    def forward(self, images: Tensor, side: Any = None) -> Lesson:
        """Return the student's raw output with the distiller's terms, at today's strength."""
        strength = self.strength.at(self.done())
        if strength == 0:  # ranks wait for a gradient of every parameter
            idle = sum((p.sum() * 0 for p in self.distiller.parameters()), images.new_zeros(()))
            nothing = idle.float().expand(len(images))
            return Lesson(self.student(images, side), dict.fromkeys(self.distiller.names, nothing))
        own = _view(self.student, images, side, self.distiller.rows)
        gain = self.distiller.gain if self.strength.gain is None else self.strength.gain
        with torch.no_grad():
            other = _view(self.teacher(), images, side)
        seed = int(np.random.SeedSequence(self.key()).generate_state(1)[0])
        noise = torch.Generator(images.device).manual_seed(seed)
        terms: Terms = self.distiller(own, other, noise)
        told = {name: _times(term, gain * strength) for name, term in terms.items()}
        return Lesson(own.raw, told, [*own.maps, *own.rows.values()])


def _share_done(trainer: TrainerParts) -> float:
    share = trainer.batch_i / len(trainer.train_loader) if trainer.batch_i else 0.0
    return (trainer.epoch + share) / trainer.epochs


def _times(term: Tensor | Exits, gain: float) -> Tensor | Exits:
    return Exits(term.outputs, term.gain * gain) if isinstance(term, Exits) else term * gain


def _view(network: Any, images: Tensor, side: Any = None, rows: Collection[int] = ()) -> View:
    """Run a network and keep what enters its head, and the rows asked for."""
    sources = network.rows[-1].sources
    wanted = {*sources, *rows}
    if network.training:  # as a call, which hooks see
        raw, kept = network(images, side, wanted)
    else:
        raw, kept = network.raw(images, side, wanted)
    return View([kept[i] for i in sources], raw, {i: kept[i] for i in rows})


class DistilledCriterion(nn.Module):
    """A task's criterion, with the terms of a `Lesson` added where it gets one.

    Args:
        criterion: the task's.
        names: the distiller's terms.
        sum_over_ranks: as the criterion has it.
    """

    def __init__(self, criterion: Any, names: tuple[str, ...], sum_over_ranks: Any) -> None:
        super().__init__()
        self.criterion = criterion
        self.own_names = names
        self.names: tuple[str, ...] = (*criterion.names, *names)
        self.sum_over_ranks = sum_over_ranks

    def forward(self, raw: Any, targets: Any) -> LossReport:
        """Return the criterion's report, with the distiller's terms for a `Lesson`."""
        if not isinstance(raw, Lesson):
            report: LossReport = self.criterion(raw, targets)
            return report
        report = self.criterion(raw.raw, targets)
        total, items = report.total, {}
        images = self.sum_over_ranks(torch.full_like(total, len(targets.classes)))
        for name in self.own_names:
            term = raw.terms[name]
            if isinstance(term, Exits):
                each = [self.criterion(output, targets) for output in term.outputs]
                total = total + term.gain * sum(one.total for one in each)
                items[name] = term.gain * sum(one.total / one.images for one in each)
            else:
                items[name] = term.sum() / images
                total = total + items[name] * report.images
        parts = {**report.parts, **{name: item.detach() for name, item in items.items()}}
        return LossReport(total, parts, report.images, {**report.live, **items})


def build_learner(trainer: TrainerParts) -> nn.Module:
    """Return the network itself, or, with the option `distill`, a `Learner` of it.

    Raises:
        ConfigError, UnknownNameError, CheckpointError: if the options, the teacher and the network
            don't go together.
    """
    args, student = trainer.args, trainer.model
    if args.distill is None:
        if args.teacher is not None:
            raise ConfigError(
                f"teacher={args.teacher} needs distill=: one of {', '.join(sorted(DISTILLERS))}"
            )
        return student
    part, options = DISTILLERS.choose(args.distill)
    known = [f.name for f in fields(Strength)]
    own = [*inspect.signature(part).parameters][2:]
    for name in options:
        if name not in (*known, *own):
            raise ConfigError(
                f"distill={args.distill!r}: expected {', '.join((*own, *known))}, found {name!r}. "
                f"{nearest(name, (*own, *known))}"
            )
    strength = Strength(**{k: v for k, v in options.items() if k in known})
    if args.teacher is None and part.needs_teacher:
        raise ConfigError(
            f"distill={args.distill!r} needs teacher=, a checkpoint of a trained network; "
            "distill='self' goes without"
        )
    teacher = None if args.teacher is None else _load_teacher(trainer)
    with torch.no_grad():
        one, other = _probe(student, range(len(student.rows) - 1)), _probe(teacher or student)
    _check_maps(trainer, one, other)
    distiller = part(one, other, **{k: v for k, v in options.items() if k in own})
    distiller = distiller.to(trainer.device).to(memory_format=memory_format(args))
    if args.compile:  # alone: the rest asks how far the run is, and draws random numbers
        student.compile(mode=None if args.compile is True else args.compile)
    learner = Learner(student, distiller, strength, trainer, teacher)
    saved = (trainer.resumed_from and trainer.resumed_from.state) or {}
    if saved.get("teacher", learner.fingerprint) != learner.fingerprint:
        raise CheckpointError(
            f"resume: teacher={args.teacher} holds other weights than when the run began; "
            "give the teacher it had"
        )
    return learner


def build_criterion(trainer: TrainerParts, criterion: nn.Module) -> nn.Module:
    """Return the criterion itself, or, with distillation, one that knows the further terms."""
    learner = trainer.learner
    if not isinstance(learner, Learner):
        return criterion
    return DistilledCriterion(criterion, learner.distiller.names, trainer.ranks.sum)


def _load_teacher(trainer: TrainerParts) -> BaseModel:
    """Load the frozen teacher, and hold it against the network."""
    args, student = trainer.args, trainer.model
    where = f"teacher={args.teacher}"
    saved = load_checkpoint(args.teacher)
    if saved.task != trainer.spec.name:
        raise ConfigError(
            f"{where}: expected a network for {trainer.spec.name!r}, found one for {saved.task!r}"
        )
    teacher: Any = load_model(saved, trainer.spec, where)
    if "words" in teacher.yaml:
        try:
            teacher.set_classes(student.names)
        except ModelError as error:
            raise ConfigError(f"{where}: {error}") from error
    for what in ("nc", "num_channels"):
        wanted, found = getattr(student, what), getattr(teacher, what)
        if wanted != found:
            kind = "classes" if what == "nc" else "channels of the image"
            raise ConfigError(
                f"{where}: expected {wanted} {kind} as the data have, found {found}; "
                "train the teacher on these data first"
            )
    ours, theirs = list(student.names.values()), list(teacher.names.values())
    if ours != theirs and sorted(ours) == sorted(theirs):
        raise ConfigError(
            f"{where}: it has the classes in another order ({', '.join(theirs):.80}); give the "
            "data's names in that order"
        )
    network: BaseModel = teacher.requires_grad_(False).to(trainer.device)
    return network.to(memory_format=memory_format(args))


def _probe(network: BaseModel, rows: Collection[int] = ()) -> View:
    """Show a network one black image, and leave its mode and statistics as they are."""
    modes = {module: module.training for module in network.modules()}
    like = next(network.parameters())
    side = max(PROBE, *network.stride)
    image = torch.zeros(1, network.num_channels, side, side, device=like.device)
    network.eval()
    try:
        return _view(network, image, rows=rows)
    finally:
        for module, training in modes.items():
            module.training = training


def _check_maps(trainer: TrainerParts, student: View, teacher: View) -> None:
    """Compare the sizes of the maps that enter the heads."""
    ours, theirs = ([tuple(m.shape[2:]) for m in view.maps] for view in (student, teacher))
    if ours != theirs:
        sizes = [", ".join(f"{h}x{w}" for h, w in maps) for maps in (ours, theirs)]
        raise ConfigError(
            f"teacher={trainer.args.teacher}: expected maps of the network's strides at its head "
            f"({sizes[0]} cells), found {sizes[1]}; take a teacher with the same levels"
        )
