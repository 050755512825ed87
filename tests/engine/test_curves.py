# SPDX-License-Identifier: Apache-2.0
"""Curves over confidence against stored numbers, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from yolo.engine.curves import CONFIDENCES, confidence_curves


@pytest.mark.parametrize("case", ["ap_a", "ap_b", "ap_none", "ap_one_det"])
def test_stored_curves(golden, case):
    stored = {k[len(case) + 1 :]: v for k, v in golden("metrics.npz").items() if k.startswith(case)}
    curves = confidence_curves(
        stored["tp"][:, 0].astype(bool),
        stored["conf"].astype(float),
        stored["pred_cls"].astype(int),
        stored["target_cls"].astype(int),
    )
    np.testing.assert_array_equal(curves.classes, stored["classes"])
    np.testing.assert_allclose(CONFIDENCES[::10], stored["x"], rtol=1e-4, atol=1e-6)
    for ours, name in ((curves.precision, "p"), (curves.recall, "r"), (curves.f1, "f1")):
        np.testing.assert_allclose(ours[:, ::10], stored[f"{name}_curve"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(ours[:, curves.best], stored[name], rtol=1e-4, atol=1e-6)


def test_by_hand():
    curves = confidence_curves(
        np.array([False, True, True]), np.array([0.5, 0.9, 0.7]), np.zeros(3, int), np.zeros(4, int)
    )
    at = [int(np.argmin(abs(CONFIDENCES - c))) for c in (0.95, 0.8, 0.1)]
    np.testing.assert_allclose(curves.precision[0, at], [1, 1, 2 / 3], atol=2e-3)
    np.testing.assert_allclose(curves.recall[0, at], [0, 3 / 8, 2 / 4], atol=2e-3)
    assert 0.5 < CONFIDENCES[curves.best] <= 0.7


def test_nothing():
    curves = confidence_curves(np.zeros(0, bool), np.zeros(0), np.zeros(0, int), np.zeros(0, int))
    assert curves.precision.shape == (0, 1000)
    assert curves.best == 0
