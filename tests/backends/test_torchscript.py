# SPDX-License-Identifier: Apache-2.0
"""TorchScript files: metadata in the archive, refusal of what is none."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch

from yolo.backends import open_backend
from yolo.errors import ModelError

FACTS = {"task": "detect", "names": {"0": "a"}, "imgsz": [32, 64], "args": {"dynamic": False}}


class Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean((1, 2, 3)).view(-1, 1, 1).expand(-1, 5, 7), x[:, :1]


def write(path, **extra):
    with warnings.catch_warnings(record=True):
        traced = torch.jit.trace(Mean(), torch.zeros(1, 3, 32, 64))
        torch.jit.save(traced, str(path), _extra_files=extra)
    return path


def test_a_file_runs_and_says_what_it_is(tmp_path):
    backend = open_backend(write(tmp_path / "m.torchscript", **{"config.txt": json.dumps(FACTS)}))
    assert (backend.names, backend.imgsz, backend.dynamic) == ({0: "a"}, (32, 64), False)
    outputs = backend(np.full((2, 32, 64, 3), 51, np.uint8))
    assert [output.shape for output in outputs] == [(2, 5, 7), (2, 1, 32, 64)]
    assert outputs[0] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("content", "text"), [(None, "lack 'task'"), (b"nothing", "torch archive"), (500, "archive")]
)
def test_what_cannot_be_used_is_refused(tmp_path, content, text):
    path = write(tmp_path / "m.torchscript")
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else path.read_bytes()[:content])
    with pytest.raises(ModelError, match=text):
        open_backend(path)
