# SPDX-License-Identifier: Apache-2.0
"""Every loss and assigner trains every box task by its name: one step each, on a real batch."""

from __future__ import annotations

import copy

import pytest
import torch

import nano
from yolo import TASKS, YOLO
from yolo.errors import ConfigError, UnknownNameError
from yolo.nn.class_losses import CLASS_LOSSES

BOX_TASKS = [name for name, spec in TASKS.items() if spec.outputs.boxes]


def switches(criterion):
    """All values of the options that choose parts."""
    for name in criterion.assigners:
        yield {"assigner": name}
    for name in criterion.box_losses:
        yield {"box_loss": name}
    for name in CLASS_LOSSES:
        yield {"cls_loss": name}
    yield {"assigner": {"name": "simota", "topk": 5}, "cls_loss": {"name": "focal", "gamma": 1.5}}


@pytest.mark.parametrize("task", BOX_TASKS)
def test_one_step_with_each(task, tmp_path):
    spec = TASKS[task]
    seen = []

    def steps(trainer):
        batch = next(iter(trainer.train_loader.epoch(0)))
        args, start = trainer.args, copy.deepcopy(trainer.model.state_dict())
        for changes in switches(spec.criterion):
            trainer.args = args.model_copy(update=changes)
            trainer.criterion = trainer.build_criterion()
            trainer.model.load_state_dict(start)
            trainer.train_step(batch)
            trainer.optimizer_step()
            parts = {name: float(value) for name, value in trainer.loss_items.items()}
            assert tuple(parts) == spec.criterion.names, changes
            assert torch.tensor([*parts.values()]).isfinite().all(), changes
            assert parts["box"] > 0, changes
            assert parts["cls"] > 0, changes
            after = trainer.model.state_dict()
            assert any(not torch.equal(start[key], after[key]) for key in start), changes
            seen.append(tuple(parts.items()))
        trainer.stop = True

    model = YOLO(nano.task_network(tmp_path, spec))
    model.add_callback("on_train_start", steps)
    data = nano.task_data(tmp_path, spec)
    model.train(data=str(data), **nano.options(tmp_path, "run", lr0=1e-4, optimizer="SGD", nbs=4))
    # Each option has its default among the names; otherwise no switch does the same as another.
    assert len({*seen}) == len(seen) - 2


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"cls_loss": "varifocl"}, UnknownNameError, "unknown cls_loss 'varifocl'.*varifocal"),
        ({"box_loss": {"name": "siou", "thta": 2}}, ConfigError, "expected theta, found 'thta'"),
        ({"assigner": "simotta"}, UnknownNameError, "simota"),
        ({"assigner": {"topk": 5}}, ConfigError, "needs a 'name'"),
    ],
)
def test_a_wrong_name_is_refused_before_the_first_batch(
    network, data, tmp_path, option, error, message
):
    with pytest.raises(error, match=message):
        YOLO(network).train(data=str(data), **nano.options(tmp_path, "run", **option))
