# SPDX-License-Identifier: Apache-2.0
"""Segmentation trainings on a network of a few thousand weights."""

from __future__ import annotations

import csv
import shutil

import cv2
import numpy as np
import pytest
import torch
import yaml

import nano
from yolo import YOLO
from yolo.data.shapes import write_shapes
from yolo.errors import DataError
from yolo.nn.losses import Targets
from yolo.tasks.segment.config import SegmentTrainConfig
from yolo.tasks.segment.train import SegmentationTrainer


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    text = nano.NETWORK.replace("Detect, [nc]", "Segment, [nc, 8, 64]")
    return nano.write_network(tmp_path_factory.mktemp("network"), text)


@pytest.fixture(scope="module")
def outlined(tmp_path_factory):
    root = tmp_path_factory.mktemp("outlined") / "set"
    return write_shapes(root, train=6, val=3, size=96, kind="polygons")


def wedges(root, count=16):
    """Draw a triangle an image on 64 x 64 pixels: half of its box isn't in its mask."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        image = np.full((64, 64, 3), 30, np.uint8)
        side = rng.uniform(24, 36)
        x, y = rng.uniform(4, 60 - side, 2)
        corners = np.array([[x, y], [x, y + side], [x + side, y + side]])
        cv2.fillPoly(
            image, [np.rint((corners - 0.5) * 16).astype(np.int32)], (60, 60, 230), shift=4
        )
        cv2.imwrite(str(root / "images" / f"{i}.png"), image)
        row = " ".join(f"{v:.5f}" for v in corners.ravel() / 64)
        (root / "labels" / f"{i}.txt").write_text(f"0 {row}\n")
    keys = {"train": "images", "val": "images", "names": ["wedge"]}
    (root / "data.yaml").write_text(yaml.safe_dump(keys))
    return root / "data.yaml"


def test_a_short_fit_finds_the_masks(network, tmp_path):
    data = wedges(tmp_path / "wedges")
    model = nano.train(
        tmp_path, network=network, data=data, epochs=10, nbs=4, lr0=0.01, optimizer="AdamW",
        mosaic=0, fliplr=0, scale=0.1, warmup_epochs=1, val_every=10,
    )  # fmt: skip
    metrics = model.metrics
    assert metrics.seg.map50 > 0.7
    with model.trainer.csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["train/seg_loss"]) < 0.6 * float(rows[0]["train/seg_loss"])
    assert float(rows[-1]["val/seg_loss"]) > 0
    assert float(rows[-1]["metrics/mAP50-95(M)"]) == pytest.approx(metrics.seg.map, abs=1e-6)

    loaded = YOLO(model.trainer.best)
    assert loaded.task == "segment"
    again = loaded.val(data=str(data), plots=False, verbose=False)
    assert again.results_dict == pytest.approx(metrics.results_dict)
    image = data.parent / "images" / "0.png"
    (result,) = loaded.predict(image, conf=0.01, max_det=1, retina_masks=True, verbose=False)
    red = cv2.imread(str(image))[..., 2] > 130
    (mask,) = result.masks.data.numpy().astype(bool)
    assert (mask & red).sum() / (mask | red).sum() > 0.6


def test_resuming_equals_a_run_never_stopped(network, outlined, tmp_path):
    options = {"overlap_mask": False, "mask_ratio": 2, "multi_scale": 0.5}
    common = {"network": network, "data": outlined, "epochs": 2, **options}
    whole = nano.train(tmp_path, "whole", **common)

    def kill(trainer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nano.train(tmp_path, "half", **common, callbacks={"on_model_save": kill})
    model = YOLO(tmp_path / "half" / "weights" / "last.pt")
    model.train(resume=True)
    assert nano.same(nano.weights_of(model), nano.weights_of(whole))


def test_labels_of_boxes_are_named(network, data, tmp_path):
    """A detector's label files given to the segmenter."""
    with pytest.raises(DataError) as caught:
        nano.train(tmp_path, network=network, data=data)
    first = str(caught.value).splitlines()[0]
    assert "no object to train on" in first
    assert ".txt:1: expected an outline of at least 3 points" in first
    assert "found 5 columns" in first


def test_one_box_row_costs_that_row(network, outlined, tmp_path, caplog):
    root = tmp_path / "set"
    shutil.copytree(outlined.parent, root)
    file = sorted((root / "labels" / "train").iterdir())[0]
    rows = file.read_text().splitlines()
    file.write_text("\n".join([*rows, "0 .5 .5 .2 .2"]))
    nano.train(tmp_path, network=network, data=root / "data.yaml", val=False)
    (text,) = [r.getMessage() for r in caplog.records if file.name in r.getMessage()]
    assert f"{file}:{len(rows) + 1}: expected an outline" in text


@pytest.mark.parametrize("overlap", [False, True])
def test_masks_are_scaled_with_the_images(overlap):
    trainer = SegmentationTrainer.__new__(SegmentationTrainer)
    trainer.args = SegmentTrainConfig(overlap_mask=overlap)
    masks = torch.zeros(1, 16, 24, dtype=torch.uint8)
    masks[:, 4:8, 6:12] = 1
    targets = Targets(
        torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[[24.0, 16, 48, 32]]]),
        torch.ones(1, 1, dtype=torch.bool), None, (64, 96),
        {"masks": masks if overlap else masks[:, None]},
    )  # fmt: skip
    resized = trainer.resize_targets(targets, (128, 192))
    found = resized.extras["masks"].view(32, 48)
    x1, y1, x2, y2 = (resized.boxes[0, 0] / 4).int().tolist()
    assert found[y1:y2, x1:x2].all()
    assert found.sum() == (y2 - y1) * (x2 - x1)
    assert targets.extras["masks"].shape[-2:] == (16, 24)
