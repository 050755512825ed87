# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: plain, verified, atomic."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import GOLDEN
from peer_files import torch_bytes, write_peer_file
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


@pytest.mark.processes
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
    with pytest.raises(CheckpointError, match=r"cut\.pt: the file is damaged or cut short"):
        load_checkpoint(tmp_path / "cut.pt")
    torch.save({"w": torch.zeros(1)}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="no checkpoint of this library"):
        load_checkpoint(tmp_path / "foreign.pt")
    content = torch.load(path, weights_only=True) | {"version": 99}
    torch.save(content, tmp_path / "newer.pt")
    with pytest.raises(CheckpointError, match="version 99"):
        load_checkpoint(tmp_path / "newer.pt")
    with pytest.raises(MissingFileError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


def test_version_1_is_read_for_ever():
    found = load_checkpoint(GOLDEN / "checkpoint_v1.bin")
    expected = dataclasses.replace(example(), date="2026-01-01T00:00:00+00:00")
    expected.weights["w"] = torch.arange(6.0).reshape(2, 3)
    assert digest(vars(found)) == digest(vars(expected))


def test_an_older_version_is_brought_up_to_date(tmp_path, monkeypatch):
    """Version 0, made up: class names were a list called `classes`."""
    content = {k: v for k, v in vars(example()).items() if k != "names"}
    content |= {"format": "plainyolo", "version": 0, "classes": ["a", "b"]}
    (tmp_path / "old.pt").write_bytes(torch_bytes(content | {"checksum": digest(content)}))
    with pytest.raises(CheckpointError, match="version 0 was never published"):
        load_checkpoint(tmp_path / "old.pt")

    def migrate(old):
        return {**old, "names": dict(enumerate(old["classes"]))}

    monkeypatch.setitem(module.MIGRATIONS, 0, migrate)
    assert load_checkpoint(tmp_path / "old.pt").names == {0: "a", 1: "b"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weights": {"w": [1.0]}}, "tensors alone"),
        ({"weights": None}, "field 'weights': expected dict, found NoneType"),
        ({"network": "yolov8n"}, "field 'network'"),
        ({"version": "1"}, "version '1'"),
        ({"task": "\ud800"}, "damaged"),
    ],
)
def test_wrong_fields_are_refused_even_with_a_checksum(tmp_path, changes, told):
    content = {**vars(example()), "format": "plainyolo", "version": 1, **changes}
    checksum = digest(content) if "task" not in changes else ""
    (tmp_path / "a.pt").write_bytes(torch_bytes(content | {"checksum": checksum}))
    with pytest.raises(CheckpointError, match=rf"a\.pt: .*{re.escape(told)}"):
        load_checkpoint(tmp_path / "a.pt")


def test_the_document_lists_every_field():
    """So that somebody else can read the file by it."""
    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| ", text.replace("\\|", "or"), re.MULTILINE)
    fields = {f.name: str(f.type).replace("|", "or") for f in dataclasses.fields(Checkpoint)}
    own = {"format": "str", "version": "int", "checksum": "str"}
    assert dict(rows) == own | fields
    assert list(dict(rows)) == [*own, *fields]
    assert f"| `version` | int | {module.VERSION} |" in text
    assert f'`"{module.FORMAT}"`' in text


def test_the_checksum_is_what_the_document_says():
    tree = {"a": [1, 2.5], "t": torch.tensor([[1, 2]], dtype=torch.int32), "checksum": "x"}
    import hashlib
    import struct

    order = b"M2" + b"P5str:a" + b"L2P5int:1F" + struct.pack("<d", 2.5) + b"P5str:t"
    order += b"Ttorch.int32(1, 2)" + struct.pack("<ii", 1, 2)
    assert digest(tree) == hashlib.sha256(order).hexdigest()


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory):
    """Bytes of a file of ours, of a safetensors file and of one of the peer's kind."""
    import nano
    from yolo.tasks.detect.model import DetectionModel

    folder = tmp_path_factory.mktemp("sound")
    save_checkpoint(folder / "a.pt", example())
    save_checkpoint(folder / "a.safetensors", dataclasses.replace(example(), state=None))
    write_peer_file(folder / "peer.pt", DetectionModel(nano.TINY), "detect")
    return [(path.suffix, path.read_bytes(), digest(vars(load_checkpoint(path))))
            for path in sorted(folder.iterdir())]  # fmt: skip


@settings(
    max_examples=60,
    deadline=timedelta(seconds=5),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_bytes_are_an_error_of_ours_or_do_no_harm(sound_files, tmp_path, data):
    suffix, content, checksum = data.draw(st.sampled_from(sound_files))
    damaged = bytearray(content)
    places = st.integers(0, len(content) - 1)
    if data.draw(st.booleans()):
        del damaged[data.draw(places) :]
    else:  # the zip's directory and the pickle matter most, and lie at the ends
        last = len(content) - 1
        near = places | st.integers(0, min(4000, last)) | st.integers(max(0, last - 4000), last)
        for place in data.draw(st.lists(near, min_size=1, max_size=4)):
            damaged[place] = data.draw(st.integers(0, 255))
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(damaged)
    try:
        found = digest(vars(load_checkpoint(path)))
    except CheckpointError as error:
        found = str(error)
    assert found == checksum or (found.startswith(f"{path}: ") and "\n" not in found)


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
    monkeypatch.setattr(module.os, "fsync", lambda handle: os.pwrite(handle, b"?", 1000))
    with pytest.raises(CheckpointError, match="other bytes than were written"):
        save_checkpoint(path, example(2.0))
    assert load_checkpoint(path).weights["w"][0, 0] == 1.0
    assert os.listdir(tmp_path) == ["a.pt"]


def test_nothing_but_plain_data_is_written(tmp_path):
    thing = example(1.0)
    thing.state = {"seen": {1, 2}}
    with pytest.raises(CheckpointError, match=r"plain data, found \{1, 2\} \(set\)"):
        save_checkpoint(tmp_path / "a.pt", thing)
    assert not os.listdir(tmp_path)


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
