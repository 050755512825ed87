# SPDX-License-Identifier: Apache-2.0
"""Counting bad steps, and reading numbers late."""

from __future__ import annotations

import pytest
import torch

from yolo.engine.late import DivergedError, FiniteGuard, LateReader

CPU = torch.device("cpu")


def watch(flags, limit=3):
    guard = FiniteGuard(CPU, limit)
    for flag in flags:
        guard.observe(torch.tensor(bool(flag)))
        guard.check()
    return guard


def test_bad_steps_are_counted():
    guard = watch([0, 1, 0, 1, 1, 0, 0])
    assert guard.skipped == 3
    assert guard.counts.tolist() == [3, 0, 2]


def test_three_in_a_row_are_too_many():
    with pytest.raises(DivergedError, match="not finite in 3 steps in a row"):
        watch([1, 1, 0, 1, 1, 1])
    assert watch([1, 1, 0, 1, 1, 0] * 5).skipped == 20
    assert watch([1, 1, 1], limit=4).skipped == 3


def test_a_row_that_ended_before_it_was_read_still_counts():
    guard = FiniteGuard(CPU)
    for flag in (1, 1, 1, 0, 0):  # the host looks only now
        guard.observe(torch.tensor(bool(flag)))
    with pytest.raises(DivergedError):
        guard.check()


def test_nothing_is_known_before_the_first_value():
    reader = LateReader()
    assert reader.latest() is None
    assert FiniteGuard(CPU).skipped == 0
    reader.push(torch.tensor([1.0, 2.0], requires_grad=True))
    assert reader.latest() == [1.0, 2.0]


@pytest.mark.gpu
def test_values_of_a_gpu_arrive_without_waiting():
    reader, values = LateReader(), torch.arange(3.0, device="cuda")
    reader.push(values)
    torch.cuda.synchronize()
    assert reader.latest() == [0.0, 1.0, 2.0]
