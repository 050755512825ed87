# SPDX-License-Identifier: Apache-2.0
"""Validation of classifiers: numbers, files, and classes by their names."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from folders import COLOURS, write_folders
from yolo import TASKS
from yolo.errors import DataError
from yolo.tasks.classify.metrics import ClassifyMetrics

SPEC = TASKS["classify"]


class ByColour(nn.Module):
    """Scores each class by how strong its colour is in the image (RGB)."""

    stride = (1,)

    def __init__(self, names):
        super().__init__()
        self.names = dict(enumerate(names))
        self.colours = torch.tensor(
            [COLOURS.get(n, (0, 0, 0))[::-1] for n in names], dtype=torch.float32
        )

    def raw(self, x):
        return {"logits": x.mean((2, 3)) @ self.colours.T / 100}

    def decode(self, raw):
        return raw["logits"].softmax(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("classes") / "set", train=2, val=3)


def validate(data, folder, names=tuple(COLOURS), criterion=None, **options):
    options = {"imgsz": 32, "batch": 4, "workers": 0, "verbose": False, "plots": False, **options}
    config = SPEC.val_config(data=str(data), **options)
    runner = SPEC.validator(config, SPEC, save_dir=folder)
    model = ByColour(names)
    loader = runner.build_loader(model)
    return runner, runner.run(model, loader, criterion)


def test_scores(data, tmp_path):
    runner, metrics = validate(data, tmp_path, criterion=SPEC.criterion())
    assert isinstance(metrics, ClassifyMetrics)
    assert metrics.top1 == 1.0
    assert runner.seen == 9
    assert runner.confusion_matrix.matrix.tolist() == np.diag([3, 3, 3]).tolist()
    assert list(runner.losses) == ["val/loss"]
    assert 0 < runner.losses["val/loss"] < np.log(3)
    assert set(metrics.speed) == {"preprocess", "inference", "loss", "postprocess"}
    assert not list(tmp_path.iterdir())


def test_the_batch_size_changes_nothing(data, tmp_path):
    one, two = (validate(data, tmp_path, batch=n)[1] for n in (1, 9))
    assert [r.image_id for r in one.records] == [r.image_id for r in two.records]
    for a, b in zip(one.records, two.records, strict=True):
        np.testing.assert_allclose(a.found.scores, b.found.scores, rtol=1e-6)


def test_classes_count_by_their_names(data, tmp_path):
    """The model has further classes, in another order."""
    names = ("white", "red", "blue", "green", "black")
    _, metrics = validate(data, tmp_path, names)
    assert metrics.top1 == 1.0
    assert metrics.nt_per_class.tolist() == [0, 3, 3, 3, 0]
    with pytest.raises(DataError, match=r"expected classes that the model knows .* found green"):
        validate(data, tmp_path, ("red", "blue"))
    _, metrics = validate(data, tmp_path, ("0", "1", "2"))  # knows no names: ids as they are
    assert metrics.nt_per_class.tolist() == [3, 3, 3]


def test_files(data, tmp_path):
    _, metrics = validate(data, tmp_path, save_txt=True, save_json=True, plots=True)
    rows = json.loads((tmp_path / "predictions.json").read_text())
    assert len(rows) == 9 * 3
    assert set(rows[0]) == {"image_id", "file_name", "category_id", "score"}
    best = {row["image_id"]: row["category_id"] for row in reversed(rows)}
    truth = {r.image_id: r.truth.classes[0] + 1 for r in metrics.records}
    assert best == truth
    texts = sorted((tmp_path / "labels").iterdir())
    assert len(texts) == 9
    first = texts[0].read_text().splitlines()
    assert [len(line.split()) for line in first] == [2, 2, 2]
    assert first[0].split()[1] in COLOURS
    for name in ("val_batch0_labels.jpg", "val_batch2_pred.jpg", "confusion_matrix.png"):
        assert (tmp_path / name).is_file()
