# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: plain, verified, atomic."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from yolo.engine import checkpoint as module
from yolo.engine.checkpoint import (
    Checkpoint,
    digest,
    load_checkpoint,
    plain,
    save_checkpoint,
)
from yolo.errors import CheckpointError, MissingFileError


def example(value: float = 1.0) -> Checkpoint:
    return Checkpoint(
        task="any",
        names={0: "a", 1: "b"},
        network={"nc": 2, "backbone": [[-1, 1, "Conv", [8, 3, 2]]]},
        weights={"w": torch.full((2, 3), value), "n": torch.tensor(4)},
        config={"lr0": 0.01, "imgsz": [64, 96]},
        epoch=3,
        metrics={"fitness": 0.5},
        history=[{"epoch": 1, "time": 0.25}],
        versions={"torch": "2"},
        state={"optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
    )


def test_round_trip_keeps_everything(tmp_path):
    save_checkpoint(tmp_path / "a.pt", example())
    found = load_checkpoint(tmp_path / "a.pt")
    torch.testing.assert_close(found.weights["w"], torch.full((2, 3), 1.0))
    assert found.names == {0: "a", 1: "b"}
    assert found.state["optimizer"]["state"][0]["step"] == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_opens_where_only_torch_is_installed(tmp_path):
    save_checkpoint(tmp_path / "a.pt", example())
    code = (
        "import sys; sys.modules['yolo'] = None; import torch; "
        "c = torch.load('a.pt', weights_only=True); print(c['format'], c['weights']['w'].sum())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["plainyolo", "tensor(6.)"]


@pytest.mark.parametrize("position", [0.3, 0.6])
def test_a_flipped_bit_is_noticed(tmp_path, position):
    path = tmp_path / "a.pt"
    save_checkpoint(path, example())
    content = torch.load(path, weights_only=True)
    content["weights"]["w"][0, 0] += position
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(path)


def test_truncated_foreign_newer_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, example())
    (tmp_path / "cut.pt").write_bytes(path.read_bytes()[:900])
    with pytest.raises(CheckpointError, match=r"cut\.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path / "cut.pt")
    torch.save({"w": torch.zeros(1)}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="expected a checkpoint with format"):
        load_checkpoint(tmp_path / "foreign.pt")
    content = torch.load(path, weights_only=True) | {"version": 99}
    torch.save(content, tmp_path / "newer.pt")
    with pytest.raises(CheckpointError, match="version 99"):
        load_checkpoint(tmp_path / "newer.pt")
    with pytest.raises(MissingFileError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


class Evil:
    def __reduce__(self):
        return (open, ("PWNED", "w"))


def test_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "plainyolo", "evil": Evil()}, "evil.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint("evil.pt")
    assert not (tmp_path / "PWNED").exists()


def test_a_full_disk_leaves_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    save_checkpoint(path, example(1.0))

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_checkpoint(path, example(2.0))
    monkeypatch.undo()
    assert load_checkpoint(path).weights["w"][0, 0] == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_file_that_reads_back_wrong_never_replaces_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    save_checkpoint(path, example(1.0))
    save = torch.save

    def corrupt(content, buffer):
        save(content | {"checksum": "0"}, buffer)

    monkeypatch.setattr(module.torch, "save", corrupt)
    with pytest.raises(CheckpointError, match="checksum"):
        save_checkpoint(path, example(2.0))
    assert load_checkpoint(path).weights["w"][0, 0] == 1.0


def test_digest_tells_alike_trees_apart():
    trees = [{"a": 1}, {"a": "1"}, {"a": 1.0}, {"a": [1]}, {"a": [[1]]}, {"a": None}, {"b": 1}]
    trees += [{"a": torch.zeros(2)}, {"a": torch.zeros(1, 2)}, {"a": torch.zeros(2).int()}]
    assert len({digest(tree) for tree in trees}) == len(trees)


def test_plain_refuses_what_cannot_be_saved(tmp_path):
    assert plain({"p": tmp_path, "t": (1, 2)}) == {"p": str(tmp_path), "t": [1, 2]}
    with pytest.raises(CheckpointError, match="no plain form"):
        plain(object())


def test_the_folder_is_made(tmp_path):
    save_checkpoint(tmp_path / "new" / "a.pt", example())
    assert load_checkpoint(tmp_path / "new" / "a.pt").epoch == 3
