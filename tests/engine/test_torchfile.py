# SPDX-License-Identifier: Apache-2.0
"""Torch files as data: every tensor right, nothing run, nothing larger than the file."""

from __future__ import annotations

import io
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import torch

from peer_files import torch_bytes, torch_zip
from yolo.engine.torchfile import TorchFile
from yolo.errors import CheckpointError

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8",
          "bool"]  # fmt: skip


def plain(path):
    with TorchFile(path) as file:
        return file.plain(file.content)


def test_tensors_of_all_types_and_layouts(tmp_path):
    base = torch.arange(24).reshape(2, 3, 4)
    content = {name: (base % 5).to(getattr(torch, name)) for name in DTYPES}
    image = torch.rand(2, 3, 4, 5)
    content |= {
        "scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3),
        "turned": base.permute(2, 0, 1), "part": base[1:, ::2],
        "last": image.to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.ones(2)), "tree": [({"a": None},), {1}],
    }  # fmt: skip
    torch.save(content, tmp_path / "a.pt")
    found = plain(tmp_path / "a.pt")
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype
            assert found[name].stride() == value.stride()
            assert torch.equal(found[name], value.detach()), name
    assert found["tree"] == content["tree"]


def test_shared_storages_stay_shared(tmp_path):
    base = torch.arange(6.0)
    torch.save([base, base[2:]], tmp_path / "a.pt")
    whole, part = plain(tmp_path / "a.pt")
    whole[2] = 9
    assert part[0] == 9


def test_values_that_training_leaves_behind(tmp_path):
    content = [np.float64(0.5), np.float32(0.25), np.int64(7), pathlib.PurePosixPath("/a/b"),
               torch.Size([1, 2]), torch.device("cpu"), b"ab\xff"]  # fmt: skip
    torch.save(content, tmp_path / "a.pt")
    assert plain(tmp_path / "a.pt") == [0.5, 0.25, 7, "/a/b", (1, 2), "cpu", b"ab\xff"]


# ---------------------------------------------------------------------- hostile files


class Call:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


class Stored:
    """Pickles as torch's persistent id of a storage."""

    def __init__(self, count=4, key="0", kind=torch.FloatStorage):
        self.id = ("storage", kind, key, "cpu", count)


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.id if isinstance(value, Stored) else None


def pickled(content, protocol=2):
    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(content)
    return buffer.getvalue()


def tensor(*args, **storage):
    return Call(torch._utils._rebuild_tensor_v2, Stored(**storage), *args, False, {})


HOSTILE = {
    "os.system": b"\x80\x02cos\nsystem\nX\x0b\x00\x00\x00touch PWNED\x85R.",
    "builtins.eval": pickled(Call(eval, "open('PWNED', 'w')"), 4),
    "builtins.getattr": pickled(Call(getattr, "a", "b"), 4),
    "builtins.getattr on": pickled(Call(getattr, torch.nn.Module, "load_state_dict")),
    "calls what has no name": (  # getattr(Conv2d, "forward")("touch PWNED")
        b"\x80\x02c__builtin__\ngetattr\nctorch.nn.modules.conv\nConv2d\nX\x07\x00\x00\x00forward"
        b"\x86RX\x0b\x00\x00\x00touch PWNED\x85R."
    ),
    "pickle.loads": pickled(Call(pickle.loads, b"cos\nsystem\n(S'touch PWNED'\ntR."), 4),
    "torch.storage._load_from_bytes": pickled(Call(torch.storage._load_from_bytes, b"")),
    "torch.serialization.os.system": (
        b"\x80\x04\x8c\x13torch.serialization\x8c\x09os.system\x93\x8c\x0btouch PWNED\x85R."
    ),
    "torch.nn.modules.os.system": b"\x80\x04\x8c\x10torch.nn.modules\x8c\x09os.system\x93.",
    "torch.nn.modules.module.register_module_forward_hook": pickled(
        torch.nn.modules.module.register_module_forward_hook
    ),
    "ultralytics.nn.tasks.torch_safe_load": b"\x80\x02cultralytics.nn.tasks\ntorch_safe_load\n.",
    "INST": b"(S'touch PWNED'\nios\nsystem\n.",
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_run_code_is_named_and_never_run(tmp_path, monkeypatch, name, zipped):
    monkeypatch.chdir(tmp_path)
    data = HOSTILE[name]
    if not zipped and not data.startswith(b"\x80"):
        name = "not a checkpoint"
    if zipped:
        torch_zip(tmp_path / "a.pt", data)
    else:
        (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        TorchFile(tmp_path / "a.pt")
    message = str(caught.value)
    assert "\n" not in message
    assert name in message or (name == "INST" and "STRING" in message)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def nested(depth):
    inner = ()
    for _ in range(depth):
        inner = (inner, inner)
    return inner


FOUR = [("data/0", b"\0" * 16)]


@pytest.mark.parametrize(
    ("content", "entries", "told"),
    [
        (tensor(0, (5,), (1,)), FOUR, "shape (5,) exceeds"),
        (tensor(1, (4,), (1,)), FOUR, "exceeds"),
        (tensor(0, (2,), (4,)), FOUR, "exceeds"),
        (tensor(0, (10**9, 10**9), (0, 0)), FOUR, "exceeds"),
        (tensor(0, (2,), (-1,)), FOUR, "exceeds"),
        (tensor(0, (1,) * 9, (1,) * 9), FOUR, "exceeds"),
        (tensor(0, (True,), (1,)), FOUR, "damaged"),
        (tensor(0, (2.5,), (1,)), FOUR, "damaged"),
        (tensor(0, (4,), (1,), count=10**12), FOUR, "its entry has 16 bytes"),
        (tensor(0, (4,), (1,), kind=torch.DoubleStorage), FOUR, "its entry has 16 bytes"),
        (tensor(0, (4,), (1,), key="../../data.pkl"), FOUR, "its entry has None bytes"),
        (tensor(0, (4,), (1,)), [], "its entry has None bytes"),
        (nested(60), [], "nested without end"),
        (tensor(0, nested(60), (1,)), FOUR, "damaged"),
        (tensor(0, (4,), (1,), count=nested(60)), FOUR, "damaged"),
        (tensor(0, (4,), (1,), key=nested(60)), FOUR, "damaged"),
        (Call(torch.device, nested(60)), [], "damaged"),
        (Call(pathlib.PurePosixPath, nested(60)), [], "damaged"),
        (Call(np._core.multiarray.scalar, Call(np.dtype, nested(60)), b"x"), [], "damaged"),
        (
            [tensor(0, (1000,), (1,), count=1000) for _ in range(200)],
            [("data/0", b"\0" * 4000)],
            "larger than the file",
        ),
        ([], [("byteorder", b"big")], "big-endian"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_absurd_shapes_and_trees_are_refused(tmp_path, content, entries, told):
    path = torch_zip(tmp_path / "a.pt", pickled(content), entries)
    with pytest.raises(CheckpointError) as caught:
        plain(path)
    assert told in str(caught.value)


def test_a_tree_that_holds_itself_and_a_deep_one(tmp_path):
    circle: list = []
    circle.append(circle)
    deep: list = []
    for _ in range(400):
        deep = [deep]
    for content in (circle, deep):
        with pytest.raises(CheckpointError, match="nested without end"):
            plain(torch_zip(tmp_path / "a.pt", pickled(content)))


def test_objects_are_no_plain_data(tmp_path):
    torch.save({"m": torch.nn.SiLU()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"an object of torch\.nn\.modules\.activation\.SiLU"):
        plain(tmp_path / "a.pt")


def test_zips_that_torch_does_not_write(tmp_path):
    path = torch_zip(tmp_path / "a.pt", pickled({}) + b"\0" * 10_000, (), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"data\.pkl' is compressed"):
        TorchFile(path)
    with pytest.warns(UserWarning, match="Duplicate"):
        torch_zip(path, pickled({}), [("version", b"4")])
    with pytest.raises(CheckpointError, match="two entries"):
        TorchFile(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(CheckpointError, match="not as torch"):
        TorchFile(path)


def test_entries_over_each_other_are_refused(tmp_path):
    """A zip whose directory gives the same bytes many names would grow in memory."""
    path = torch_zip(tmp_path / "a.pt", pickled({}), [("data/0", b"\0" * 10_000)])
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("archive/data/0")
    with zipfile.ZipFile(path, "a") as archive:
        for i in range(1, 20):
            twin = zipfile.ZipInfo(f"archive/data/{i}")
            twin.file_size, twin.compress_size, twin.CRC = (
                entry.file_size,
                entry.file_size,
                entry.CRC,
            )
            twin.header_offset = entry.header_offset
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive._didModify = True
    with pytest.raises(CheckpointError, match="overlap"):
        TorchFile(path)


def test_files_of_other_kinds(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before 1\.6.*Save it anew"):
        TorchFile(path)
    for data in (b"", b"PK", b"<html>", b"\x7fELF"):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            TorchFile(path)


def test_a_flipped_byte_in_a_tensor_is_noticed(tmp_path):
    data = bytearray(torch_bytes({"w": torch.arange(100.0)}))
    at = bytes(data).index(torch.arange(100.0).numpy().tobytes())
    data[at + 7] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        plain(tmp_path / "a.pt")
