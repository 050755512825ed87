# SPDX-License-Identifier: Apache-2.0
"""Figures are written, hold what they should, and leave matplotlib's global state alone."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest

from coco_sets import NAMES, BoxMetrics, records, scored
from yolo.engine import charts
from yolo.engine.coco_eval import Objects


def picture(path):
    image = cv2.imread(str(path))
    assert image is not None
    assert image.std() > 5  # something is drawn
    return image


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "results.csv"
    file.write_text(
        "epoch,time,train/box_loss,metrics/mAP50(B),val/box_loss,lr/pg0,note\n"
        "1,3.1,2.5,,,0.01,a\n2,6.0,2.0,0.4,2.2,0.005,b\n3,9.0,1.5,,,0.001,c\n",
        encoding="utf-8",
    )
    return file


def test_columns_keep_their_gaps(table):
    epochs, columns = charts.read_columns(table)
    assert epochs.tolist() == [1, 2, 3]
    assert columns["train/box_loss"].tolist() == [2.5, 2.0, 1.5]
    assert np.isnan(columns["metrics/mAP50(B)"]).tolist() == [True, False, True]
    assert "time" not in columns


def test_results(table):
    assert charts.plot_results(table) == table.with_name("results.png")
    picture(table.with_name("results.png"))
    other = charts.plot_results(table, table.parent / "deep" / "r.png")
    picture(other)


@pytest.mark.parametrize("text", ["", "epoch,time,train/loss\n", "epoch,note\n1,hello\n"])
def test_results_without_numbers(tmp_path, text):
    (tmp_path / "results.csv").write_text(text, encoding="utf-8")
    assert charts.plot_results(tmp_path / "results.csv") is None


def test_all_figures_of_a_validation(tmp_path):
    truth = Objects(np.array([1, 2]), np.array([[0.0, 0, 40, 40], [50, 50, 90, 80]]))
    found = Objects.found([1, 2], truth.boxes + 2, [0.9, 0.8])
    metrics = scored(BoxMetrics(NAMES, tmp_path), records([truth], [found]))
    files = metrics.plot()
    assert sorted(f.name for f in files) == [
        "BoxF1_curve.png", "BoxPR_curve.png", "BoxP_curve.png", "BoxR_curve.png",
        "confusion_matrix.png", "confusion_matrix_normalized.png",
    ]  # fmt: skip
    for file in files:
        picture(file)


def test_nothing_labelled_still_draws(tmp_path):
    for file in scored(BoxMetrics(NAMES, tmp_path), []).plot():
        assert file.stat().st_size > 0
    charts.plot_labels(np.zeros(0, int), np.zeros((0, 4)), NAMES, tmp_path / "labels.jpg")
    picture(tmp_path / "labels.jpg")


@pytest.mark.parametrize("classes", [3, 40])
def test_labels(tmp_path, classes):
    rng = np.random.default_rng(0)
    names = {i: f"class {i}" for i in range(classes)}
    charts.plot_labels(
        rng.integers(0, classes, 4000), rng.random((4000, 4)), names, tmp_path / "labels.jpg"
    )
    picture(tmp_path / "labels.jpg")


def test_many_classes_still_draw(tmp_path):
    matrix = np.diag(np.arange(61))
    names = [str(i) for i in range(61)]
    picture(charts.plot_confusion_matrix(matrix, names, tmp_path / "confusion_matrix.png"))


def test_no_pyplot(table):
    before = {name for name in sys.modules if name == "matplotlib.pyplot"}
    charts.plot_results(table)
    assert {name for name in sys.modules if name == "matplotlib.pyplot"} == before
