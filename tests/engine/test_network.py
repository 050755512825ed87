# SPDX-License-Identifier: Apache-2.0
"""Weights that are taken over, classes that move, and layers that are frozen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nano
from yolo.engine.checkpoint import Checkpoint
from yolo.engine.network import (
    frozen_modules,
    load_model,
    rate_factors,
    set_train_mode,
    take_weights,
    with_classes,
)
from yolo.errors import CheckpointError, ConfigError, ModelError
from yolo.nn.layer import layer, same_channels
from yolo.tasks.detect.head import Detect
from yolo.tasks.detect.model import DetectionModel
from yolo.tasks.spec import TASKS

LAST = "model.5.cv3.0.2"


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return nano.write_network(tmp_path_factory.mktemp("network"))


def built(network, names, seed=0):
    torch.manual_seed(seed)
    model = DetectionModel(network, nc=len(names))
    model.names = names
    return model


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_all_weights_of_the_same_classes_are_taken(network):
    old, new = built(network, ["a", "b"]), built(network, ["a", "b"], seed=1)
    text = take_weights(new, state(old), "old.pt", old.names)
    count = len(old.state_dict())
    assert text == f"weights of old.pt: took {count} of {count} entries"
    assert nano.same(state(new), state(old))


def test_rows_follow_their_class_names_over_different_counts(network):
    old, new = (
        built(network, ["cat", "dog", "cow"]),
        built(network, ["cow", "hen", "cat", "pig"], 1),
    )
    fresh = state(new)
    text = take_weights(new, state(old), "old.pt", old.names)
    assert text.endswith("; classes known already: cow, cat")
    for leaf in ("weight", "bias"):
        rows, before = new.state_dict()[f"{LAST}.{leaf}"], old.state_dict()[f"{LAST}.{leaf}"]
        assert torch.equal(rows[[0, 2]], before[[2, 0]])
        assert torch.equal(rows[[1, 3]], fresh[f"{LAST}.{leaf}"][[1, 3]])


def test_other_classes_start_afresh_though_their_count_is_the_same(network):
    old, new = built(network, ["cat", "dog"]), built(network, ["car", "bus"], 1)
    fresh = state(new)
    text = take_weights(new, state(old), "old.pt", old.names)
    assert text.endswith("new: model.5.cv3.0.2, model.5.cv3.1.2")
    assert torch.equal(new.state_dict()[f"{LAST}.weight"], fresh[f"{LAST}.weight"])
    assert torch.equal(new.state_dict()["model.0.conv.weight"], state(old)["model.0.conv.weight"])
    take_weights(new, state(old), "old.pt")  # without names rows are taken as they are
    assert nano.same(state(new), state(old))


@pytest.mark.usefixtures("own_layers")
def test_a_layer_that_computes_while_it_is_built_can_be_loaded(tmp_path):
    """The check on the meta device, where nothing can be computed, lets it pass."""

    @layer(plan=same_channels)
    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.full((1,), torch.ones(3).sum().item()))

        def forward(self, x):
            return x * self.weight

    rows = [*nano.TINY["backbone"], [-1, 1, "Computed", []]]
    model = TASKS["detect"].model({**nano.TINY, "backbone": rows})
    saved = Checkpoint("detect", dict(model.names), model.yaml, dict(model.state_dict()))
    found = load_model(saved, TASKS["detect"], "here")
    assert nano.same(dict(found.state_dict()), dict(model.state_dict()))


def test_long_lists_are_cut_and_nothing_at_all_is_an_error(network):
    model = built(network, ["a"])
    text = take_weights(model, {"model.0.conv.weight": state(model)["model.0.conv.weight"]}, "x.pt")
    assert text.startswith(f"weights of x.pt: took 1 of {len(model.state_dict())} entries; new: ")
    assert " and " in text
    with pytest.raises(CheckpointError, match=r"x\.pt: none of them fits"):
        take_weights(model, {"other": torch.zeros(3)}, "x.pt")


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        (None, []),
        (0, []),
        (2, ["model.0", "model.1"]),
        ((1, "model.3"), ["model.1", "model.3"]),
        ("model.3.cv1", ["model.3.cv1"]),
        ("backbone", [f"model.{i}" for i in range(5)]),
        (["head", 0], ["model.5", "model.0"]),
        ("model.?.conv", ["model.0.conv", "model.1.conv", "model.2.conv", "model.4.conv"]),
        ("model.5.cv[23].0", ["model.5.cv2.0", "model.5.cv3.0"]),
    ],
)
def test_freeze_names_modules(network, freeze, expected):
    assert frozen_modules(built(network, ["a"]), freeze) == expected


@pytest.mark.parametrize("freeze", [7, [8], "backbones", "neck", "model.*.cv9"])
def test_freezing_what_is_not_there_lists_the_layers(network, freeze):
    with pytest.raises(ConfigError, match=r"no module '.*'; it has model\.0 to model\.5 and"):
        frozen_modules(built(network, ["a"]), freeze)


@pytest.mark.parametrize(
    ("layer_lr", "expected"),
    [
        (None, {}),
        ({"backbone": 0.1, 5: 2.0}, {**{i: 0.1 for i in range(5)}, 5: 2.0}),
        ({"backbone": 0.1, "model.[01]": 0.5}, {0: 0.5, 1: 0.5, 2: 0.1, 3: 0.1, 4: 0.1}),
        ({"model.[01]": 0.5, "backbone": 0.1}, {i: 0.1 for i in range(5)}),
        (0.5, {i: 0.5 ** (5 - i) for i in range(6)}),
    ],
)
def test_layer_lr_gives_factors_to_parameters(network, layer_lr, expected):
    """The last selection that applies counts; a number falls towards the image."""
    model = built(network, ["a"])
    found = rate_factors(model, layer_lr)
    for name, parameter in model.named_parameters():
        assert found.get(parameter) == expected.get(int(name.split(".")[1])), name


def test_layer_lr_reaches_inside_a_layer(network):
    model = built(network, ["a"])
    found = rate_factors(model, {"model.5.cv3.*.2": 3.0})
    names = {name for name, parameter in model.named_parameters() if parameter in found}
    assert names == {f"model.5.cv3.{i}.2.{leaf}" for i in (0, 1) for leaf in ("weight", "bias")}


def test_layer_lr_of_what_is_not_there_names_the_nearest(network):
    with pytest.raises(
        ConfigError,
        match=r"layer_lr=.*no module 'backbon'; it has model\.0 to model\.5 and the parts "
        r"backbone, neck, head\. Similar: 'backbone'",
    ):
        rate_factors(built(network, ["a"]), {"backbon": 0.1})


def test_frozen_batch_norm_is_in_eval_mode(network):
    model = built(network, ["a"]).eval()
    set_train_mode(model, ["model.0"])
    assert model.training
    assert not model.get_submodule("model.0.bn").training
    assert model.get_submodule("model.1.bn").training


@pytest.mark.parametrize("added", [1, 95])
@pytest.mark.parametrize("task", TASKS)
def test_classes_are_added_and_old_outputs_keep_their_bits(tmp_path, task, added):
    """The class branch of 80 classes would be wider for more; its width stays."""
    torch.manual_seed(0)
    spec = TASKS[task]
    old = spec.model(nano.task_network(tmp_path, spec)).eval()
    old.names = [f"old{i}" for i in range(old.nc)]
    for last in old.head.class_layers:  # as if trained: scores that differ
        nn.init.normal_(last.weight, std=0.5)
    before = state(old)
    new = with_classes(old, [f"new{i}" for i in range(added)])
    assert nano.same(before, state(old))
    assert [*new.names.values()] == [*old.names.values(), *(f"new{i}" for i in range(added))]
    assert not new.training
    count = old.nc
    saved = Checkpoint(task, dict(new.names), new.yaml, dict(new.state_dict()))
    for found in (new, load_model(saved, spec, "here")):
        for shape in ((1, 3, 64, 64), (2, 3, 64, 96)):
            x = torch.rand(shape)
            with torch.no_grad():
                wanted, raw = old.raw(x), found.raw(x)
                rows, others = found.decode(raw), old.decode(wanted)
            for key in raw:
                given = raw[key][:, :count] if key in ("scores", "logits") else raw[key]
                assert torch.equal(given, wanted[key]), key
        if spec.outputs.boxes:
            rows, others = (y[0] if isinstance(y, tuple) else y for y in (rows, others))
            kept = torch.cat((rows[:, : 4 + count], rows[:, 4 + count + added :]), 1)
            assert torch.equal(kept, others)
            fresh = rows[:, 4 + count : 4 + count + added]
            assert fresh.max() < 0.01
            assert (fresh == fresh[:, :1]).all()


def test_classes_may_be_added_again(network):
    old = built(network, ["a", "b"]).eval()
    new = with_classes(with_classes(old, ["c"]), {0: "d", 1: "e"})
    assert [*new.names.values()] == ["a", "b", "c", "d", "e"]
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(new.raw(x)["scores"][:, :2], old.raw(x)["scores"])


@pytest.mark.parametrize("names", [[], "cat", ["cat", "cat"], [""], ["dog"]])
def test_names_that_cannot_be_added(network, names):
    with pytest.raises(ModelError, match=r"expected (each )?names?"):
        with_classes(built(network, ["dog"]), names)


@pytest.mark.usefixtures("own_layers")
def test_heads_that_cannot_take_more_classes_say_why():
    @layer
    class Wide(Detect):
        """Its class branches are as wide as there are classes, whatever the network says."""

        def __init__(self, nc, ch):
            super().__init__(nc, ch)
            self.cv3 = self.branches(ch, nc, nc)

        @classmethod
        def head_options(cls, args, ctx):
            return {"nc": ctx.num_classes}

    def of(head):
        return DetectionModel({**nano.TINY, "head": [[[1, 2], 1, *head]]})

    with pytest.raises(ModelError, match="Wide: its weights depend"):
        with_classes(of(["Wide", ["nc"]]), ["cat"])
    with pytest.raises(ModelError, match=r"WorldDetect has no rows.*set_classes"):
        with_classes(of(["WorldDetect", ["nc", 8]]), ["cat"])
