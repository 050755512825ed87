# SPDX-License-Identifier: Apache-2.0
"""Pose trainings on a network of a few thousand weights."""

from __future__ import annotations

import csv
import logging
import shutil

import cv2
import numpy as np
import pytest
import torch
import yaml

import nano
from yolo import YOLO
from yolo.data.shapes import write_shapes
from yolo.engine.checkpoint import load_checkpoint
from yolo.errors import DataError
from yolo.nn.losses import Targets
from yolo.tasks.pose.train import PoseTrainer

ROW = "Pose, [nc, kpt_shape]"


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    text = nano.NETWORK.replace("Detect, [nc]", ROW).replace("nc: 5", "nc: 5\nkpt_shape: [17, 3]")
    return nano.write_network(tmp_path_factory.mktemp("network"), text)


@pytest.fixture(scope="module")
def posed(tmp_path_factory):
    root = tmp_path_factory.mktemp("posed") / "set"
    return write_shapes(root, train=6, val=3, size=96, kind="keypoints")


def darts(root, count=48):
    """Draw one dart an image on 64 x 64 pixels; its keypoints are tip and tail."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        image = np.full((64, 64, 3), 30, np.uint8)
        tail, tip = rng.uniform(14, 26, 2), rng.uniform(38, 50, 2)
        cv2.line(image, tail.astype(int).tolist(), tip.astype(int).tolist(), (90, 200, 90), 4)
        cv2.circle(image, tip.astype(int).tolist(), 5, (60, 60, 230), -1)
        cv2.imwrite(str(root / "images" / f"{i}.png"), image)
        box = [*((tail + tip) / 2), *(tip - tail + 8)]
        numbers = np.array([*box, *tip, *tail]) / 64
        row = " ".join(f"{v:.5f}" for v in numbers)
        (root / "labels" / f"{i}.txt").write_text(f"0 {row}\n")
    keys = {"train": "images", "val": "images", "names": ["dart"], "kpt_shape": [2, 2]}
    (root / "data.yaml").write_text(yaml.safe_dump({**keys, "kpt_oks_sigmas": [0.2, 0.2]}))
    return root / "data.yaml"


def test_a_short_fit_finds_the_keypoints(network, tmp_path):
    data = darts(tmp_path / "darts")
    model = nano.train(
        tmp_path, network=network, data=data, epochs=5, nbs=4, lr0=0.01, optimizer="AdamW",
        mosaic=0, scale=0.1, warmup_epochs=1, val_every=5,
    )  # fmt: skip
    metrics = model.metrics
    assert metrics.pose.map50 > 0.8
    np.testing.assert_array_equal(metrics.pose.sigmas, [0.2, 0.2])
    np.testing.assert_allclose(model.trainer.criterion.sigmas, [0.2, 0.2])
    with model.trainer.csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["train/pose_loss"]) < 0.5 * float(rows[0]["train/pose_loss"])
    assert float(rows[-1]["train/kobj_loss"]) == 0
    assert float(rows[-1]["metrics/mAP50-95(P)"]) == pytest.approx(metrics.pose.map, abs=1e-6)

    loaded = YOLO(model.trainer.best)
    assert loaded.task == "pose"
    assert loaded.model.kpt_shape == (2, 2)
    again = loaded.val(data=str(data), plots=False, verbose=False)
    assert again.results_dict == pytest.approx(metrics.results_dict)
    image = data.parent / "images" / "0.png"
    (result,) = loaded.predict(image, conf=0.01, max_det=1, verbose=False)
    expected = (data.parent / "labels" / "0.txt").read_text().split()
    places = np.array(expected[5:], float).reshape(2, 2) * 64
    found = result.keypoints.xy[0].numpy()
    gaps = np.linalg.norm(found[:, None] - places, axis=2)
    assert gaps.argmin(1).tolist() == [0, 1]  # the tip is the tip, the tail the tail


def test_the_network_is_built_for_the_data(network, posed, tmp_path, caplog, capfd):
    """Of weights for other keypoints what fits is taken, and the rest is listed."""
    first = YOLO(network)
    first.save(tmp_path / "first.pt")
    assert first.model.kpt_shape == (17, 3)
    with caplog.at_level(logging.INFO):
        model = nano.train(
            tmp_path, network=network, data=posed, model=YOLO(tmp_path / "first.pt"), verbose=True
        )
    assert model.model.kpt_shape == (4, 3)
    assert load_checkpoint(model.trainer.last).network["kpt_shape"] == [4, 3]
    text = caplog.text + capfd.readouterr().out + capfd.readouterr().err
    assert "weights of" in text
    assert "new: " in text
    assert ".cv4.0.2" in text
    assert ".cv2." not in text


def test_resuming_equals_a_run_never_stopped(network, posed, tmp_path):
    whole = nano.train(tmp_path, "whole", network=network, data=posed, epochs=2)

    def kill(trainer):
        raise KeyboardInterrupt

    half = {"network": network, "data": posed, "epochs": 2, "callbacks": {"on_model_save": kill}}
    with pytest.raises(KeyboardInterrupt):
        nano.train(tmp_path, "half", **half)
    model = YOLO(tmp_path / "half" / "weights" / "last.pt")
    model.train(resume=True)
    assert nano.same(nano.weights_of(model), nano.weights_of(whole))


def test_data_without_keypoints(network, data, tmp_path):
    expected = r"data\.yaml: expected the key 'kpt_shape'"
    with pytest.raises(DataError, match=expected):
        nano.train(tmp_path, network=network, data=data)
    with pytest.raises(DataError, match=expected):
        YOLO(network).val(data=str(data), plots=False, verbose=False)


def test_labels_of_boxes_are_named(network, posed, tmp_path):
    """A detector's label file under a dataset with `kpt_shape`."""
    root = tmp_path / "set"
    shutil.copytree(posed.parent, root)
    for file in (root / "labels" / "train").iterdir():
        rows = [" ".join(row.split()[:5]) for row in file.read_text().splitlines()]
        file.write_text("\n".join(rows))
    with pytest.raises(DataError) as caught:
        nano.train(tmp_path, network=network, data=root / "data.yaml")
    text = str(caught.value)
    assert "labels/train/000000.txt:1" in text
    assert "expected 17 columns (class cx cy w h, then x y v for each of 4 keypoints)" in text
    assert "found 5 columns" in text


def test_keypoints_follow_the_size_of_a_step():
    targets = Targets(
        torch.zeros(1, 1, dtype=torch.int64),
        torch.tensor([[[10.0, 20.0, 30.0, 40.0]]]),
        torch.ones(1, 1, dtype=torch.bool),
        size=(64, 64),
        extras={"keypoints": torch.tensor([[[[10.0, 20.0, 2.0], [0.0, 8.0, 0.0]]]])},
    )
    resized = PoseTrainer.resize_targets(object.__new__(PoseTrainer), targets, (32, 128))
    assert resized.extras["keypoints"].tolist() == [[[[20, 10, 2], [0, 4, 0]]]]
    assert resized.boxes.tolist() == [[[20, 10, 60, 20]]]
    assert targets.extras["keypoints"][0, 0, 0, 0] == 10
