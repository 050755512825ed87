# SPDX-License-Identifier: Apache-2.0
"""Options of classification: familiar names, values and their forms in files."""

from __future__ import annotations

import logging

import pytest

from yolo.cfg.load import read_options, resolve, write_yaml
from yolo.cfg.schema import TrainConfig
from yolo.engine.checkpoint import plain
from yolo.errors import ConfigError
from yolo.tasks.classify.config import ClassifyTrainConfig


def test_label_smoothing_is_an_option_here(caplog):
    with caplog.at_level(logging.WARNING):
        assert resolve(ClassifyTrainConfig, {"label_smoothing": 0.1}).label_smoothing == 0.1
        assert not caplog.records
        resolve(TrainConfig, {"label_smoothing": 0.1})
        assert "no effect" in caplog.text


@pytest.mark.parametrize("value", [None, "balanced", [1, 2.5], {"cat": 2, "dog": 0.5}])
def test_class_weights_survive_a_file(value, tmp_path):
    config = resolve(ClassifyTrainConfig, {"class_weights": value})
    write_yaml(tmp_path / "args.yaml", plain(config.model_dump()))
    assert resolve(ClassifyTrainConfig, read_options(tmp_path / "args.yaml", {})) == config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("class_weights", "equal"), ("class_weights", {"a": "b"}), ("auto_augment", "random"),
        ("erasing", 1.5), ("dropout", 1), ("label_smoothing", 1.0), ("sampler", "even"),
    ],
)  # fmt: skip
def test_bad_values(name, value):
    with pytest.raises(ConfigError, match=f"option '{name}'"):
        resolve(ClassifyTrainConfig, {name: value})
