# SPDX-License-Identifier: Apache-2.0
"""An exported file as the validator sees it."""

from __future__ import annotations

import pytest
import torch

import exports
from yolo.backends import open_backend
from yolo.backends.metadata import Metadata
from yolo.backends.module import ExportedNetwork
from yolo.errors import ConfigError


def write(folder):
    rows = exports.detections()
    return exports.write_onnx(folder / "m.onnx", rows, task="detect", names="['a', 'b']")


def test_it_gives_what_the_file_gives(tmp_path):
    file = write(tmp_path)
    network = ExportedNetwork(open_backend(file))
    raw = network.raw(torch.ones(2, 3, 64, 64))
    assert list(raw) == ["0"]
    wanted = torch.tensor(exports.detections() + 1).repeat(2, 1, 1)
    torch.testing.assert_close(network.decode(raw), wanted)
    assert not list(network.parameters())
    assert (network.names, network.stride, network.nms) == ({0: "a", 1: "b"}, (32,), False)


def test_a_file_that_prepares_images_itself_is_refused(tmp_path):
    file = write(tmp_path)
    backend = open_backend(file)
    backend.metadata = Metadata("detect", {0: "a"}, preprocess="raw")
    with pytest.raises(ConfigError, match="preprocess='raw'"):
        ExportedNetwork(backend)
