# SPDX-License-Identifier: Apache-2.0
"""Batches on their way: one ahead, in order; what is ahead changes nothing in a run."""

from __future__ import annotations

import pytest
import torch

import nano
from yolo import YOLO
from yolo.engine import trainer as training
from yolo.engine.checkpoint import load_checkpoint
from yolo.engine.feed import feed, one_ahead


def test_other_devices_get_the_very_same_iterable():
    batches = iter([])
    assert feed(batches, torch.device("cpu")) is batches


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_one_is_ahead_and_the_order_stays(count):
    asked = []

    def items():
        for number in range(count):
            asked.append(number)
            yield number

    for place, item in enumerate(one_ahead(items())):
        assert item == place
        assert len(asked) == min(place + 2, count)
    assert asked == list(range(count))


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("augment_on", ["cpu", "device"])
def test_a_run_that_is_fed_ahead_goes_on_bit_for_bit(
    network, data, tmp_path, monkeypatch, augment_on
):
    """As on CUDA, without its streams: batches are made, moved and painted one ahead."""
    given = {"data": str(data), "augment_on": augment_on}

    def final(name):
        return load_checkpoint(tmp_path / name / "weights" / "last.pt")

    def kill(trainer):
        if trainer.iteration == 5:
            raise Killed

    YOLO(network).train(**given, **nano.options(tmp_path, "plain"))

    def ahead(batches, device):
        return one_ahead(batch.to(device, non_blocking=True) for batch in batches)

    monkeypatch.setattr(training, "feed", ahead)
    model = YOLO(network)
    model.add_callback("on_train_batch_end", kill)
    with pytest.raises(Killed):
        model.train(**given, **nano.options(tmp_path, "cut", save_every=3))
    YOLO(tmp_path / "cut" / "weights" / "last.pt").train(resume=True)
    assert nano.same(final("plain").weights, final("cut").weights)
    assert final("plain").state["iteration"] == final("cut").state["iteration"]
