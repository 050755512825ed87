# SPDX-License-Identifier: Apache-2.0
"""A mapped file: the same bytes in every process, gone with its last user."""

from __future__ import annotations

import os
import pickle

import pytest

from yolo.data.shared import SharedFile, free_memory, remove_if_mine
from yolo.errors import DataError


def test_all_see_the_same_bytes():
    file = SharedFile.in_memory(100)
    assert not file.bytes.any()
    other = pickle.loads(pickle.dumps(file))
    other.bytes[7] = 3
    assert file.bytes[7] == 3
    other.close()
    assert file.bytes[7] == 3
    frozen = pickle.dumps(file)
    file.close()
    assert not len(file.bytes)
    with pytest.raises(DataError, match=r"image cache .* can't be opened"):
        pickle.loads(frozen)


def test_without_anonymous_files_a_named_one_goes_with_its_maker(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    file = SharedFile.in_memory(100)
    assert os.path.getsize(file.handle) == 100
    handle = file.handle
    del file
    assert not os.path.exists(handle)


def test_only_the_maker_removes_a_file(tmp_path):
    path = tmp_path / "a"
    path.touch()
    remove_if_mine(str(path), os.getpid() + 1)
    assert path.exists()
    remove_if_mine(str(path), os.getpid())
    remove_if_mine(str(path), os.getpid())
    assert not path.exists()


def test_free_memory_is_plausible():
    assert 1 << 20 < free_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
