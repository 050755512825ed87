# SPDX-License-Identifier: Apache-2.0
"""Programs of torch.export: they run, and what could run while being read is refused."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
import torch

from yolo.backends import open_backend
from yolo.errors import ModelError

FACTS = {"task": "detect", "names": ["a"], "imgsz": [32, 64], "yolo_info": {"dynamic": True}}


class Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean((1, 2, 3)).view(-1, 1, 1).expand(-1, 5, x.shape[2] * x.shape[3] // 32)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("pt2") / "m.pt2"
    free = torch.export.Dim.DYNAMIC
    found = torch.export.export(
        Mean(), (torch.zeros(2, 3, 32, 64),), dynamic_shapes=({0: free, 2: free, 3: free},)
    )
    torch.export.save(found, str(path), extra_files={"config.txt": json.dumps(FACTS)})
    return path


def changed(program, target, change):
    """Copy an archive with the content of one kind of entry changed; `change` may add entries."""
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def test_a_program_runs_with_any_size(program):
    backend = open_backend(program)
    assert (backend.dynamic, backend.names) == (True, {0: "a"})
    (found,) = backend(np.full((3, 64, 32, 3), 51, np.uint8))
    assert found.shape == (3, 5, 64)
    assert found == pytest.approx(0.2)


class Hostile:
    def __reduce__(self):
        return (open, ("ran", "w"))


def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save(Hostile(), buffer)
    return buffer.getvalue()


CALL = b"__import__('pathlib').Path('ran').touch()"
ENUM = rb"{\"type\": \"builtins.tuple\", \"context\": \"{\\\"__enum__\\\": 1}\""
CONSTANT = b'{"config": {"c": {"path_name": "%s", "is_param": false, "use_pickle": %s}}}'


@pytest.mark.parametrize(
    ("part", "before", "after"),
    [
        ("models/model.json", b'"torch.ops.aten.mean.dim"', b'"torch.os.system"'),
        ("models/model.json", b'"torch.ops.aten.mean.dim"', b'"torch.ops.aten.from_file.default"'),
        ("models/model.json", b'"_operator.mul"', b'"_operator.methodcaller"'),
        ("models/model.json", b'"expr_str": "', b"\"expr_str\": \"open('ran', 'w') + "),
        ("models/model.json", b'"expr_str": "', b"\"expr_str\": \"S('op'+'en'+'('+'1'+')') + "),
        ("models/model.json", b'"expr_str": "', b'"expr_str": "().__class__ + '),
        ("models/model.json", b'"guards_code": [', b'"guards_code": ["' + CALL + b'", '),
        ("models/model.json", b'"name": "mean"', b'"name": "mean=1;' + CALL + b';m"'),
        ("models/model.json", b'"mean": {', b'"mean;' + CALL + b'": {'),
        ("models/model.json", rb"{\"type\": \"builtins.tuple\", \"context\": \"null\"", ENUM),
        ("models/model.json", b'"custom_obj_values": {', b'"custom_obj_values": {"a": {}'),
        (
            "models/model.json",
            b'"user_input": {',
            b'"constant_input": {"name": "x"}, "user_input": {',
        ),
        ("constants_config", None, CONSTANT % (b"opaque_obj_0", b"false")),
        ("constants_config", None, CONSTANT % (b"custom_obj_0", b"false")),
        ("constants_config", None, CONSTANT % (b"tensor_0", b"true")),
        ("weights_config", None, CONSTANT % (b"weight_0", b"true")),
        ("weights_config", None, CONSTANT % (b"../model.pt", b"false")),
    ],
)
def test_what_could_run_is_refused(program, tmp_path, monkeypatch, part, before, after):
    monkeypatch.chdir(tmp_path)
    touched = []

    def change(name, content):
        if part not in name:
            return content
        assert before is None or before in content, content[:3000]
        touched.append(name)
        return after if before is None else content.replace(before, after)

    path = changed(program, tmp_path / "bad.pt2", change)
    assert touched
    with pytest.raises(ModelError, match=r"bad\.pt2: expected a program"):
        open_backend(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m/data/aotinductor/model/x.so", "AOTInductor"),
        ("m/data/weights/model.pt", "expected a program and tensors alone"),
        ("m/data/constants/model.pt", "expected a program and tensors alone"),
        ("m/data/constants/opaque_obj_0", "expected a program and tensors alone"),
        ("serialized_state_dict.pt", "expected a program and tensors alone"),
        ("m/models/model.json", "found 'm/models/model.json'"),  # there twice
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_an_archive_may_not_hold_is_refused(program, tmp_path, name, text):
    path = changed(program, tmp_path / "b.pt2", lambda n, c: c)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, pickled())
    with pytest.raises(ModelError, match=text):
        open_backend(path)


def test_example_inputs_are_not_read(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = changed(
        program, tmp_path / "c.pt2", lambda n, c: pickled() if "sample_inputs" in n else c
    )
    assert open_backend(path).names == {0: "a"}
    assert not (tmp_path / "ran").exists()


def test_a_truncated_file_is_refused(program, tmp_path):
    path = tmp_path / "c.pt2"
    path.write_bytes(program.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"no sound torch"):
        open_backend(path)
