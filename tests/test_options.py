# SPDX-License-Identifier: Apache-2.0
"""What a call runs with: keywords, files of options of any origin, what a model brings."""

from __future__ import annotations

import logging

import pytest

from peer_files import ARGS
from yolo.cfg.load import write_yaml
from yolo.errors import ConfigError
from yolo.options import resolve_call, with_file
from yolo.tasks.spec import TASKS


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "args.yaml"
    path.write_text(ARGS)
    return path


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("mode", ["train", "val", "predict", "export"])
def test_the_args_of_a_run_elsewhere_serve_every_mode(file, name, mode, caplog):
    caplog.set_level(logging.INFO, "yolo")
    config = resolve_call(TASKS[name], mode, {"imgsz": 64}, {"cfg": file, "workers": 3})
    assert (config.batch, config.imgsz, config.workers) == (64, 32, 3)
    assert config.model is None
    lines = [record.getMessage() for record in caplog.records]
    (line,) = [text for text in lines if "without effect" in text]
    assert f"args.yaml: without effect in {mode}: " in line
    listed = line.rpartition(": ")[2].split(", ")
    assert "cls_remap" in listed
    assert ("epochs" in listed) == (mode != "train")
    assert not {"imgsz", "batch", "workers", "conf"} & {*listed}
    others = [text for text in lines if text != line]
    assert all("keras" in text for text in others), others


def test_a_value_that_is_the_default_was_not_chosen(file):
    """Else a file that lists lr0 at its default would overrule optimizer=auto."""
    config = resolve_call(TASKS["detect"], "train", {}, {"cfg": file})
    assert {"epochs", "hsv_h", "batch"} <= config.model_fields_set
    assert not {"lr0", "momentum", "iou", "conf"} & config.model_fields_set
    assert config.conf == 0.001
    classify = TASKS["classify"]
    brought = classify.defaults_for("train")
    write_yaml(file, {name: type(classify.train_config()).model_fields[name].default
                      for name in brought})  # fmt: skip
    assert brought
    chosen = resolve_call(classify, "train", {}, {"cfg": file})
    for name in brought:  # but it is chosen where the task or the model would have another
        assert getattr(chosen, name) != brought[name]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("epohcs: 3", r"unknown option 'epohcs' \(train\)\. Similar: 'epochs'"),
        ("augment: true", "'augment' .*isn't offered"),
        ("epochs: many", "'epochs' .*expected int"),
        ("plugins: a.py", "a file can't import code"),
    ],
)
def test_what_a_file_may_not_hold(tmp_path, line, text):
    (tmp_path / "a.yaml").write_text(line)
    with pytest.raises(ConfigError, match=text):
        resolve_call(TASKS["detect"], "train", {}, {"cfg": tmp_path / "a.yaml"})


def test_layers_in_their_order(tmp_path):
    write_yaml(tmp_path / "a.yaml", {"imgsz": 96, "conf": 0.5, "batch": 4})
    spec, base = TASKS["detect"], {"imgsz": 64, "data": "inherited", "epochs": 3}
    given = {"cfg": tmp_path / "a.yaml", "batch": 2}
    config = resolve_call(spec, "predict", base, given)
    assert (config.imgsz, config.conf, config.batch, config.data) == (96, 0.5, 2, "inherited")
    assert given == {"cfg": tmp_path / "a.yaml", "batch": 2}
    assert with_file(spec.predict_config, {}, {"conf": 0.1}) == {"conf": 0.1}


def test_another_task(tmp_path):
    with pytest.raises(ConfigError, match="this model is for 'pose'"):
        resolve_call(TASKS["pose"], "val", {}, {"task": "detect"})
