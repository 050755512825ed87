# SPDX-License-Identifier: Apache-2.0
"""Arrays and tensors alike: indexed, moved and read by the same words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from yolo.engine.tensors import as_array, on_cpu, pick, to_numpy

ROWS = np.array([[10, 20, 30, 60, 0.9, 1], [0, 0, 5, 5, 0.5, 0]], np.float32)


def test_arrays_answer_to_what_scripts_call_on_tensors():
    data = as_array(ROWS)
    assert type(data.cpu().numpy()) is np.ndarray
    assert np.shares_memory(data.numpy(), ROWS)
    assert data[:, 5].int().tolist() == ROWS[:, 5].tolist()
    assert data.int().dtype == np.int32
    assert data.int().float().dtype == np.float32
    assert data.numel() == ROWS.size
    assert data[0, 4].item() == pytest.approx(0.9)
    assert as_array([[1, 2]]).dtype == np.float32
    tensor = torch.as_tensor(ROWS)
    assert as_array(tensor) is tensor


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_copies_on_the_cpu(kind):
    given = kind(ROWS.astype(np.float64))[:, :2]
    copied = on_cpu(given)
    assert isinstance(copied, np.ndarray) == isinstance(given, np.ndarray)
    assert to_numpy(copied).dtype == np.float32
    copied[0, 0] = -1
    assert given[0, 0] == 10
    assert to_numpy(copied).flags.c_contiguous


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_any_index_picks_rows(kind):
    rows_of = kind(np.arange(18, dtype=np.float32).reshape(3, 6))
    for index, rows in (
        (slice(None, None, -1), [2, 1, 0]),
        (np.array([0, 2])[::-1], [2, 0]),
        (np.array([2], np.uint32), [2]),
        (np.array(1), [1]),
        (torch.tensor(-1), [2]),
        (torch.tensor([False, True, False]), [1]),
        ((0, 2), [0, 2]),
        ([], []),
    ):
        assert np.asarray(pick(rows_of, index))[:, 0].tolist() == [6.0 * row for row in rows]
    for index in (3, -4, True, [0, 3], np.ones(2, bool), np.zeros((1, 1), int), ...):
        with pytest.raises(IndexError, match="3 rows"):
            pick(rows_of, index)
