# SPDX-License-Identifier: Apache-2.0
"""Bad labels, images and options in a training: counted and named, and what they cost."""

from __future__ import annotations

import logging

import pytest
import yaml

import nano
from yolo import YOLO
from yolo.data.shapes import write_shapes
from yolo.errors import ConfigError, DataError, MissingFileError


@pytest.fixture
def data(tmp_path):
    return write_shapes(tmp_path / "set", train=12, val=4, size=96)


@pytest.fixture
def model(tmp_path):
    return YOLO(nano.write_network(tmp_path))


def spoil(data):
    """Spoil rows and images of the training set; give what is reported, by kind."""
    labels = sorted((data.parent / "labels" / "train").glob("*.txt"))
    images = sorted((data.parent / "images" / "train").iterdir())
    first = labels[0].read_text().splitlines()[0]
    bad_rows = ["9 .5 .5 .1 .1", "0 nan .5 .1 .1", "0 .5 .5 -.1 .1", "0 .5 .5 .1", "a b c d e"]
    labels[0].write_text("\n".join([first, *bad_rows, first]) + "\n")
    labels[1].write_bytes(b"\xff\xfe0 .5 .5 .1 .1\n")
    images[2].write_bytes(b"")
    images[3].write_bytes(images[3].read_bytes()[:60])
    images[4].write_bytes(b"no image at all")
    (labels[0].parent / "nobody.txt").write_text("0 .5 .5 .1 .1\n")
    return labels, images


def test_bad_rows_and_images_are_counted_and_training_goes_on(model, data, tmp_path, caplog):
    labels, images = spoil(data)
    caplog.set_level(logging.INFO, "yolo")
    model.train(data=str(data), **nano.options(tmp_path, "run", epochs=1, verbose=True))
    table = next(text for text in caplog.messages if text.startswith("train\n"))
    counts = {line.rsplit(None, 1)[0].strip(): line.split()[-1] for line in table.splitlines()[1:]}
    assert counts["images"] == "9"
    assert counts["bad label rows (dropped)"] == "6"
    assert counts["duplicates (kept once)"] == "1"
    assert counts["bad images (dropped)"] == "3"
    assert counts["labels without image"] == "1"
    for line, reason in ((2, "class"), (3, ""), (4, ""), (5, "columns"), (6, "")):
        found = [text for text in caplog.messages if text.startswith(f"{labels[0]}:{line}: ")]
        assert len(found) == 1, line
        assert reason in found[0]
    assert f"{images[2]}: " in caplog.text
    assert len(model.trainer.train_loader.index) == 9
    index = model.trainer.train_loader.index
    place = [index.path(i) for i in range(9)].index(str(images[0]))
    assert len(index.instances(place)) == 1


def test_strict_stops_at_the_first(model, data, tmp_path):
    labels, _ = spoil(data)
    labels[0].with_name("nobody.txt").unlink()
    with pytest.raises(DataError, match=rf"{labels[0].name}:2: .*strict=True"):
        model.train(data=str(data), **nano.options(tmp_path, "run", strict=True))


def test_all_labels_missing(model, data, tmp_path):
    for file in (data.parent / "labels" / "train").glob("*.txt"):
        file.unlink()
    with pytest.raises(DataError, match=r"(?i)label"):
        model.train(data=str(data), **nano.options(tmp_path, "run"))


def test_no_validation_labels_are_no_reason_to_stop(model, data, tmp_path):
    for file in (data.parent / "labels" / "val").glob("*.txt"):
        file.unlink()
    model.train(data=str(data), **nano.options(tmp_path, "run", epochs=1, plots=True))
    assert model.metrics.box.map == 0


def test_no_image_can_be_read(model, data, tmp_path):
    for file in (data.parent / "images" / "train").iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(DataError):
        model.train(data=str(data), **nano.options(tmp_path, "run"))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"train": "images/trian"}, DataError, r"train: there is nothing at .*trian.*'train'"),
        ({"names": {0: "a", 2: "b"}}, DataError, "names: expected the ids 0 to 1"),
        ({"nc": 7}, DataError, "nc: expected .* found 7"),
        ({"val": None}, DataError, "expected the key 'val'"),
        ({"path": "/nowhere/at/all"}, DataError, "path: there is no folder /nowhere/at/all"),
    ],
)
def test_a_bad_dataset_file_names_the_key(model, data, tmp_path, change, error, text):
    data.write_text(yaml.safe_dump(yaml.safe_load(data.read_text()) | change))
    with pytest.raises(error, match=rf"data\.yaml: {text}"):
        model.train(data=str(data), **nano.options(tmp_path, "run"))
    assert not (tmp_path / "run").exists()


def test_a_missing_dataset_file(model, tmp_path, data):
    with pytest.raises(MissingFileError, match=r"no file .*dataa\.yaml.*data\.yaml"):
        model.train(data=str(data.with_name("dataa.yaml")), **nano.options(tmp_path, "run"))


def test_labels_that_the_model_does_not_know(model, data, tmp_path):
    few = data.with_name("few.yaml")
    few.write_text(yaml.safe_dump(yaml.safe_load(data.read_text()) | {"names": ["a", "b"]}))
    model.train(data=str(few), **nano.options(tmp_path, "run", epochs=1))
    with pytest.raises(DataError, match=r"class id [2-4], the model knows 2 classes"):
        model.val(data=str(data), plots=False, verbose=False)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"epoch": 3}, "(?i)epoch.*similar: 'epochs'"),
        ({"epochs": 0}, "epochs.*1"),
        ({"epochs": "many"}, "epochs"),
        ({"optimizer": "SDG"}, "optimizer.*SGD"),
        ({"lr0": 2.0}, "lr0"),
        ({"batch": 0}, "batch"),
        ({"imgsz": -1}, "imgsz"),
        ({"plots": 1}, "plots"),
        ({"monitor": "mAP5"}, r"monitor='mAP5' is no metric.*metrics/mAP50\(B\)"),
        ({"save_every": "soon"}, "save_every.*'10min'"),
        ({"augmentations": ["blur"]}, "augmentations.*callable"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"amp": "fp16"}, "amp='fp16' needs a CUDA device"),
        ({"freeze": [77]}, r"model\.77"),
        ({"layer_lr": {77: 0.1}}, r"layer_lr=.*model\.77"),
        ({"layer_lr": {"neck": -1.0}}, "layer_lr.*above 0.*freeze="),
        ({"time": -1.0}, "time"),
        ({"close_mosaic": -1}, "close_mosaic"),
        ({"visualize": True}, "visualize"),
    ],
)
def test_a_wrong_option_says_what_is_expected(model, data, tmp_path, options, text):
    with pytest.raises(ConfigError, match=text):
        model.train(**{"data": str(data), **nano.options(tmp_path, "run"), **options})
    assert not list((tmp_path / "run").glob("weights/*.pt"))


def test_old_names_are_taken_with_a_warning(model, data, tmp_path, caplog):
    model.train(data=str(data), label_smoothing=0.1, **nano.options(tmp_path, "run", epochs=1))
    assert "label_smoothing" in caplog.text
