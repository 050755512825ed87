# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import sys

import pytest

import nano
from yolo import YOLO
from yolo.data.shapes import write_shapes
from yolo.engine.tensorboard import tensorboard_callbacks
from yolo.errors import MissingPackageError


def test_without_the_package_the_message_has_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(MissingPackageError, match=r'pip install "plainyolo\[tensorboard\]"'):
        tensorboard_callbacks()


def curves(folder):
    """Read the event files: name -> [(step, value)]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder)).Reload()
    return {
        name: [(event.step, event.value) for event in reader.Scalars(name)]
        for name in reader.Tags()["scalars"]
    }


def test_the_curves_are_the_columns_of_results_csv_over_a_resume_too(tmp_path):
    pytest.importorskip("tensorboard")
    data = write_shapes(tmp_path / "set", train=6, val=4, size=(64, 64))
    network = nano.write_network(tmp_path)
    callbacks = tensorboard_callbacks()

    def train(model, **options):
        for event, callback in callbacks.items():
            model.add_callback(event, callback)
        model.train(**options)

    train(YOLO(network), data=str(data), **nano.options(tmp_path, "run", epochs=2))
    run = tmp_path / "run"
    train(YOLO(run / "weights" / "last.pt"), resume=True, epochs=3)
    with (run / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = curves(run)
    assert found.keys() == rows[0].keys() - {"epoch", "time"}
    assert "metrics/mAP50-95(B)" in found
    assert "lr/pg0" in found
    for name, curve in found.items():
        assert [step for step, _ in curve] == [1, 2, 3], name
        assert [value for _, value in curve] == pytest.approx([float(row[name]) for row in rows])
