# SPDX-License-Identifier: Apache-2.0
"""The head of an open vocabulary: stored outputs, other words, a description that keeps them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from golden_weights import fill
from yolo.cfg.load import read_yaml
from yolo.cfg.networks import FOLDER
from yolo.errors import ModelError
from yolo.tasks.detect.head import Detect
from yolo.tasks.detect.model import DetectionModel
from yolo.tasks.detect.world import WorldDetect

WIDTH = 8
NETWORK = {
    "nc": 80,
    "backbone": [
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "C2fAttn", [16, 8, 2, WIDTH]],
        [[1, 2], 1, "ImagePoolingAttn", [8, WIDTH, 2]],
        [2, 1, "Conv", [16, 3, 2]],
        [-1, 1, "C2fAttn", [16, 8, 2, WIDTH]],
    ],
    "head": [[[2, 5], 1, "WorldDetect", ["nc", WIDTH, True]]],
}
X = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def tiny(names=(), rows=None):
    model = fill(DetectionModel(copy.deepcopy(NETWORK))).eval()
    if names:
        model.set_classes(names, torch.eye(WIDTH)[: len(names)] if rows is None else rows)
    return model


@pytest.mark.golden
@pytest.mark.parametrize("name", ["head_world", "head_world_bn"])
def test_golden_head(golden, name):
    facts, arrays = golden("modules.json")[name], golden("modules.npz")
    made = WorldDetect(**facts["kwargs"])
    assert {k: list(v.shape) for k, v in made.state_dict().items()} == facts["state"]
    fill(made).eval()
    made.stride = tuple(facts["strides"])
    feats = [torch.from_numpy(arrays[f"head_feats/in{i}"]) for i in range(3)]
    with torch.no_grad():
        raw = made(feats, torch.from_numpy(arrays["head_feats/text"]))
        y = made.decode(raw)
    for key in ("boxes", "scores"):
        expected = torch.from_numpy(arrays[f"{name}/raw_{key}"])
        torch.testing.assert_close(raw[key], expected, rtol=1e-4, atol=1e-4)
    expected = torch.from_numpy(arrays[f"{name}/eval_y"])
    torch.testing.assert_close(y[:, :4], expected[:, :4], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(y[:, 4:], expected[:, 4:], rtol=1e-4, atol=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize("name", ["yolov8n-world", "yolov8n-worldv2"])
def test_golden_forward(golden, name):
    arrays = golden("forward_world.npz")
    model = fill(DetectionModel(f"{name}.yaml", nc=5)).eval()
    x, text = (torch.from_numpy(arrays[key]) for key in ("x", "txt_feats"))
    with torch.no_grad():
        y = model(x, text)
        raw = model.train()(x, text)
    expected = torch.from_numpy(arrays[f"{name}/eval/y"])
    torch.testing.assert_close(y[:, :4], expected[:, :4], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(y[:, 4:], expected[:, 4:], rtol=1e-4, atol=1e-4)
    expected = torch.from_numpy(arrays[f"{name}/train/scores"])
    torch.testing.assert_close(raw["scores"], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.golden
def test_golden_initial_biases(golden):
    facts = golden("init.json")["yolov8n-worldv2_nc80"]
    made = DetectionModel("yolov8n-worldv2.yaml").head
    for branch, expected in zip(made.cv2, facts["box_bias"], strict=True):
        assert set(branch[-1].bias.tolist()) == set(expected)
    for branch, (low, high) in zip(made.cv3, facts["cls_bias"], strict=True):
        bound = branch[-1].in_channels ** -0.5  # drawn, up to it
        for bias in (branch[-1].bias.detach(), torch.tensor([low, high])):
            assert 0.95 * bound < bias.abs().max() <= bound
    assert {head.bias.item() for head in made.cv4} == {-10.0}


def test_without_words_it_says_what_to_do():
    with pytest.raises(ModelError, match="no words yet: call set_classes"):
        tiny()(X)
    layers, *_ = tiny().info(verbose=False)  # but it can be measured
    assert layers > 50


def test_a_call_may_bring_its_own_words():
    model = tiny(["a", "b"])
    y = model(X)
    assert y.shape == (2, 4 + 2, 12 * 8 + 6 * 4)
    assert torch.equal(model(X, torch.eye(WIDTH)[None, :2]), y)
    assert not torch.equal(model(X, torch.eye(WIDTH)[None, 2:4]), y)


def test_words_keep_their_scores_in_another_order_and_number():
    """Only in networks whose image features don't depend on the other words."""
    network = copy.deepcopy(NETWORK)
    network["backbone"][2:] = [[-1, 1, "C2f", [16]], [-1, 1, "Conv", [16, 3, 2]]]
    network["head"][0][0] = [2, 3]
    model = fill(DetectionModel(network)).eval()
    model.set_classes(["a", "b", "c"], torch.eye(WIDTH)[:3])
    before = model(X)
    model.set_classes(["c", "a"])
    torch.testing.assert_close(model(X), before[:, [0, 1, 2, 3, 6, 4]])


def test_the_description_keeps_the_words_but_no_weight_does():
    model = tiny(["red car", "cat"], 3 * torch.rand(2, WIDTH))
    assert not [key for key in model.state_dict() if "text" in key]
    again = DetectionModel(model.yaml)
    again.load_state_dict(model.state_dict())
    assert again.names == {0: "red car", 1: "cat"}
    assert torch.equal(again.head.text, model.head.text)
    assert torch.equal(again.eval()(X), model(X))
    assert torch.equal(again.yaml.pop("words"), model.yaml["words"])
    assert again.yaml == {k: v for k, v in model.yaml.items() if k != "words"}
    twin = copy.deepcopy(model)
    model.set_classes(["dog"], torch.ones(1, WIDTH))
    assert model.nc == 1
    assert twin(X).shape[1] == 6


def test_the_weights_fit_any_number_of_words():
    model = DetectionModel(NETWORK)
    other = DetectionModel(model.yaml, nc=3)
    assert set(other.load_weights(model.state_dict()).taken) == set(model.state_dict())
    with_words = tiny(["a", "b"])
    assert DetectionModel(with_words.yaml, nc=3).head.text is None  # these names are unknown


def test_names_may_change_without_the_words():
    model = tiny(["car", "cat"])
    y, model.names = model(X), ["Auto", "Katze"]
    assert torch.equal(DetectionModel(model.yaml).head.text, model.head.text)
    assert torch.equal(model(X), y)


@pytest.mark.parametrize(
    ("names", "rows", "message"),
    [
        (["a", "b"], torch.ones(3, WIDTH), "expected 2 embeddings, one a name, found 3"),
        (["a"], torch.ones(1, 5), r"expected embeddings of shape \(words, 8\), found \(1, 5\)"),
        (["a", "a"], torch.ones(2, WIDTH), "each name once, found 'a'"),
        (["a", " "], torch.ones(2, WIDTH), "none empty"),
        (["a", "x"], None, "the network has no embedding of 'x'.*text encoder"),
        (["a"], torch.zeros(1, WIDTH), "none all nought"),
    ],
)
def test_bad_words_change_nothing(names, rows, message):
    model = tiny(["a", "b"])
    y, network = model(X), dict(model.yaml)
    with pytest.raises(ModelError, match=message):
        model.set_classes(names, rows)
    assert all(model.yaml[key] is value for key, value in network.items())
    assert torch.equal(model(X), y)


def test_a_network_with_fixed_classes():
    network = {"nc": 2, "backbone": NETWORK["backbone"][:2], "head": [[[0, 1], 1, "Detect", []]]}
    model = DetectionModel(network)
    assert type(model.head) is Detect
    assert not model.takes_words
    with pytest.raises(ModelError, match="which ends in Detect, are fixed"):
        model.set_classes(["a"], torch.ones(1, WIDTH))


def test_bad_rows():
    network = copy.deepcopy(NETWORK)
    network["head"][0][3].append(1)
    with pytest.raises(ModelError, match="at most 3 arguments"):
        DetectionModel(network)
    damaged = {**tiny(["a"]).yaml, "words": [[1.0, 2.0]]}
    with pytest.raises(ModelError, match=r"expected embeddings of shape"):
        DetectionModel(damaged)


def test_half_the_precision_and_another_device():
    model = tiny(["a", "b"])
    assert model.to(torch.bfloat16).head.text.dtype == torch.bfloat16
    with torch.device("meta"):
        twin = DetectionModel(model.yaml)
    assert twin.head.text.device.type == "meta"


def test_shipped_networks_are_found_by_scale():
    for name in ("yolov8-world", "yolov8-worldv2"):
        assert list(read_yaml(FOLDER / f"{name}.yaml")["scales"]) == list("nsmlx")
    assert np.prod(DetectionModel("yolov8n-worldv2.yaml", nc=2).head.example_side.shape) == 1024
