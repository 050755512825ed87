# SPDX-License-Identifier: Apache-2.0
"""Parameter groups, optimizer choice and schedule against the stored numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from yolo.engine.optim import (
    OPTIMIZERS,
    Schedule,
    apply_rates,
    build_optimizer,
    choose_optimizer,
    split_parameters,
    warmup_steps,
)
from yolo.errors import ConfigError
from yolo.tasks.detect.model import DetectionModel


def schedule_of(settings, steps):
    nominal = max(round(settings["nbs"] / settings["batch"]), 1)
    return Schedule(
        lr0=settings["lr0"],
        lrf=settings["lrf"],
        epochs=settings["epochs"],
        cosine=settings.get("cos_lr", False),
        warmup_steps=steps,
        warmup_bias_lr=settings["warmup_bias_lr"],
        momentum=settings["momentum"],
        warmup_momentum=settings["warmup_momentum"],
        accumulate=nominal,
    )


@pytest.mark.golden
@pytest.mark.parametrize(
    ("case", "build"),
    [
        ("sched_cosine_nbs8", "@v8.2"),
        ("sched_cosine_nbs8", "@v8.4"),
        ("sched_linear_nbs64", "@v8.2"),
        ("sched_linear_nbs64", "@v8.4"),
        ("sched_no_warmup", ""),
    ],
)
def test_schedule_equals_recorded_runs(golden, case, build):
    data = golden("train.npz")
    settings = json.loads(str(data[f"{case}/settings"]))
    batches = settings["images"] // settings["batch"]
    steps = warmup_steps(settings["warmup_epochs"], settings["epochs"], batches)
    if build == "@v8.2":  # the classic build never warms up for less than 100 iterations
        steps = max(round(settings["warmup_epochs"] * batches), 100)
    schedule = schedule_of(settings, steps)
    if build == "@v8.4":
        schedule = replace(
            schedule, accumulate=min(schedule.accumulate, batches * settings["epochs"])
        )
    for row in data[f"{case}/rows{build}"]:
        iteration, epoch, lr_bias, lr, lr_norm, momentum, accumulate, decay = row
        rates = schedule.at(int(iteration), int(epoch))
        assert rates.lr_bias == pytest.approx(lr_bias, rel=1e-6)
        assert rates.lr == pytest.approx(lr, rel=1e-6, abs=1e-12)
        assert lr_norm == lr
        assert rates.momentum == pytest.approx(momentum, rel=1e-6)
        assert rates.accumulate == accumulate
        nominal = max(round(settings["nbs"] / settings["batch"]), 1)
        scaled = settings["weight_decay"] * settings["batch"] * nominal / settings["nbs"]
        assert scaled == pytest.approx(decay)


@pytest.mark.golden
@pytest.mark.parametrize("cosine", [True, False])
def test_factor_equals_stored(golden, cosine):
    data = golden("train.npz")
    epochs, lrf = data["lr/epochs_lrf"]
    schedule = Schedule(1.0, float(lrf), int(epochs), cosine, 0, 0.0, 0.9, 0.8, 1)
    expected = data["lr/cosine" if cosine else "lr/linear"]
    found = [schedule.factor(epoch) for epoch in range(len(expected))]
    np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.golden
def test_groups_equal_stored(golden):
    stored = json.loads(str(golden("train.npz")["param_groups_yolov8n_nc4"]))
    with torch.device("meta"):
        groups = split_parameters(DetectionModel("yolov8n.yaml", nc=4))
    for ours, theirs in (("bias", "bias"), ("norm", "bn"), ("weight", "weight")):
        assert sorted(name for name, _ in groups[ours]) == sorted(stored[theirs]["names"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_rates_and_steps(name):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    before = model[0].weight.detach().clone()
    built = build_optimizer(model, name.lower(), lr=0.01, momentum=0.9, weight_decay=1e-3)
    assert [g["weight_decay"] for g in built.param_groups] == [0.0, 1e-3, 0.0]
    apply_rates(built, Schedule(0.01, 0.1, 2, False, 4, 0.1, 0.9, 0.8, 1).at(2, 0))
    assert built.param_groups[0]["lr"] == pytest.approx(0.055)
    assert built.param_groups[1]["lr"] == pytest.approx(0.005)
    model(torch.rand(2, 3, 4, 4)).pow(2).sum().backward()
    built.step()
    assert not torch.equal(before, model[0].weight)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_factors_make_groups_of_their_own(name):
    """Those at the plain rates come first, even those that are empty."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    conv, norm = model
    factors = {conv.weight: 0.1, conv.bias: 0.1, norm.bias: 3.0}
    built = build_optimizer(model, name, lr=0.5, momentum=0.0, weight_decay=0.01, factors=factors)
    found = [(g["name"], g["factor"], len(g["params"]), g["lr"]) for g in built.param_groups]
    assert found == [
        ("bias", 1.0, 0, 0.5), ("weight", 1.0, 0, 0.5), ("norm", 1.0, 1, 0.5),
        ("bias", 0.1, 1, 0.05), ("weight", 0.1, 1, 0.05), ("bias", 3.0, 1, 1.5),
    ]  # fmt: skip
    assert [g["weight_decay"] for g in built.param_groups] == [0, 0.01, 0, 0, 0.01, 0]
    apply_rates(built, Schedule(0.01, 0.1, 2, False, 4, 0.1, 0.9, 0.8, 1).at(2, 0))
    rates = [0.055, 0.005, 0.005, 0.0055, 0.0005, 0.165]
    assert [g["lr"] for g in built.param_groups] == pytest.approx(rates)
    model(torch.rand(2, 3, 4, 4)).sum().backward()
    built.step()


def test_unknown_optimizer_names_the_nearest():
    with pytest.raises(ConfigError, match=r"'AdamQ'.*Similar: .*'Adam'"):
        build_optimizer(torch.nn.Linear(1, 1), "AdamQ", lr=1, momentum=0, weight_decay=0)


def test_auto_takes_adamw_for_short_runs_and_sgd_for_long_ones():
    assert choose_optimizer(10_000, 3, fresh=True).name == "AdamW"
    assert choose_optimizer(10_001, 3, fresh=True).name == "SGD"
    assert choose_optimizer(100, 3, fresh=False).lr < choose_optimizer(100, 3, fresh=True).lr


@pytest.mark.golden
def test_auto_follows_the_classic_table_for_trained_weights(golden):
    for row in json.loads(str(golden("train.npz")["auto_rule@v8.2"])):
        found = choose_optimizer(row["iterations"], row["nc"], fresh=False)
        assert found.name == row["optimizer"]
        assert found.lr == pytest.approx(row["lr"])
        assert found.momentum == row["momentum"]
        assert found.warmup_bias_lr == row["warmup_bias_lr"]


def test_warmup_never_takes_the_last_epoch():
    assert warmup_steps(3, 100, 13) == 39
    assert warmup_steps(3, 2, 13) == 13
    assert warmup_steps(3, 1, 13) == 0
