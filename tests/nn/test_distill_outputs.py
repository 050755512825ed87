# SPDX-License-Identifier: Apache-2.0
"""Learning from outputs and at exits: hand-computed values, and who gets a gradient."""

from __future__ import annotations

import math

import pytest
import torch

from yolo.errors import ConfigError
from yolo.nn.distill import View
from yolo.nn.distill_outputs import (
    Exit,
    Outputs,
    Self,
    binary_divergence,
    last_rows,
    unlike_angles,
    unlike_keypoints,
    unlike_masks,
)

QUARTERS = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
"""Divergence of (1/2, 1/2) from (3/4, 1/4)."""
LOG3 = math.log(3)


def noise():
    return torch.Generator().manual_seed(0)


def boxes(scores, sides):
    return View([], {"scores": scores, "boxes": sides})


def random_boxes(bins=4, seed=0, grad=False):
    source = torch.Generator().manual_seed(seed)
    scores, sides = (
        torch.randn(2, 3, 7, generator=source),
        torch.randn(2, 4 * bins, 7, generator=source),
    )
    return boxes(scores.requires_grad_(grad), sides.requires_grad_(grad))


def classifier(seed=0, grad=False):
    """Three earlier rows of falling size, the deepest map, and an answer."""
    source = torch.Generator().manual_seed(seed)
    shapes = {0: (2, 4, 16, 16), 1: (2, 8, 8, 8), 2: (2, 8, 8, 8), 3: (2, 16, 4, 4)}
    rows = {i: torch.randn(shape, generator=source) for i, shape in shapes.items()}
    rows = {i: value.requires_grad_(grad) for i, value in rows.items()}
    logits = torch.randn(2, 5, generator=source).requires_grad_(grad)
    return View([rows[3]], {"logits": logits}, rows)


def test_binary_divergence_by_hand():
    own, wanted = torch.zeros(1).double(), torch.tensor([LOG3]).double()
    assert float(binary_divergence(own, wanted, 1.0)) == pytest.approx(QUARTERS)
    assert float(binary_divergence(own, 2 * wanted, 2.0)) == pytest.approx(4 * QUARTERS)


def test_gradient_of_the_binary_divergence_is_the_difference_of_scores():
    own, wanted = torch.randn(9, requires_grad=True), torch.randn(9)
    binary_divergence(own, wanted, 1.0).sum().backward()
    torch.testing.assert_close(own.grad, own.detach().sigmoid() - wanted.sigmoid())


def test_boxes_by_hand():
    """Two anchors of one class and two bins; at one the teacher is three quarters sure."""
    student = boxes(torch.tensor([[[0.0, -50.0]]]), torch.zeros(1, 8, 2))
    teacher = boxes(torch.tensor([[[LOG3, -50.0]]]), torch.zeros(1, 8, 2))
    teacher.raw["boxes"][0, 0, 0] = LOG3  # the left side's first bin
    terms = Outputs(student, teacher, box_tau=1.0)(student, teacher, noise())
    assert terms["kd"].tolist() == pytest.approx([0.5 * QUARTERS], abs=1e-7)  # a sum of larger ones
    assert terms["ld"].tolist() == pytest.approx([1.5 * 0.75 * QUARTERS / 4])


def test_what_the_teacher_is_sure_of_is_divided_by_its_sum():
    """Twice the same objects cost as much as once."""
    one, other = random_boxes(), random_boxes(seed=1)
    other.raw["scores"].add_(3)  # sure, so that the sums aren't held at 1
    distiller = Outputs(one, other)
    once = distiller(one, other, noise())
    twice = [View([], {k: torch.cat([v, v], 2) for k, v in x.raw.items()}) for x in (one, other)]
    for name, value in distiller(*twice, noise()).items():
        torch.testing.assert_close(value, once[name])


def test_equal_outputs_cost_nothing_and_only_the_student_learns():
    student, teacher = random_boxes(grad=True), random_boxes(seed=1)
    distiller = Outputs(student, teacher)
    assert distiller.names == ("kd", "ld")
    same = distiller(student, student, noise())
    assert all(value.abs().max() < 1e-5 for value in same.values())
    terms = distiller(student, teacher, noise())
    assert all(value.min() > 0 for value in terms.values())
    for name, output in (("kd", "scores"), ("ld", "boxes")):
        (slope,) = torch.autograd.grad(terms[name].sum(), student.raw[output], retain_graph=True)
        assert slope.abs().sum() > 0
    assert not list(distiller.parameters())


def test_without_bins_there_is_no_term_for_them():
    plain = random_boxes(bins=1)
    assert Outputs(plain, plain).names == ("kd",)
    with pytest.raises(ConfigError, match="the network has reg_max 4, the teacher 1"):
        Outputs(random_boxes(), plain)
    other = View([], {"heat": torch.zeros(1)})
    with pytest.raises(ConfigError, match="'logits' or 'scores', found heat"):
        Outputs(other, other)


def test_one_answer_an_image_by_hand():
    student = View([], {"logits": torch.zeros(1, 2)})
    teacher = View([], {"logits": torch.tensor([[2 * LOG3, 0.0]])})
    terms = Outputs(student, teacher, tau=2.0)(student, teacher, noise())
    assert terms["kd"].tolist() == pytest.approx([4 * QUARTERS])


def test_exits_stand_at_the_last_row_of_each_size():
    student = classifier()
    assert last_rows(student.rows, student.maps[0]) == [0, 2]
    assert list(Self(student, student).rows) == [0, 2]
    assert list(Self(student, student, exits=1).rows) == [2]
    assert Self(student, student, exits=0).names == ("kd",)
    logits, own = Exit(student.rows[0], student.maps[0], 5)(student.rows[0])
    assert logits.shape == (2, 5)
    assert own.shape == student.maps[0].shape


def test_exits_learn_from_the_deepest_answer_which_does_not_learn_from_them():
    student, teacher = classifier(grad=True), classifier(seed=1)
    distiller = Self(student, teacher)
    terms = distiller(student, teacher, noise())
    assert tuple(terms) == distiller.names == ("kd", "exit", "exit_kd", "hint")
    assert [output["logits"].shape for output in terms["exit"].outputs] == [(2, 5)] * 2
    assert terms["exit"].gain == pytest.approx(0.7)
    for name in ("exit_kd", "hint"):
        early, deep, answer = torch.autograd.grad(
            terms[name].sum(),
            (student.rows[0], student.maps[0], student.raw["logits"]),
            retain_graph=True,
            allow_unused=True,
        )
        assert early.abs().sum() > 0
        assert deep is None
        assert answer is None


def test_exits_need_one_answer_an_image():
    student = random_boxes()
    assert Self(student, student).names == ("kd", "ld")
    with pytest.raises(ConfigError, match="exits=2 needs a head with one answer"):
        Self(student, student, exits=2)
    with pytest.raises(ConfigError, match="expected alpha from 0 to 1, found 2"):
        Self(classifier(), classifier(), alpha=2)


def masks(prototypes, seed):
    source = torch.Generator().manual_seed(seed)
    return {
        "mask_coefficient": torch.randn(2, prototypes, 7, generator=source),
        "proto": torch.randn(2, prototypes, 4, 5, generator=source),
    }


def logits_of(raw):
    return torch.einsum("bna,bnhw->bahw", raw["mask_coefficient"], raw["proto"])


def test_masks_differ_by_their_logits_over_the_map():
    own, wanted = masks(3, 0), masks(5, 1)
    theirs = logits_of(wanted)
    expected = (logits_of(own) - theirs).square().mean((2, 3))
    expected = expected / theirs.square().mean((2, 3)).clamp(min=1)
    torch.testing.assert_close(unlike_masks(own, wanted), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(unlike_masks(own, wanted), expected)


def test_masks_of_other_prototypes_may_be_the_same():
    wanted = masks(4, 0)
    mixed, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)))
    own = {
        "mask_coefficient": torch.einsum("mn,bna->bma", mixed, wanted["mask_coefficient"]),
        "proto": torch.einsum("mn,bnhw->bmhw", mixed, wanted["proto"]),
    }
    assert unlike_masks(own, wanted).max() < 1e-5


def test_keypoints_and_angles_by_hand():
    own, wanted = {"kpts": torch.tensor([[[0.0], [3.0]]])}, {"kpts": torch.tensor([[[0.5], [1.0]]])}
    assert unlike_keypoints(own, wanted).tolist() == [[(0.125 + 1.5) / 2]]
    turns = torch.tensor([[[0.0, math.pi, math.pi / 2, math.pi / 6]]])
    found = unlike_angles({"angle": turns}, {"angle": torch.zeros(1, 1, 4)})
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 2.0, 0.5]]))


@pytest.mark.parametrize(
    ("further", "name"),
    [
        (lambda seed: masks(3, seed), "mask"),
        (lambda seed: {"kpts": masks(3, seed)["mask_coefficient"]}, "kpt"),
        (lambda seed: {"angle": masks(1, seed)["mask_coefficient"]}, "angle"),
    ],
)
def test_what_else_a_head_gives_is_learned_where_the_teacher_is_sure(further, name):
    student, teacher = (random_boxes(seed=seed) for seed in (0, 1))
    own = {key: value.requires_grad_() for key, value in further(0).items()}
    student.raw.update(own)
    teacher.raw.update(further(1))
    teacher.raw["scores"][:, :, 3:] = -50
    distiller = Outputs(student, teacher, further=2.0)
    assert distiller.names == ("kd", "ld", name)
    term = distiller(student, teacher, noise())[name]
    assert (term > 0).all()
    half = Outputs(student, teacher, further=1.0)(student, teacher, noise())[name]
    torch.testing.assert_close(term, 2 * half)
    for key, slope in zip(own, torch.autograd.grad(term.sum(), [*own.values()]), strict=True):
        assert slope.abs().sum() > 0
        if key != "proto":
            assert slope[:, :, 3:].abs().max() < 1e-12


def test_other_keypoints_than_the_teacher_s_are_refused():
    student, teacher = random_boxes(), random_boxes()
    student.raw["kpts"], teacher.raw["kpts"] = torch.zeros(2, 6, 7), torch.zeros(2, 9, 7)
    with pytest.raises(ConfigError, match="gives 6 numbers of keypoints, the teacher 9"):
        Outputs(student, teacher)
