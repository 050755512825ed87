# SPDX-License-Identifier: Apache-2.0
"""Oriented boxes from a network's name to trained weights, results and back."""

from __future__ import annotations

import csv
import math

import cv2
import numpy as np
import pytest
import torch

import nano
from yolo import YOLO
from yolo.data.shapes import write_shapes
from yolo.nn.losses import Targets
from yolo.nn.rotated import rotated_iou, xywhr_to_corners
from yolo.tasks.obb.train import OBBTrainer

NETWORK = nano.NETWORK.replace("Detect, [nc]", "OBB, [nc, 1]")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return nano.write_network(tmp_path_factory.mktemp("network"), NETWORK)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    return write_shapes(folder, train=8, val=4, size=96, kind="corners")


def test_train_validate_predict_save_and_resume(network, data, tmp_path):
    """Every augmentation at once; the resumed run ends as one that was never stopped."""
    changes = {
        "epochs": 2, "degrees": 90, "shear": 5, "perspective": 3e-4, "cutmix": 0.5, "mixup": 0.5,
        "multi_scale": 0.4,
    }  # fmt: skip
    whole = nano.train(tmp_path, "whole", network=network, data=data, **changes)
    assert isinstance(whole.trainer, OBBTrainer)
    assert whole.task == "obb"
    rows = list(csv.DictReader((tmp_path / "whole" / "results.csv").open()))
    for name in ("box", "cls", "dfl"):
        assert all(
            math.isfinite(float(row[f"{s}/{name}_loss"])) for row in rows for s in ("train", "val")
        )

    def fail(trainer):
        if trainer.epoch:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        nano.train(tmp_path, "part", network=network, data=data,
                   callbacks={"on_train_epoch_start": fail}, **changes)  # fmt: skip
    resumed = YOLO(tmp_path / "part" / "weights" / "last.pt")
    resumed.train(resume=True)
    assert nano.same(nano.weights_of(whole), nano.weights_of(resumed))

    metrics = whole.val(data=str(data), imgsz=64, device="cpu", plots=False, verbose=False,
                        project=str(tmp_path), name="val")  # fmt: skip
    assert set(metrics.results_dict) == {*metrics.keys, "fitness"}
    assert len(metrics.keys) == 4
    loaded = YOLO(tmp_path / "whole" / "weights" / "best.pt")
    image = np.full((60, 90, 3), 100, np.uint8)
    first, second = (
        model.predict(image, imgsz=64, conf=0.0, max_det=5, verbose=False, device="cpu")[0]
        for model in (whole, loaded)
    )
    assert torch.equal(first.obb.data, second.obb.data)
    assert first.obb.data.shape == (5, 7)


def test_targets_are_resized_with_the_batch():
    boxes = torch.tensor([[[30.0, 20, 24, 8, 0.4]]])
    mask = torch.ones(1, 1, dtype=torch.bool)
    targets = Targets(mask.long(), torch.zeros(1, 1, 4), mask, None, (64, 96), {"rotated": boxes})
    resized = OBBTrainer.resize_targets(object.__new__(OBBTrainer), targets, (32, 48))
    torch.testing.assert_close(resized.extras["rotated"], torch.tensor([[[15.0, 10, 12, 4, 0.4]]]))
    assert resized.size == (32, 48)
    assert torch.equal(targets.extras["rotated"], boxes)


def test_it_learns_to_find_turned_bars(network, tmp_path):
    """A few seconds of training find bars at every angle in images that were not trained on."""
    rng = np.random.default_rng(0)
    truth = {}
    for split, count in (("train", 32), ("val", 6)):
        for folder in ("images", "labels"):
            (tmp_path / "set" / folder / split).mkdir(parents=True)
        for i in range(count):
            box = [*rng.uniform(22, 42, 2), 30, 10, rng.uniform(-0.7, 2.3)]
            corners = xywhr_to_corners(np.array(box))
            image = rng.integers(60, 90, (64, 64, 3), dtype=np.uint8)
            cv2.fillPoly(image, [np.rint(corners * 16).astype(np.int32)], (30, 60, 230), shift=4)
            cv2.imwrite(str(tmp_path / "set/images" / split / f"{i}.png"), image)
            row = "0 " + " ".join(f"{v:.6f}" for v in (corners / 64).ravel())
            (tmp_path / "set/labels" / split / f"{i}.txt").write_text(row)
            truth[split, i] = np.array([box])
    data = tmp_path / "set" / "data.yaml"
    data.write_text("train: images/train\nval: images/val\nnames: [bar]\n")
    model = nano.train(
        tmp_path, network=network, data=data, epochs=14, batch=8, nbs=8, optimizer="AdamW",
        lr0=0.01, mosaic=0.0, scale=0.1, degrees=45, warmup_epochs=1, val=False,
    )  # fmt: skip
    overlaps = []
    for i in range(6):
        source = str(tmp_path / "set/images/val" / f"{i}.png")
        found = model.predict(source, imgsz=64, conf=0.05, verbose=False, device="cpu")[0].obb
        assert len(found)
        overlaps.append(rotated_iou(found.xywhr[:1].double().numpy(), truth["val", i])[0, 0])
    assert np.mean(overlaps) > 0.55  # at a wrong angle it would be 0.2
