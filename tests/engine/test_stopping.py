# SPDX-License-Identifier: Apache-2.0
"""Best epoch and patience on scripted curves."""

from __future__ import annotations

import math

import pytest

from yolo.engine.stopping import BestEpoch
from yolo.errors import ConfigError

KNOWN = ["metrics/recall(B)", "metrics/mAP50(B)", "fitness", "val/box_loss"]


def follow(best, values):
    improved = [best.update(i, {best.monitor: v}) for i, v in enumerate(values)]
    stopped = next((i for i in range(len(values)) if best.epoch >= 0 and best.exhausted(i)), None)
    return improved, stopped


def test_rising_metric_keeps_the_first_of_equals():
    best = BestEpoch.for_metric("fitness", None, 3, KNOWN)
    improved, _ = follow(best, [0.1, 0.3, 0.3, math.nan, 0.2])
    assert improved == [True, True, False, False, False]
    assert (best.value, best.epoch) == (0.3, 1)
    assert not best.exhausted(3)
    assert best.exhausted(4)


def test_losses_fall_and_mode_overrules():
    assert not BestEpoch.for_metric("val/box_loss", None, 0, KNOWN).larger
    assert BestEpoch.for_metric("val/box_loss", "max", 0, KNOWN).larger


@pytest.mark.parametrize("short", ["recall", "val/recall", "metrics/recall(B)"])
def test_short_names_are_understood(short):
    assert BestEpoch.for_metric(short, None, 0, KNOWN).monitor == "metrics/recall(B)"


def test_patience_zero_never_stops():
    best = BestEpoch.for_metric("fitness", None, 0, KNOWN)
    best.update(0, {"fitness": 1.0})
    assert not best.exhausted(10_000)


def test_unknown_metric_is_refused_with_the_list():
    with pytest.raises(ConfigError, match=r"monitor='fitnes'.*Similar: 'fitness'"):
        BestEpoch.for_metric("fitnes", None, 0, KNOWN)
