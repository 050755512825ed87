# SPDX-License-Identifier: Apache-2.0
"""Slots for images: whole or empty, of one type, in memory or in a file that serves again."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from yolo.data import slots
from yolo.data.slots import Layout, Slots

LAYOUT = Layout(np.array([[2, 3], [4, 1]]), 3, np.dtype(np.uint8))


def test_a_slot_is_empty_or_whole(tmp_path):
    image = np.arange(12, dtype=np.uint8).reshape(4, 1, 3)
    for made in (Slots.in_memory(LAYOUT), Slots.on_disk(LAYOUT, tmp_path / "a" / "b.cache")):
        assert made.get(1) is None
        assert not made.put(1, image.astype(np.uint16))
        assert made.put(1, image)
        np.testing.assert_array_equal(made.get(1), image)
        assert made.get(0) is None
        made.close()
    again = Slots.on_disk(LAYOUT, tmp_path / "a" / "b.cache")
    np.testing.assert_array_equal(again.get(1), image)
    assert os.listdir(tmp_path / "a") == ["b.cache"]
    again.close()


def test_a_file_of_another_size_is_made_anew(tmp_path):
    (tmp_path / "b.cache").write_bytes(b"junk")
    made = Slots.on_disk(LAYOUT, tmp_path / "b.cache")
    assert made.get(0) is None
    assert (tmp_path / "b.cache").stat().st_size == LAYOUT.total
    made.close()


def test_no_room_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "free_memory", lambda: LAYOUT.total)
    with pytest.raises(OSError, match="memory are free") as caught:
        Slots.in_memory(LAYOUT)
    assert caught.value.errno == errno.ENOSPC
