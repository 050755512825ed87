# SPDX-License-Identifier: Apache-2.0
"""The batch that fits, from made-up measurements of memory."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import nano
from yolo.data.datasets import read_dataset
from yolo.engine import autobatch, network
from yolo.engine.autobatch import fitting_batch
from yolo.errors import ConfigError
from yolo.tasks.spec import TASKS

GIB = 1 << 30


@pytest.fixture
def device(monkeypatch):
    """A device of 16 GiB on which a step takes 1 GiB, and half a GiB an image."""
    state = SimpleNamespace(total=16 * GIB, batch=0, steps=[])

    def step(trainer, model, batch):
        state.steps.append(batch)
        state.batch = batch
        if GIB + batch * GIB // 2 > state.total:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(autobatch, "_step", step)
    for name, fake in {
        "get_device_properties": lambda d: SimpleNamespace(total_memory=state.total),
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda d: None,
        "max_memory_reserved": lambda d: GIB + state.batch * GIB // 2,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return state


def trainer():
    return SimpleNamespace(
        device=torch.device("cuda"),
        learner=torch.nn.Identity(),
        args=SimpleNamespace(batch=-1),
        imgsz=(64, 64),
    )


@pytest.mark.parametrize(
    ("total", "share", "expected"), [(16, 0.5, 14), (16, 1.0, 30), (64, 0.6, 74)]
)
def test_memory_is_a_line_over_the_batch(device, total, share, expected):
    device.total = total * GIB
    assert fitting_batch(trainer(), share) == expected
    assert device.steps == sorted(set(device.steps))


def test_too_little_for_one_image(device):
    device.total = GIB
    with pytest.raises(ConfigError, match="not even one image"):
        fitting_batch(trainer(), 0.6)


def test_a_device_that_one_image_fills(device):
    device.total = int(1.6 * GIB)
    assert fitting_batch(trainer(), 0.6) == 1


@pytest.mark.parametrize("task", list(TASKS))
def test_a_made_up_step_has_what_the_task_needs(task, tmp_path):
    """The step itself, on the CPU: a trainer as it is when the batch is measured."""
    spec = TASKS[task]
    model = spec.model(nano.task_network(tmp_path, spec))
    config = spec.train_config(multi_scale=0.5, device="cpu", workers=0)
    keys = {"names": list(model.names.values()), "kpt_shape": (17, 3)}
    trainer = spec.trainer(config, spec, model.yaml)
    item = {"image": np.zeros((64, 64), np.uint8), "image_class": 0}
    trainer.data, trainer.save_dir = read_dataset({"train": [item], **keys}), tmp_path
    trainer.imgsz, trainer.amp, trainer.amp_dtype = (64, 64), False, None
    trainer.model, trainer.frozen = network.build_model(trainer)
    trainer.criterion = trainer.build_criterion()
    seen = []
    trainer.criterion.register_forward_hook(lambda _, args, report: seen.append((args[1], report)))
    autobatch._step(trainer, trainer.model.train(), 2)
    ((targets, report),) = seen
    assert len(targets.boxes) == 2
    assert targets.size == (96, 96)
    assert torch.isfinite(report.total)
    assert all(float(term) > 0 for term in report.parts.values())
    assert all(p.grad is None for p in trainer.model.parameters())
