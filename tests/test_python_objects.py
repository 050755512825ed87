# SPDX-License-Identifier: Apache-2.0
"""Training every task from Python objects: no files, no workers' leftovers, an honest record."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import nano
from yolo import YOLO
from yolo.cfg.load import read_yaml, write_yaml
from yolo.data.datasets import read_dataset
from yolo.data.figures import FLIP_IDX, NAMES
from yolo.data.images import read_image
from yolo.data.index import build_index
from yolo.data.labels import BoxLabels
from yolo.data.scene import Scene, scene
from yolo.engine.checkpoint import load_checkpoint
from yolo.errors import DataError
from yolo.tasks.spec import TASKS


class Drawn:
    """A torch-style dataset that draws its images when they are asked for."""

    def __init__(self, count: int, split: str, most: int = 3) -> None:
        self.count, self.draw = count, partial(scene, 0, split, size=(64, 64), max_figures=most)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Any]:
        return item_of(self.draw(i))


def item_of(drawn: Scene) -> dict[str, Any]:
    """Return everything that is known of a scene."""
    labels = drawn.instances
    return {
        "image": drawn.image,
        "image_class": drawn.image_class,
        "classes": labels.classes,
        "boxes": labels.boxes,
        "masks": drawn.masks,
        "keypoints": labels.keypoints,
        "corners": labels.corners,
    }


def dataset(train: int = 6, val: int = 2) -> dict[str, Any]:
    return {
        "train": Drawn(train, "train"),
        "val": [item_of(scene(0, "val", i, (64, 64), 3)) for i in range(val)],
        "names": NAMES,
        "kpt_shape": (4, 3),
        "flip_idx": FLIP_IDX,
    }


FEW = [
    pytest.param(n, marks=[] if n in {"segment", "classify"} else pytest.mark.slow) for n in TASKS
]
"""The others take seconds each."""


@pytest.mark.parametrize("task", FEW)
def test_a_task_trains_on_objects(task, tmp_path):
    spec = TASKS[task]
    data = dataset()
    model = YOLO(nano.task_network(tmp_path, spec))
    options = nano.options(tmp_path, "run", data=data, epochs=1, workers=1, fraction=0.7)
    metrics = model.train(**options)
    run = tmp_path / "run"
    assert len(model.trainer.train_loader.index) == 4
    assert model.trainer.train_loader.index.path(1) == "train[1]"
    assert np.isfinite(list(metrics.results_dict.values())).all()
    assert not (run / "cache").exists()
    kept = {"train": {"objects": 6}, "val": {"objects": 2}}
    for record in (load_checkpoint(run / "weights/last.pt").config, read_yaml(run / "args.yaml")):
        assert {k: record["data"][k] for k in kept} == kept


def test_objects_are_files_without_the_files(train, data, tmp_path):
    """The same images and labels, from a folder and from memory: the same weights."""
    spec = read_dataset(data)
    splits = {}
    for split in ("train", "val"):
        index, _ = build_index(spec, split, BoxLabels())
        splits[split] = [
            {
                "image": read_image(index.path(i)),
                "classes": index.instances(i).classes,
                "boxes": index.instances(i).boxes,
            }
            for i in range(len(index))
        ]
    one = train("files")
    two = train("objects", data={**splits, "names": spec.names})
    assert nano.same(nano.weights_of(one), nano.weights_of(two))
    scores = pytest.approx(one.metrics.results_dict)
    assert two.metrics.results_dict == scores
    place = {"project": str(tmp_path), "name": "val", "workers": 0}
    assert two.val(**place, save_txt=True, conf=0.0001, plots=False).results_dict == scores
    assert (tmp_path / "val" / "labels" / "val[0].txt").is_file()


def test_a_run_on_objects_resumes_with_them(network, tmp_path):
    data = dataset()

    def kill(trainer):
        raise KeyboardInterrupt

    options = {"network": network, "model": None, "epochs": 2}
    whole = nano.train(tmp_path, "whole", **{**options, "data": data})
    with pytest.raises(KeyboardInterrupt):
        nano.train(tmp_path, "half", **{**options, "data": data}, callbacks={"on_model_save": kill})
    last = tmp_path / "half/weights/last.pt"
    expected = "train: the run's 6 images were Python objects, .* give them again, as data="
    with pytest.raises(DataError, match=expected):
        YOLO(last).train(resume=True)
    with pytest.raises(DataError, match=expected):
        YOLO(last).val()
    model = YOLO(last)
    model.train(resume=True, data=data)
    assert nano.same(nano.weights_of(model), nano.weights_of(whole))


def test_a_bad_item_is_named_before_training(network, tmp_path):
    data = dataset()
    data["train"] = [data["train"][0], {**data["train"][1], "boxes": [[0, 0, 1]]}]
    with pytest.raises(DataError, match=r"^train\[1\]: boxes: expected shape \(\d, 4\)"):
        nano.train(tmp_path, network=network, data=data)
    assert not (tmp_path / "run").exists()


DOCS = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_page_about_datasets_keeps_its_word(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = nano.options(tmp_path, "docs", epochs=1)
    train, val = YOLO.train, YOLO.val
    monkeypatch.setattr(YOLO, "train", lambda self, **given: train(self, **{**given, **small}))
    monkeypatch.setattr(YOLO, "val", lambda self, **given: val(self, plots=False, **given))
    monkeypatch.setattr("yolo.YOLO", lambda name: YOLO(nano.write_network(tmp_path)))
    (code,) = re.findall(r"^```python\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
    exec(compile(code, "data.md", "exec"), {"__name__": "docs"})
    assert 0 <= float(capsys.readouterr().out.split()[-1]) <= 1

    def classes(file: str, names: list[str]) -> None:
        write_yaml(tmp_path / file, {"train": "images", "val": "images", "names": names})

    yamls = re.findall(r"^```yaml\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
    (tmp_path / "street.yaml").write_text(yamls[0])
    for folder in ("street/images/train", "street/images/val", "street/labels/train"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("row", "mask"):
        image = np.zeros((20, 30, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"street/images/train/{name}.png"), image)
    (tmp_path / "street/labels/train/row.txt").write_text("1 0.5 0.5 0.2 0.2\n")
    mask = np.full((20, 30), 2001, np.uint16)
    cv2.imwrite(str(tmp_path / "street/labels/train/mask.png"), mask)
    index, _ = build_index(read_dataset("street.yaml"), "train", BoxLabels)
    assert index.class_counts().tolist() == [0, 1, 1]

    classes("farm.yaml", ["horse", "dog", "cow"])
    (tmp_path / "coco").mkdir()
    found = [{"id": i, "name": name} for i, name in enumerate(["person", "bus", "kite"])]
    content = {"images": [], "annotations": [], "categories": found}
    (tmp_path / "coco/instances.json").write_text(json.dumps(content))
    names = [["vehicle", "person"], ["car", "pedestrian", "truck", "animal"]]
    for text, expected in zip(yamls[1:], names, strict=True):
        (tmp_path / "both.yaml").write_text(text)
        assert list(read_dataset("both.yaml").names.values()) == expected
