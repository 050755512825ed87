# SPDX-License-Identifier: Apache-2.0
"""The moving average against stored numbers and its own definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from yolo.engine.ema import ModelEMA, power_decay, saturating_decay


@pytest.mark.golden
def test_saturating_decay_equals_stored(golden):
    data = golden("train.npz")
    for key, decay in (
        ("ema/decay", saturating_decay()),
        ("ema/decay_0.999_tau100", saturating_decay(0.999, 100)),
    ):
        found = [decay(int(u)) for u in data["ema/updates"]]
        np.testing.assert_allclose(found, data[key], rtol=1e-6)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_power_decay_has_the_width_it_promises(width):
    decay, steps = power_decay(width, limit=1.0), 4000
    weights = np.ones(steps)
    for u in range(1, steps + 1):  # weight that step u has in the average at the end
        weights[u - 1] = 1.0 - decay(u)
        weights[: u - 1] *= decay(u)
    at = np.arange(1, steps + 1) / steps
    mean = (weights * at).sum() / weights.sum()
    spread = np.sqrt((weights * (at - mean) ** 2).sum() / weights.sum())
    assert spread == pytest.approx(width, rel=0.02)


def test_first_update_takes_the_weights_as_they_are():
    assert power_decay()(1) == 0.0


def test_average_covers_float_buffers_and_leaves_integers():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = ModelEMA(model, lambda _: 0.75)
    start = {k: v.clone() for k, v in average.ema.state_dict().items()}
    with torch.no_grad():
        model[0].weight += 4.0
        model[1].running_mean += 8.0
        model[1].num_batches_tracked += 5
    average.update(model)
    now = average.ema.state_dict()
    torch.testing.assert_close(now["0.weight"], start["0.weight"] + 1.0)
    torch.testing.assert_close(now["1.running_mean"], start["1.running_mean"] + 2.0)
    assert now["1.num_batches_tracked"] == 0
    assert average.updates == 1
    assert not any(p.requires_grad for p in average.ema.parameters())
