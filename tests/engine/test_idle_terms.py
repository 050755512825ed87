# SPDX-License-Identifier: Apache-2.0
"""A term without gradient is found, whatever hides it; one with nothing to learn is none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nano
from yolo.engine.idle_terms import IdleTerms
from yolo.engine.ranks import Ranks
from yolo.errors import ConfigError
from yolo.nn.box_losses import BOX_LOSSES
from yolo.nn.losses import LossReport


class Criterion(nn.Module):
    """Terms by name, each a function of the head's output."""

    def __init__(self, **terms):
        super().__init__()
        self.made = terms

    def forward(self, raw, targets):
        live = {name: make(raw["x"]) for name, make in self.made.items()}
        total = raw["x"].sum() + sum(live.values())
        return LossReport(total, {name: v.detach() for name, v in live.items()}, live=live)


def epoch(criterion, batches=5, watch=True):
    watcher = IdleTerms(criterion, watch)
    for _ in range(batches):
        criterion({"x": torch.ones(3, requires_grad=True), "points": torch.ones(3)}, None)
    watcher.end_epoch(Ranks())


@pytest.mark.parametrize(
    "hidden",
    [
        lambda x: x.detach().sum(),
        lambda x: x.round().sum(),
        lambda x: x.clamp(max=0.5).sum(),
        lambda x: torch.tensor(2.0),
    ],
)
def test_a_term_without_gradient_is_found(hidden):
    criterion = Criterion(good=torch.sum, bad=hidden)
    with pytest.raises(ConfigError, match="found bad above 0 but without any gradient"):
        epoch(criterion)
    epoch(criterion, watch=False)


def test_terms_with_nothing_to_learn_are_none():
    epoch(Criterion(nothing=lambda x: x.new_zeros(()), unweighted=lambda x: x.sum() * 0))


def test_one_batch_with_a_gradient_is_enough():
    calls = []

    def late(x):
        calls.append(x)
        return x.sum() if len(calls) == 4 else x.detach().sum()

    epoch(Criterion(late=late))
    with pytest.raises(ConfigError):
        epoch(Criterion(late=late))


def test_gradients_that_half_precision_would_lose_count():
    epoch(Criterion(small=lambda x: x.half().sum() * 1e-7))


def test_looking_costs_no_gradient_and_validation_is_not_judged():
    criterion = Criterion(bad=lambda x: x.detach().sum())
    watcher = IdleTerms(criterion)
    with torch.no_grad():
        criterion({"x": torch.ones(3)}, None)
    watcher.end_epoch(Ranks())
    x = torch.ones(3, requires_grad=True)
    criterion({"x": x}, None)
    assert x.grad is None


def test_a_training_ends_with_the_name_of_the_term(train, monkeypatch):
    monkeypatch.setattr(BOX_LOSSES, "_parts", dict(BOX_LOSSES._parts))

    @BOX_LOSSES.register("rounded")
    def rounded(pred, target):
        return (pred - target).abs().mean(-1).round() + 1

    with pytest.raises(ConfigError, match="found box above 0"):
        train(box_loss="rounded")


def test_all_terms_of_a_task_are_looked_at(train):
    seen = {}

    def note(trainer):
        seen.update(dict.fromkeys(trainer.idle_terms.teaching))

    model = train(callbacks={"on_train_epoch_end": note})
    assert set(seen) == set(model.trainer.loss_names)
    assert nano.weights_of(model)
