# SPDX-License-Identifier: Apache-2.0
"""What only a CUDA device can show; run with `-m gpu`."""

from __future__ import annotations

import pytest
import torch

import nano
from yolo import YOLO
from yolo.data.shapes import write_shapes
from yolo.engine.checkpoint import load_checkpoint

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data") / "set", train=24, val=8, size=96)


@pytest.mark.parametrize("amp", ["fp32", "bf16"])
def test_a_training_step_never_waits_for_the_device(tmp_path, data, amp):
    model = YOLO(nano.write_network(tmp_path))
    model.add_callback(
        "on_train_batch_start",
        # the first steps build optimizer state and choose kernels
        lambda t: t.iteration >= 3 and torch.cuda.set_sync_debug_mode("error"),
    )
    model.add_callback("on_train_batch_end", lambda _: torch.cuda.set_sync_debug_mode("default"))
    try:
        model.train(data=str(data), **nano.options(tmp_path, amp, device=0, amp=amp))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert load_checkpoint(tmp_path / amp / "weights" / "last.pt").state["iteration"] == 18


def test_a_bad_step_is_skipped_on_the_device(tmp_path, data):
    model = YOLO(nano.write_network(tmp_path))

    def spoil(trainer):
        if trainer.iteration == 4:
            trainer.criterion.gains["box"] = float("nan")
        elif trainer.iteration == 6:
            trainer.criterion.gains["box"] = 7.5

    model.add_callback("on_train_batch_start", spoil)
    model.train(data=str(data), **nano.options(tmp_path, "run", device=0, nbs=4))
    saved = load_checkpoint(tmp_path / "run" / "weights" / "last.pt")
    assert saved.state["guard"][0] == 2
    assert all(torch.isfinite(v).all() for v in saved.weights.values())


def test_the_cpu_and_cuda_agree_on_a_prediction(tmp_path):
    image = (torch.rand(64, 96, 3) * 255).byte().numpy()
    model = YOLO(nano.write_network(tmp_path))
    on_cpu = model.predict(image, conf=0.0, device="cpu")[0].boxes.data
    on_cuda = model.predict(image, conf=0.0, device=0)[0].boxes.data
    torch.testing.assert_close(on_cpu, on_cuda, rtol=1e-3, atol=0.05)
    assert on_cuda.device.type == "cpu"


def test_a_fitting_batch_is_found(tmp_path, data):
    model = YOLO(nano.write_network(tmp_path))
    model.train(data=str(data), **nano.options(tmp_path, "run", device=0, batch=-1, epochs=1))
    assert model.trainer.batch_size >= 1
