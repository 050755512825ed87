# SPDX-License-Identifier: Apache-2.0
"""The validation loop: what it leaves alone, what it fires, what it writes."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rectangles import NAMES, Finder, draw_dataset, loader_of, validator
from yolo.engine.events import Callbacks
from yolo.engine.validator import evaluating
from yolo.errors import DataError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("rectangles"))


class SumOfTargets(nn.Module):
    """Stands for a criterion: one term counts the objects of an image."""

    def forward(self, raw, targets):
        count = targets.mask.sum() / len(targets.mask)
        return SimpleNamespace(total=count, parts={"box": count, "cls": raw["y"].new_tensor(2.0)})


def test_model_comes_back_as_it_was(data, tmp_path):
    model = Finder().train()
    model.norm.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    validator(tmp_path).run(model, loader_of(data))
    assert (model.training, model.norm.training) == (True, False)
    assert set(model.seen_modes) == {(False, False)}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_modes_return_even_after_an_error():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)).train()
    model[0].eval()
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert [m.training for m in model.modules()] == [True, False, True]


def test_events_and_attributes(data, tmp_path):
    log = []
    callbacks = Callbacks()
    for event in ("on_val_start", "on_val_batch_start", "on_val_batch_end", "on_val_end"):
        callbacks.add(event, lambda v, e=event: log.append((e, v.batch_i, v.seen)))
    judge = validator(tmp_path, callbacks)
    metrics = judge.run(Finder(), loader_of(data, batch=4, rect=False))
    assert log == [
        ("on_val_start", 0, 0),
        ("on_val_batch_start", 0, 0),
        ("on_val_batch_end", 0, 4),
        ("on_val_batch_start", 1, 4),
        ("on_val_batch_end", 1, 6),
        ("on_val_end", 1, 6),
    ]
    assert judge.metrics is metrics
    assert judge.confusion_matrix is metrics.confusion_matrix
    assert judge.names == NAMES
    assert judge.device == torch.device("cpu")
    assert judge.save_dir == metrics.save_dir == tmp_path
    assert judge.speed["inference"] > 0
    assert judge.speed["postprocess"] > 0
    assert judge.speed["loss"] == 0
    assert not judge.training
    assert judge.jdict == []
    assert not list(tmp_path.iterdir())  # nothing was asked for


def test_losses_are_means_over_images(data, tmp_path):
    for batch in (1, 4):
        judge = validator(tmp_path)
        judge.run(Finder(), loader_of(data, batch), SumOfTargets())
        assert judge.losses == pytest.approx({"val/box_loss": 15 / 6, "val/cls_loss": 2})
        assert judge.speed["loss"] > 0


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_batch_size_changes_nothing(data, tmp_path, batch):
    expected = validator(tmp_path).run(Finder(), loader_of(data, 2))
    metrics = validator(tmp_path).run(Finder(), loader_of(data, batch))
    assert metrics.results_dict == expected.results_dict
    assert 0.3 < metrics.results_dict["metrics/mAP50-95(B)"] < 1


def test_a_validator_may_run_again(data, tmp_path):
    judge = validator(tmp_path, save_json=True)
    first = judge.run(Finder(), loader_of(data)).results_dict
    rows = len(judge.jdict)
    assert judge.run(Finder(), loader_of(data)).results_dict == first
    assert len(judge.jdict) == rows


def test_files(data, tmp_path):
    validator(tmp_path, plots=True).run(Finder(), loader_of(data, 1))
    names = {file.name for file in tmp_path.iterdir()}
    assert {f"val_batch{i}_{kind}.jpg" for i in range(3) for kind in ("labels", "pred")} <= names
    assert {"confusion_matrix.png", "confusion_matrix_normalized.png", "BoxPR_curve.png"} <= names
    assert "val_batch3_labels.jpg" not in names
    assert "predictions.json" not in names


def test_an_epochs_validation_writes_nothing(data, tmp_path):
    judge = validator(tmp_path, plots=True, save_json=True, save_txt=True)
    judge.run(Finder(), loader_of(data), final=False)
    assert judge.training
    assert not list(tmp_path.iterdir())


def test_table_is_logged(data, tmp_path, caplog):
    caplog.set_level(logging.INFO, "yolo")
    validator(tmp_path).run(Finder(), loader_of(data))
    text = "\n".join(r.getMessage() for r in caplog.records)
    assert "Class" in text
    assert "green" in text
    caplog.clear()
    validator(tmp_path, verbose=False).run(Finder(), loader_of(data))
    assert "Class" not in "\n".join(r.getMessage() for r in caplog.records)


def test_unknown_class(data, tmp_path):
    with pytest.raises(DataError, match=r"class id 2.*knows 2 classes"):
        validator(tmp_path).run(Finder({0: "red", 1: "green"}), loader_of(data))


def test_label_files_never_clash_nor_outlive_their_run(tmp_path):
    judge = validator(tmp_path)
    judge.text_rows = lambda record: [record.path] if record.index < 3 else []
    paths = ["x/a.png", "y/a.png", "z/a-2.png", "x/b.png"]
    judge.metrics.records = [SimpleNamespace(index=i, path=p) for i, p in enumerate(paths)]
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "b.txt").write_text("of an earlier run")
    judge._write_texts()
    found = {file.name: file.read_text().strip() for file in (tmp_path / "labels").iterdir()}
    assert found == {"a.txt": paths[0], "a-2.txt": paths[1], "a-2-2.txt": paths[2]}
