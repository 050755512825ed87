# SPDX-License-Identifier: Apache-2.0
"""Networks ready to predict with: one file or several."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nano
from yolo import TASKS, YOLO, attempt_load_weights
from yolo.engine.checkpoint import Checkpoint, save_checkpoint
from yolo.ensemble import Ensemble
from yolo.errors import MissingFileError, ModelError


def saved(folder, name, **changes):
    model = TASKS["detect"].model({**nano.TINY, **changes})
    content = Checkpoint("detect", dict(model.names), model.yaml, dict(model.state_dict()))
    save_checkpoint(folder / name, content)
    return folder / name


@pytest.fixture
def image():
    return torch.rand(2, 3, 32, 64)


def test_one_file_gives_its_network_fused_and_ready(tmp_path, image):
    path = saved(tmp_path, "a.pt")
    plain = YOLO(path).model
    for fuse in (True, False):
        model = attempt_load_weights(path, device="cpu", inplace=False, fuse=fuse)
        assert not model.training
        assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) != fuse
        with torch.no_grad():
            torch.testing.assert_close(model(image), plain(image), rtol=1e-4, atol=1e-4)
    assert (model.names, model.stride) == (plain.names, plain.stride)


def test_several_files_predict_together(tmp_path, image):
    paths = [saved(tmp_path, "a.pt"), str(saved(tmp_path, "b.pt"))]
    both = attempt_load_weights(paths)
    with torch.no_grad():
        found = both(image)
        single = [attempt_load_weights(path)(image) for path in paths]
    assert torch.equal(found, torch.cat(single, -1))
    assert (both.names, both.training) == ({0: "0", 1: "1"}, False)


class Stub(nn.Module):
    names, stride = {0: "a"}, (8,)

    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x):
        return self.out


def test_predictions_per_image_are_averaged():
    both = Ensemble([Stub(torch.tensor([[1.0, 0.0]])), Stub(torch.tensor([[0.0, 1.0]]))])
    assert both(torch.zeros(1)).tolist() == [[0.5, 0.5]]


def test_what_cannot_be_joined_is_refused(tmp_path):
    pair = (torch.zeros(1, 5, 3), torch.zeros(1, 2, 4, 4))
    for outputs in ([pair, pair], [torch.zeros(1, 5, 3), torch.zeros(1, 6, 3)]):
        with pytest.raises(ModelError, match="can't be joined"):
            Ensemble([Stub(out) for out in outputs])(torch.zeros(1))
    with pytest.raises(ModelError, match="same classes"):
        attempt_load_weights([saved(tmp_path, "a.pt"), saved(tmp_path, "b.pt", nc=3)])
    with pytest.raises(ModelError, match="found none"):
        attempt_load_weights([])
    with pytest.raises(MissingFileError, match=r"c\.pt"):
        attempt_load_weights([tmp_path / "c.pt"])
