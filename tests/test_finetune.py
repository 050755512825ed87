# SPDX-License-Identifier: Apache-2.0
"""The commonest use: a trained detector goes on with other classes, or with more."""

from __future__ import annotations

import logging

import pytest
import torch
import yaml

import nano
from yolo import YOLO
from yolo.backends import open_backend
from yolo.data.shapes import write_shapes
from yolo.engine.checkpoint import load_checkpoint

# nbs=16: these sets are too small to gather 64 images for a step
OPTIONS = {"imgsz": 128, "batch": 16, "nbs": 16, "device": "cpu", "plots": False, "verbose": True}


def with_two_classes(folder):
    """Rewrite a set of five classes into two others: 0, 2, 4 -> 1 and 1, 3 -> 0."""
    data = write_shapes(folder, train=96, val=48, size=128, seed=1)
    for label in folder.glob("labels/*/*.txt"):
        rows = [line.split(" ", 1) for line in label.read_text().splitlines()]
        label.write_text("".join(f"{1 - int(c) % 2} {rest}\n" for c, rest in rows))
    content = yaml.safe_load(data.read_text()) | {"names": {0: "odd", 1: "even"}}
    content.pop("nc", None)
    data.write_text(yaml.safe_dump(content))
    return data


@pytest.mark.slow
def test_fine_tuning_beats_training_from_scratch_after_five_epochs(tmp_path, caplog):
    first = write_shapes(tmp_path / "first", train=320, val=48, size=128)
    other = with_two_classes(tmp_path / "other")
    model = YOLO("yolov8n.yaml")
    model.train(data=str(first), epochs=24, project=str(tmp_path), name="base", **OPTIONS)
    common = {"data": str(other), "epochs": 5, "project": str(tmp_path), **OPTIONS}
    with caplog.at_level(logging.INFO, "yolo"):
        best = tmp_path / "base" / "weights" / "best.pt"
        tuned = YOLO(best).train(name="tuned", **common)
    scratch = YOLO("yolov8n.yaml").train(name="scratch", **common)
    assert "took" in caplog.text
    assert "model.22.cv3.0.2" in caplog.text  # the class branch's last layer is new
    assert tuned.box.map > scratch.box.map + 0.05
    assert YOLO(tmp_path / "tuned" / "weights" / "best.pt").names == {0: "odd", 1: "even"}


@pytest.fixture(scope="module")
def trained(network, data, tmp_path_factory):
    """The best.pt of a run of one epoch, on five classes."""
    return nano.train(tmp_path_factory.mktemp("start"), network=network, data=data).trainer.best


def with_names(folder, names):
    """Write a set whose classes have these names, objects of the first five."""
    file = write_shapes(folder, train=8, val=4, size=96)
    content = yaml.safe_load(file.read_text()) | {"names": dict(enumerate(names))}
    file.write_text(yaml.safe_dump(content))
    return file


def test_added_classes_are_trained_resumed_and_exported(train, trained, tmp_path):
    model = YOLO(trained)
    names = [*model.names.values(), "cat", "dog"]
    assert model.add_classes(["cat", "dog"]) is model
    grown = tmp_path / "grown.pt"
    model.save(grown)
    start = load_checkpoint(grown).weights
    options = {"data": with_names(tmp_path / "more", names), "epochs": 2, "save_every": 1}

    def check_start(trainer):
        assert nano.same(start, trainer.model.state_dict())

    whole = train("whole", model=model, callbacks={"on_train_start": check_start}, **options)

    def kill(trainer):
        if trainer.iteration == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("cut", model=YOLO(grown), callbacks={"on_train_batch_end": kill}, **options)
    last = tmp_path / "cut" / "weights" / "last.pt"
    YOLO(last).train(resume=True)
    found = load_checkpoint(last)
    assert nano.same(nano.weights_of(whole), found.weights)
    assert [*found.names.values()] == names
    key = "model.5.cv3.0.2.weight"
    assert (found.weights[key][5:] != start[key][5:]).any()
    best = YOLO(last.with_name("best.pt"))
    exported = best.export(format="torchscript", imgsz=64, verbose=False)
    assert [*open_backend(exported).names.values()] == names


def test_data_that_name_further_classes_leave_the_old_ones_as_they_are(
    train, trained, tmp_path, caplog
):
    """The branch of 16 channels isn't widened to the 25 of a fresh network."""
    caplog.set_level(logging.INFO, "yolo")
    old = YOLO(trained)
    names = [*old.names.values(), *(f"more{i}" for i in range(20))]
    x, found = torch.rand(2, 3, 64, 64).to(memory_format=torch.channels_last), {}

    def look(trainer):
        with torch.no_grad():
            found.update(trainer.model.eval().raw(x))
        trainer.stop = True

    with torch.no_grad():
        before = old.model.to(memory_format=torch.channels_last).eval().raw(x)
    entries = len(old.model.state_dict())
    file = with_names(tmp_path / "more", names)
    train(model=old, data=file, callbacks={"on_train_start": look}, verbose=True)
    assert torch.equal(found["scores"][:, :5], before["scores"])
    assert torch.equal(found["boxes"], before["boxes"])
    assert f"took {entries} of {entries} entries" in caplog.text
    again = load_checkpoint(tmp_path / "run" / "weights" / "last.pt")
    assert (again.network["class_width"], again.network["class_pieces"]) == (5, [5, 20])
