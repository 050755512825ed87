# SPDX-License-Identifier: Apache-2.0
"""Learning from features: hand-computed values, and who gets a gradient."""

from __future__ import annotations

import math

import pytest
import torch

from yolo.errors import ConfigError, UnknownNameError
from yolo.nn.distill import DISTILLERS, ChannelWise, MaskedGenerative, View, divergence

QUARTERS = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
"""Divergence of (1/2, 1/2) from (3/4, 1/4)."""


def noise(seed=0):
    return torch.Generator().manual_seed(seed)


def view(*shapes, seed=0, grad=False):
    """Random maps of these shapes."""
    maps = [torch.randn(shape, generator=noise(seed + i)) for i, shape in enumerate(shapes)]
    return View([m.requires_grad_(grad) for m in maps], {})


def call(distiller, student, teacher, seed=0):
    (value,) = distiller(student, teacher, noise(seed)).values()
    return value


@pytest.mark.parametrize("tau", [1.0, 2.0, 10.0])
def test_divergence_of_two_outcomes(tau):
    own, wanted = torch.zeros(1, 2), torch.tensor([[tau * math.log(3), 0.0]])
    assert float(divergence(own, wanted, tau)) == pytest.approx(QUARTERS * tau**2, rel=1e-5)
    assert float(divergence(wanted, wanted, tau)) == 0


def test_gradient_of_the_divergence_is_the_difference_of_probabilities():
    own, wanted = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    divergence(own, wanted, 1.0).sum().backward()
    torch.testing.assert_close(own.grad, own.detach().softmax(1) - wanted.softmax(1))


def test_channel_wise_by_hand():
    """One channel with a quarter more in one of two cells, one that is alike; a level alike."""
    student = View([torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 1)], {})
    teacher = View([torch.zeros(1, 2, 1, 2), torch.ones(1, 2, 1, 1)], {})
    teacher.maps[0][0, 0, 0, 0] = math.log(3)
    found = call(ChannelWise(student, teacher), student, teacher)
    assert found.tolist() == pytest.approx([QUARTERS / 2 / 2])


def test_channel_wise_is_zero_for_equal_maps_and_blind_to_a_channel_s_offset():
    student = view((2, 3, 4, 4), (2, 5, 2, 2))
    distiller = ChannelWise(student, student)
    assert call(distiller, student, student).tolist() == [0, 0]
    offset = View([m + torch.randn(m.shape[1], 1, 1) for m in student.maps], {})
    assert call(distiller, student, offset).abs().max() < 1e-6
    assert call(distiller, student, view((2, 3, 4, 4), (2, 5, 2, 2), seed=7)).min() > 0.1


@pytest.mark.parametrize("part", [ChannelWise, MaskedGenerative])
def test_student_and_adapters_learn_and_the_teacher_does_not(part):
    student = view((2, 3, 4, 4), (2, 4, 2, 2), grad=True)
    teacher = view((2, 6, 4, 4), (2, 4, 2, 2), seed=5)
    distiller = part(student, teacher)
    kinds = [type(adapter).__name__ for adapter in distiller.adapters]
    assert kinds == ["Conv2d", "Identity"]
    call(distiller, student, teacher).sum().backward()
    assert all(m.grad.abs().sum() > 0 for m in student.maps)
    assert all(p.grad.abs().sum() > 0 for p in distiller.adapters.parameters())
    assert all(m.grad is None for m in teacher.maps)


def test_two_images_are_two_single_ones():
    student, teacher = view((2, 3, 4, 4)), view((2, 3, 4, 4), seed=5)
    distiller = ChannelWise(student, teacher)
    both = call(distiller, student, teacher)
    single = [
        call(distiller, View([student.maps[0][i, None]], {}), View([teacher.maps[0][i, None]], {}))
        for i in range(2)
    ]
    torch.testing.assert_close(both, torch.cat(single))


def transparent(distiller):
    """Let the generators give what they get."""
    for generator in distiller.generators:
        for conv in (generator[0], generator[2]):
            torch.nn.init.dirac_(conv.weight)
            torch.nn.init.zeros_(conv.bias)
    return distiller


def test_masked_generative_by_hand():
    """Through generators that change nothing, a dropped cell costs its square and no other does."""
    teacher = View([torch.full((1, 2, 50, 50), 3.0)], {})
    student = View([torch.full((1, 2, 50, 50), 3.0)], {})
    whole = transparent(MaskedGenerative(student, teacher, mask=0.0))
    assert call(whole, student, teacher).tolist() == [0]
    masked = transparent(MaskedGenerative(student, teacher))
    dropped = call(masked, student, teacher).item() / 9
    assert dropped == pytest.approx(0.65, abs=0.03)
    assert dropped * 2500 == pytest.approx(round(dropped * 2500), abs=1e-2)  # whole cells


def test_the_mask_depends_on_the_given_noise_alone():
    student, teacher = view((1, 3, 8, 8)), view((1, 3, 8, 8), seed=5)
    distiller = MaskedGenerative(student, teacher)
    before = torch.random.get_rng_state()
    one, same, other = (call(distiller, student, teacher, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_wrong_options_are_refused():
    maps = view((1, 2, 2, 2))
    with pytest.raises(ConfigError, match="expected tau above 0, found -1"):
        ChannelWise(maps, maps, tau=-1)
    with pytest.raises(ConfigError, match="expected mask from 0 on and below 1, found 1"):
        MaskedGenerative(maps, maps, mask=1)
    with pytest.raises(UnknownNameError, match=r"unknown distill 'cvd'.*cwd.*mgd"):
        _ = DISTILLERS["cvd"]
