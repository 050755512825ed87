# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from yolo.cfg.schema import (
    CommonConfig,
    PredictConfig,
    TrainConfig,
    ValConfig,
    expected_text,
    option,
    option_rows,
    render_table,
)
from yolo.tasks.detect.config import DetectTrainConfig

TRAIN: dict[str, Any] = {
    "data": None, "epochs": 100, "time": None, "patience": 100, "batch": 16, "imgsz": 640,
    "save": True, "save_period": -1, "cache": False, "device": None, "workers": 8,
    "project": None, "name": None, "exist_ok": False, "pretrained": True, "optimizer": "auto",
    "seed": 0, "deterministic": True, "single_cls": False, "rect": False, "cos_lr": False,
    "close_mosaic": 10, "resume": False, "amp": True, "fraction": 1.0, "freeze": None,
    "multi_scale": 0.0, "val": True, "split": "val", "plots": True, "lr0": 0.01, "lrf": 0.01,
    "momentum": 0.937, "weight_decay": 5e-4, "warmup_epochs": 3, "warmup_momentum": 0.8,
    "warmup_bias_lr": 0.1, "box": 7.5, "cls": 0.5, "dfl": 1.5, "nbs": 64, "hsv_h": 0.015,
    "hsv_s": 0.7, "hsv_v": 0.4, "degrees": 0, "translate": 0.1, "scale": 0.5, "shear": 0,
    "perspective": 0, "flipud": 0, "fliplr": 0.5, "bgr": 0, "mosaic": 1, "mixup": 0,
    "copy_paste": 0, "cutmix": 0, "copy_paste_mode": "flip",
}  # fmt: skip
VAL: dict[str, Any] = {
    "conf": 0.001, "iou": 0.7, "max_det": 300, "agnostic_nms": False, "classes": None,
    "half": False, "save_txt": False, "save_conf": False, "save_json": False, "verbose": True,
    "rect": True, "split": "val", "batch": 16, "plots": True,
}  # fmt: skip
PREDICT: dict[str, Any] = {
    "conf": 0.25, "iou": 0.7, "max_det": 300, "agnostic_nms": False, "classes": None,
    "half": False, "source": None, "stream": False, "vid_stride": 1, "stream_buffer": False,
    "save": False, "save_frames": False, "save_txt": False, "save_conf": False,
    "save_crop": False, "show": False, "show_labels": True, "show_conf": True,
    "show_boxes": True, "line_width": None, "verbose": True, "rect": True, "batch": 1,
}  # fmt: skip
DEFAULTS = [
    (schema, name, value)
    for schema, table in ((DetectTrainConfig, TRAIN), (ValConfig, VAL), (PredictConfig, PREDICT))
    for name, value in table.items()
]


@pytest.mark.parametrize(
    ("schema", "name", "value"), DEFAULTS, ids=[f"{s.for_mode}-{n}" for s, n, _ in DEFAULTS]
)
def test_familiar_default(schema, name, value):
    found = getattr(schema(), name)
    assert found == value
    assert isinstance(found, bool) == isinstance(value, bool)


def test_a_default_passes_its_own_check():
    for schema in (DetectTrainConfig, ValConfig, PredictConfig):
        values = {name: field.default for name, field in schema.model_fields.items()}
        assert schema(**values) == schema()


def test_a_config_is_frozen_and_closed():
    config = TrainConfig()
    with pytest.raises(ValidationError):
        config.epochs = 3
    with pytest.raises(ValidationError):
        TrainConfig(epoch=3)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("save", 1), ("save", 0), ("save", "True"), ("epochs", True), ("epochs", "3"),
        ("epochs", 0), ("epochs", 2.5), ("lr0", True), ("lr0", "0.1"), ("lr0", 1.5),
        ("lr0", float("nan")), ("box", -1.0), ("batch", 0), ("batch", True), ("batch", 1.5),
        ("batch", -2), ("time", 0), ("amp", 1), ("amp", "fp8"), ("cache", "ssd"),
        ("imgsz", 0), ("imgsz", True), ("imgsz", (64,)), ("imgsz", (64, 64, 3)),
        ("imgsz", (64, -1)), ("freeze", True), ("pretrained", 1), ("fraction", 0.0),
        ("optimizer", "lion"), ("name", 5), ("classes", "0"), ("classes", True),
        ("classes", (0.5,)), ("multi_scale", 1), ("save_every", 0), ("save_every", "often"),
        ("augmentations", ("flip",)), ("plugins", 3), ("plugins", (3,)), ("mode", "train"),
        ("split", None), ("workers", -1), ("save_period", -2), ("device", 0.5),
        ("layer_lr", 1.5), ("layer_lr", 0), ("layer_lr", "backbone"), ("layer_lr", {"neck": 0}),
        ("layer_lr", {"neck": "slow"}), ("layer_lr", {None: 0.1}),
    ],
)  # fmt: skip
def test_bad_value_is_refused(name, bad):
    with pytest.raises(ValidationError) as error:
        DetectTrainConfig(**{name: bad})
    assert {fault["loc"][0] for fault in error.value.errors()} == {name}


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("epochs", 3.0, 3), ("epochs", np.int64(3), 3), ("lr0", 1, 1.0),
        ("lr0", np.float64(0.5), 0.5), ("save", np.bool_(False), False), ("batch", 8.0, 8),
        ("batch", -1, -1), ("batch", 0.6, 0.6), ("imgsz", [320, 640.0], (320, 640)),
        ("optimizer", "adamw", "AdamW"), ("amp", "BF16", "bf16"), ("cache", "RAM", "ram"),
        ("cache", True, True), ("multi_scale", True, 0.5), ("multi_scale", False, 0.0),
        ("classes", 2, (2,)), ("classes", [0, 2], (0, 2)), ("device", "", None),
        ("device", [0, 1], (0, 1)), ("plugins", "a.py, b.py", ("a.py", "b.py")),
        ("plugins", Path("a.py"), ("a.py",)), ("plugins", None, ()),
        ("freeze", [0, "neck"], (0, "neck")), ("project", Path("runs"), Path("runs")),
        ("save_every", 500, 500), ("save_every", "10min", "10min"), ("save_every", "2 h", "2 h"),
        ("augmentations", [len], (len,)), ("augmentations", len, (len,)),
        ("layer_lr", 1, 1.0), ("layer_lr", {"neck": 2, 0: 0.1}, {"neck": 2.0, 0: 0.1}),
    ],
)  # fmt: skip
def test_familiar_spelling_is_brought_into_one_form(name, given, meant):
    found = getattr(TrainConfig(**{name: given}), name)
    assert found == meant
    assert type(found) is type(meant)


def test_torch_device_becomes_its_name():
    torch = pytest.importorskip("torch")
    assert TrainConfig(device=torch.device("cuda", 1)).device == "cuda:1"


def test_predict_wants_a_whole_batch():
    for bad in (-1, 0.5, 0):
        with pytest.raises(ValidationError):
            PredictConfig(batch=bad)


def test_data_and_source_may_be_any_object():
    frames = np.zeros((4, 4, 3), np.uint8)
    assert PredictConfig(source=frames).source is frames
    names = {"path": ".", "names": {0: "a"}}
    assert TrainConfig(data=names).data is names


def test_a_task_adds_options_by_a_subclass():
    class CountConfig(TrainConfig):
        radius: float = option(2.0, "pixels", gt=0)

    assert CountConfig(radius=3).radius == 3
    with pytest.raises(ValidationError):
        CountConfig(radius=0)
    assert [row.name for row in option_rows(CountConfig, without=TrainConfig)] == ["radius"]


def test_every_option_explains_itself():
    for schema in (DetectTrainConfig, ValConfig, PredictConfig):
        for row in option_rows(schema):
            assert row.help, row.name
            assert not row.help.endswith("."), row.name


@pytest.mark.parametrize(
    ("schema", "name", "text"),
    [
        (TrainConfig, "epochs", "int >= 1"),
        (TrainConfig, "lr0", "float in [0, 1]"),
        (TrainConfig, "multi_scale", "float in [0, 1)"),
        (TrainConfig, "fraction", "float in (0, 1]"),
        (TrainConfig, "time", "float > 0 or None"),
        (TrainConfig, "imgsz", "int or (int, int)"),
        (TrainConfig, "plugins", "list of str"),
        (TrainConfig, "cache", "bool or 'ram' or 'disk'"),
        (TrainConfig, "split", "'train', 'val' or 'test'"),
        (TrainConfig, "data", "any"),
    ],
)
def test_expected_text(schema, name, text):
    assert expected_text(schema.model_fields[name]) == text


def test_rows_without_another_class_keep_changed_defaults():
    names = {row.name for row in option_rows(PredictConfig, without=CommonConfig)}
    assert "batch" in names  # 1 instead of 16
    assert "imgsz" not in names


def test_tables_have_a_line_an_option():
    rows = option_rows(TrainConfig)
    text = render_table(rows).splitlines()
    assert len(text) == len(rows) + 1
    columns = {line.index(row.default, line.index(row.type) + len(row.type))
               for line, row in zip(text[1:], rows, strict=True)}  # fmt: skip
    assert len(columns) == 1  # aligned
    markdown = render_table(rows, markdown=True).splitlines()
    assert len(markdown) == len(rows) + 2
    assert all(line.count(" | ") == 3 for line in markdown)
