# SPDX-License-Identifier: Apache-2.0
"""What only a CUDA device can show; run with `-m gpu`."""

from __future__ import annotations

import pytest
import torch

import nano
from yolo import YOLO
from yolo.data.shapes import write_shapes
from yolo.engine.checkpoint import load_checkpoint
from yolo.engine.feed import feed

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data") / "set", train=24, val=8, size=96)


@pytest.mark.parametrize(
    "changes",
    [
        {"amp": "fp32"},
        {"amp": "bf16"},
        {"amp": "fp16"},
        {"amp": "bf16", "workers": 2},
        {"amp": "bf16", "augment_on": "device"},
        {"amp": "bf16", "multi_scale": 0.5, "optimizer": "SGD"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_a_training_step_never_waits_for_the_device(tmp_path, data, changes):
    """From one step to the next, the batch's way to the device included."""
    model = YOLO(nano.write_network(tmp_path))
    model.add_callback(
        "on_train_batch_start",
        # the first steps build optimizer state and choose kernels
        lambda t: t.iteration >= 3 and torch.cuda.set_sync_debug_mode("error"),
    )
    model.add_callback("on_train_epoch_end", lambda _: torch.cuda.set_sync_debug_mode("default"))
    try:
        model.train(data=str(data), **nano.options(tmp_path, "run", device=0, **changes))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert load_checkpoint(tmp_path / "run" / "weights" / "last.pt").state["iteration"] == 18


@pytest.mark.parametrize("augment_on", ["cpu", "device"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_whole_while_the_device_is_busy(tmp_path, data, augment_on, workers):
    def compare(trainer):
        loader, device = trainer.train_loader, trainer.device
        expected = [batch.to("cpu") for batch in loader.epoch(0)]
        load, found = torch.rand(4096, 4096, device=device), []
        for batch in feed(loader.epoch(0), device):
            for _ in range(20):
                load = (load @ load).softmax(0)
            assert batch.images.device == batch.targets.boxes.device == device
            found.append((batch.images.clone(), batch.targets.map(torch.clone)))
        for batch, (images, targets) in zip(expected, found, strict=True):
            difference = (images.cpu().int() - batch.images.int()).abs()
            assert difference.max() <= (augment_on == "device")  # last digits of floats
            for name in ("classes", "boxes", "mask"):
                assert torch.equal(getattr(targets, name).cpu(), getattr(batch.targets, name))
        trainer.stop = True

    model = YOLO(nano.write_network(tmp_path))
    model.add_callback("on_train_start", compare)
    given = {"device": 0, "augment_on": augment_on, "workers": workers}
    model.train(data=str(data), **nano.options(tmp_path, "run", **given))


@pytest.mark.processes
def test_cuda_graphs_train_as_plain_steps_do(tmp_path, data):
    """Accumulated gradients outlive the replay of a graph."""
    losses = []
    for compile_ in (False, "reduce-overhead"):
        model = YOLO(nano.write_network(tmp_path))
        given = {"device": 0, "amp": "fp32", "compile": compile_, "nbs": 8}
        model.train(data=str(data), **nano.options(tmp_path, str(compile_), **given))
        history = model.trainer.history
        losses.append([row[f"train/{name}_loss"] for row in history for name in ("box", "cls")])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


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
