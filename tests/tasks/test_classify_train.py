# SPDX-License-Identifier: Apache-2.0
"""Training of classifiers: a fit, files of a run, options, exact resume, reuse of the backbone."""

from __future__ import annotations

import csv
import logging

import numpy as np
import pytest
import torch

import nano
from folders import COLOURS, write_folders
from yolo import YOLO
from yolo.engine.checkpoint import load_checkpoint
from yolo.errors import ConfigError
from yolo.tasks.classify.train import class_weights

BACKBONE = nano.NETWORK[: nano.NETWORK.index("head:")]
NAMES = {0: "a", 1: "b", 2: "c"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("classes") / "set", train=8, val=4)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The backbone of `nano`, with a head for classes."""
    text = f"{BACKBONE}head:\n  - [-1, 1, Classify, [nc]]\n"
    return nano.write_network(tmp_path_factory.mktemp("network"), text)


@pytest.fixture(scope="module")
def fitted(network, data, tmp_path_factory):
    """A short training in which the colours are learned; its facade and metrics."""
    model = YOLO(network)
    options = nano.options(tmp_path_factory.mktemp("runs"), "fit", epochs=6, nbs=4, imgsz=32)
    metrics = model.train(data=str(data), **{**options, "plots": True, "workers": 2})
    return model, metrics


def run(network, data, project, name, callbacks=None, **changes):
    model = YOLO(network)
    for event, function in (callbacks or {}).items():
        model.add_callback(event, function)
    model.train(data=str(data), **nano.options(project, name, imgsz=32, **changes))
    return load_checkpoint(project / name / "weights" / "last.pt")


def assert_identical(a, b):
    assert nano.same(a.weights, b.weights)
    assert nano.same(a.state["model"], b.state["model"])
    for x, y in zip(a.history, b.history, strict=True):
        assert {k: v for k, v in x.items() if k != "time"} == {
            k: v for k, v in y.items() if k != "time"
        }


def test_a_short_fit_learns_the_colours(fitted):
    model, metrics = fitted
    assert metrics.top1 == 1.0
    assert metrics.results_dict["fitness"] == metrics.fitness == 1.0
    assert model.names == dict(enumerate(COLOURS))
    assert metrics.confusion_matrix.matrix.tolist() == np.diag([4, 4, 4]).tolist()


def test_columns_and_files(fitted):
    _, metrics = fitted
    folder = metrics.save_dir
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert list(rows[0])[:6] == [
        "epoch", "time", "train/loss", "metrics/accuracy_top1", "metrics/accuracy_top5", "val/loss",
    ]  # fmt: skip
    assert float(rows[-1]["train/loss"]) < 0.6 * float(rows[0]["train/loss"])
    for name in (
        "args.yaml", "results.png", "labels.jpg", "train_batch0.jpg", "val_batch0_labels.jpg",
        "val_batch0_pred.jpg", "confusion_matrix.png", "confusion_matrix_normalized.png",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 1000 or name == "args.yaml", name


def test_reloaded_and_saved_it_scores_the_same(fitted, data, tmp_path):
    model, metrics = fitted
    model.save(tmp_path / "copy.pt")
    again = YOLO(tmp_path / "copy.pt")
    assert again.task == "classify"
    scores = again.val(data=str(data), imgsz=32, plots=False, verbose=False, device="cpu")
    assert scores.results_dict == metrics.results_dict
    image = data / "val" / "red" / "0.png"
    one, two = (m.predict(image, imgsz=32, verbose=False)[0].probs for m in (model, again))
    assert torch.equal(one.data, two.data)
    assert model.names[one.top1] == "red"


def test_workers_change_nothing(network, data, tmp_path):
    options = {"epochs": 1, "dropout": 0.2, "sampler": "balanced"}
    alone = run(network, data, tmp_path, "w0", **options)
    assert_identical(run(network, data, tmp_path, "w2", workers=2, **options), alone)


class Killed(BaseException):
    """Stands for the end of the process."""


def test_resumed_it_is_identical(network, data, tmp_path):
    options = {
        "epochs": 2, "dropout": 0.3, "sampler": "balanced", "save_every": 3, "batch": 5,
        "class_weights": {"red": 2.0}, "label_smoothing": 0.1,
    }  # fmt: skip
    whole = run(network, data, tmp_path, "whole", **options)

    def kill(trainer):
        if trainer.iteration == 8:  # three steps into the second epoch; saved two before
            raise Killed

    with pytest.raises(Killed):
        run(network, data, tmp_path, "cut", {"on_train_batch_end": kill}, **options)
    last = tmp_path / "cut" / "weights" / "last.pt"
    YOLO(last).train(resume=True)
    assert_identical(load_checkpoint(last), whole)


def test_options_reach_their_parts(network, data, tmp_path, caplog):
    seen = {}

    def look(trainer):
        seen["drop"] = trainer.model.head.drop.p
        seen["weights"] = trainer.criterion.weights.tolist()
        seen["smoothing"] = trainer.criterion.label_smoothing
        seen["augment"] = trainer.train_loader._line.maker.augment
        raise Killed

    with caplog.at_level(logging.WARNING), pytest.raises(Killed):
        run(
            network, data, tmp_path, "o", {"on_train_start": look}, dropout=0.25, scale=0.3,
            label_smoothing=0.1, class_weights=[1, 2, 3.0], auto_augment=None, erasing=0.0,
            mixup=0.5, mosaic=1.0,
        )  # fmt: skip
    assert seen["drop"] == 0.25
    assert seen["weights"] == [1, 2, 3]
    assert seen["smoothing"] == 0.1
    assert (seen["augment"].scale, seen["augment"].auto_augment) == (0.3, None)
    assert seen["augment"].erasing == 0
    warned = [r.getMessage() for r in caplog.records]
    assert warned == ["option 'mixup' has no effect on crops of whole images"]


def test_class_weights():
    assert class_weights(None, NAMES, None) is None
    balanced = class_weights("balanced", NAMES, lambda: np.array([30, 10, 0]))
    assert balanced == pytest.approx([2 / 3, 2.0, 1.0])  # 30 * 2/3 = 10 * 2; mean 1 over 40
    assert class_weights({"b": 3.0}, NAMES, None) == [1.0, 3.0, 1.0]
    assert class_weights((1, 2, 0), NAMES, None) == [1.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ((1.0, 2.0), "expected 3 numbers from 0 on"),
        ((0.0, 0.0, 0.0), "not all 0"),
        ((1.0, -1.0, 1.0), "from 0 on"),
        ({"d": 2.0}, "expected names of the 3 classes, found 'd'"),
    ],
)
def test_bad_class_weights(wanted, message):
    with pytest.raises(ConfigError, match=message):
        class_weights(wanted, NAMES, None)


def test_a_classifier_starts_a_detector(fitted, tmp_path, request):
    """Same rows, same weights before the first step; the rest is fresh, and listed."""
    model, metrics = fitted
    best = metrics.save_dir / "weights" / "best.pt"
    boxes = request.getfixturevalue("detection_data")
    seen, lines = {}, []

    def look(trainer):
        seen.update({k: v.clone() for k, v in trainer.model.state_dict().items()})

    def listen(trainer):
        trainer.progress.line = lines.append

    detector = YOLO(nano.write_network(tmp_path))
    detector.add_callback("on_pretrain_routine_start", listen)
    detector.add_callback("on_train_start", look)
    options = nano.options(tmp_path, "detector", epochs=1)
    detector.train(data=str(boxes), pretrained=str(best), **options)
    assert detector.task == "detect"
    given = model.model.state_dict()
    shared = [key for key in seen if key in given]
    assert {key.split(".")[1] for key in shared} == set("01234")
    assert all(torch.equal(seen[key], given[key].cpu()) for key in shared)
    (told,) = [line for line in lines if "weights of" in line]
    assert f"took {len(shared)} of {len(seen)} entries" in told
    assert "new: model.5" in told


@pytest.fixture
def detection_data(tmp_path):
    from yolo.data.shapes import write_shapes

    return write_shapes(tmp_path / "boxes", train=4, val=2, size=96)
