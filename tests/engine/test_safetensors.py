# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as safetensors files: the same content, readable by anybody's reader."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from yolo.engine.checkpoint import Checkpoint, digest, load_checkpoint, save_checkpoint
from yolo.engine.safetensors import KEY
from yolo.errors import CheckpointError, MissingPackageError


def example(**changes):
    shared = torch.arange(6.0)
    weights = {
        "z": shared.reshape(2, 3), "b": shared[2:], "a": torch.tensor(4),
        "m": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }  # fmt: skip
    content = {
        "task": "any", "names": {0: "ä", 1: "b"}, "network": {"nc": 2, "names": {0: "ä", 1: "b"}},
        "weights": weights, "config": {"x": None, "y": [1, 2.0], "z": {"@pairs": 1, "w": {}}},
        "metrics": {"fitness": float("nan")}, "date": "2026-01-01",
    }  # fmt: skip
    return Checkpoint(**{**content, **changes})


def test_both_forms_hold_the_same(tmp_path):
    save_checkpoint(tmp_path / "a.pt", example())
    save_checkpoint(
        tmp_path / "a.safetensors", example(weights=load_checkpoint(tmp_path / "a.pt").weights)
    )
    one, other = (load_checkpoint(tmp_path / f"a.{form}") for form in ("pt", "safetensors"))
    assert digest(vars(one)) == digest(vars(other))
    assert list(one.weights) == list(other.weights) == ["z", "b", "a", "m"]
    assert other.names == {0: "ä", 1: "b"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "a.safetensors"]


def test_any_reader_finds_the_tensors(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", example())
    found = load_file(tmp_path / "a.safetensors")
    assert torch.equal(found["z"], torch.arange(6.0).reshape(2, 3))
    header = (tmp_path / "a.safetensors").read_bytes()
    meta = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    assert json.loads(meta[KEY])["task"] == "any"


def test_what_is_not_ours_or_damaged_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="tensors alone"):
        load_checkpoint(path)
    for text in ("{", "[]", '{"weights": ["v"]}', '{"weights": 1}', "[" * 10_000, '{"version": 1}'):
        save_file({"w": torch.zeros(2)}, path, {KEY: text})
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            load_checkpoint(path)
    save_checkpoint(path, example())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(path)
    path.write_bytes(data[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_a_training_state_has_no_place(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.safetensors: .*save it as \.pt"):
        save_checkpoint(tmp_path / "a.safetensors", example(state={"t": torch.zeros(1)}))
    assert not list(tmp_path.iterdir())


def test_without_the_package_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "a.safetensors", example())
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MissingPackageError, match="pip install 'plainyolo\\[safetensors\\]'"):
        load_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(MissingPackageError, match="pip install"):
        save_checkpoint(tmp_path / "b.safetensors", example())
