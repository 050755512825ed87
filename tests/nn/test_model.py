# SPDX-License-Identifier: Apache-2.0
"""Networks as a whole: every family and scale, golden outputs, copies, fusing, loading."""

from __future__ import annotations

import copy
import hashlib
import io
import pickle

import pytest
import torch
from torch import nn

from golden_weights import fill
from nano import TINY
from yolo.cfg.networks import find_network, known_networks
from yolo.errors import CheckpointError, MissingFileError, ModelError
from yolo.nn.layer import Plan, channelwise, layer
from yolo.tasks.detect.head import Detect
from yolo.tasks.detect.model import DetectionModel
from yolo.tasks.spec import task_of_network

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def tiny(**keys):
    return DetectionModel({**copy.deepcopy(TINY), **keys})


def with_row(index, row, **keys):
    network = copy.deepcopy(TINY)
    network["backbone"].insert(index, row)
    network["head"][0][0] = [2, 3]
    return DetectionModel({**network, **keys})


def state_digest(model):
    lines = sorted(
        f"{key} {'x'.join(map(str, value.shape)) or '-'} {str(value.dtype).removeprefix('torch.')}"
        for key, value in model.state_dict().items()
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def classic(name):
    """The larger ones take seconds each."""
    return pytest.param(name, marks=[] if name.startswith("yolov8n") else pytest.mark.slow)


@pytest.mark.golden
@pytest.mark.parametrize("name", [classic(n) for n in known_networks() if n.startswith("yolov8")])
def test_every_network_has_the_golden_facts(name, golden):
    """Built on meta: no weight is allocated, and no random number drawn."""
    facts = golden("models.json").get(name.removesuffix(".yaml"))
    before = torch.get_rng_state()
    task = task_of_network(find_network(name).yaml)
    with torch.device("meta"):
        model = task.model(name)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.device.type == "meta" for p in model.parameters())
    if facts is None:  # some have none; building them is the test
        return
    assert state_digest(model) == facts["state_sha256"]
    assert model.save == sorted({*facts["saved_rows"]})  # some are listed once a reader
    assert list(model.stride) == facts["stride"]
    size = facts["imgsz_for_flops"]
    layers, parameters, gradients, gflops = model.info(verbose=False, imgsz=size)
    assert layers == facts["layers_8.2_info"]
    assert (parameters, gradients) == (facts["parameters"], facts["gradients"])
    # Both builds agree, but for classifiers, whose linear layer 8.2 scaled with the image's area.
    assert f"{gflops:.1f}" == f"{facts['gflops_peer_8.4']:.1f}"


def golden_case(arrays, name, **weights):
    model = fill(DetectionModel(name), **weights).eval()
    return model, lambda key: torch.from_numpy(arrays[key])


@pytest.mark.golden
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", ["nonsq_b2", "sq_b1"])
def test_golden_forward(golden, case, memory):
    model, array = golden_case(golden("forward_detect.npz"), "yolov8n.yaml")
    x = array(f"{case}/x").contiguous(memory_format=memory)
    with torch.no_grad():
        raw, y, fused = model.raw(x), model(x), copy.deepcopy(model).fuse()(x)
    torch.testing.assert_close(raw["boxes"], array(f"{case}/eval/boxes"), **CLOSE)
    torch.testing.assert_close(raw["scores"], array(f"{case}/eval/scores"), **CLOSE)
    for found, key in ((y, "eval/y"), (fused, "fused/y")):
        expected = array(f"{case}/{key}")
        torch.testing.assert_close(found[:, :4], expected[:, :4], rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(found[:, 4:], expected[:, 4:], **CLOSE)


@pytest.mark.golden
def test_golden_training_forward_and_statistics(golden):
    arrays = golden("forward_detect.npz")
    model, array = golden_case(arrays, "yolov8n.yaml")
    raw = model.train()(array("nonsq_b2/x"))
    for key in ("boxes", "scores"):
        torch.testing.assert_close(raw[key], array(f"nonsq_b2/train/{key}"), rtol=1e-3, atol=1e-3)
    state = model.state_dict()
    stored = [key for key in arrays if "/after/" in key]
    assert stored
    for key in stored:
        found = state[key.rpartition("/")[2]]
        torch.testing.assert_close(found, array(key), rtol=1e-3, atol=1e-3)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "gain"),
    [("yolov8n-p2", 1.55), ("yolov8n-p6", 1.55), ("yolov8s", 1.55), ("yolov8n-ghost", 1.45)],
)
def test_golden_forward_of_other_networks(golden, name, gain):
    model, array = golden_case(golden("forward_extra.npz"), f"{name}.yaml", gain=gain)
    with torch.no_grad():
        found = model(array(f"{name}/x"))
    expected = array(f"{name}/eval/y")
    torch.testing.assert_close(found[:, :4], expected[:, :4], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(found[:, 4:], expected[:, 4:], **CLOSE)


def test_training_gives_raw_and_evaluation_decoded():
    model, x = tiny(), torch.rand(2, 3, 32, 48)
    assert set(model.train()(x)) == {"boxes", "scores", "points", "strides"}
    y = model.eval()(x)
    assert y.shape == (2, 4 + 2, 8 * 12 + 4 * 6)
    assert torch.equal(model.decode(model.raw(x)), y)


def test_capture_returns_named_rows_too():
    model, x = tiny().eval(), torch.rand(1, 3, 32, 32)
    y, rows = model(x, capture=[0, 2])
    assert {i: tuple(m.shape) for i, m in rows.items()} == {0: (1, 8, 16, 16), 2: (1, 16, 4, 4)}
    assert torch.equal(y, model(x))
    raw, rows = model.raw(x, capture=(1,))
    assert list(rows) == [1]
    assert "boxes" in raw
    with pytest.raises(ModelError, match="no row 9 to capture; expected 0 to 3"):
        model(x, capture=[9])


def test_features_are_what_the_head_reads():
    model, x = tiny().eval(), torch.rand(1, 3, 32, 32)
    assert [m.shape[-1] for m in model.features(x)] == [8, 4]
    again = model.head.decode(model.head(model.features(x)))
    assert torch.equal(again, model(x))


def test_layers_with_a_side_input_get_it(own_layers):
    @layer(plan=channelwise, side=True)
    class Scale(nn.Module):
        def __init__(self, channels):
            super().__init__()

        def forward(self, x, side):
            return x if side is None else x * side

    model = with_row(1, [-1, 1, "Scale", []]).eval()
    x = torch.rand(1, 3, 32, 32)
    _, rows = model(x, side=3.0, capture=[0, 1])
    assert torch.equal(rows[1], rows[0] * 3)
    assert torch.equal(model(x, side=1.0), model(x))


def test_a_head_may_bring_the_side_input_and_a_layer_renew_it_for_the_others(own_layers):
    @layer(plan=lambda args, ctx: Plan({}, 0), side="renew")
    class Twice(nn.Module):
        def forward(self, x, side):
            return side * 2

    @layer(plan=channelwise, side=True)
    class Times(nn.Module):
        def __init__(self, channels):
            super().__init__()

        def forward(self, x, side):
            return x * side

    @layer(side=True)
    class Head(Detect):
        side = 3.0

        def forward(self, feats, side):
            return super().forward(feats) | {"side": side}

    network = {**copy.deepcopy(TINY), "head": [[[2, 4], 1, "Head", ["nc"]]]}
    network["backbone"] += [[2, 1, "Twice", []], [2, 1, "Times", []]]
    model, x = DetectionModel(network), torch.rand(1, 3, 32, 32)
    for given, side in ((), 3.0), ((5.0,), 5.0):
        raw, rows = model.raw(x, *given, capture=[2, 4])
        assert torch.equal(rows[4], rows[2] * 2 * side)
        assert raw["side"] == side


def test_yaml_builds_the_same_network_again():
    model = DetectionModel("yolov8n.yaml", nc=3, ch=1)
    model.names = {0: "a", 1: "b", 2: "c"}
    again = DetectionModel(model.yaml)
    assert again.yaml == model.yaml
    assert again.yaml is not model.yaml
    assert (again.nc, again.num_channels, again.yaml["scale"]) == (3, 1, "n")
    assert again.names == {0: "a", 1: "b", 2: "c"}
    assert state_digest(again) == state_digest(model)
    assert again.model[0].conv.in_channels == 1
    stored = io.BytesIO()
    torch.save(model.yaml, stored)
    stored.seek(0)
    assert torch.load(stored, weights_only=True) == model.yaml


def test_the_caller_s_description_is_not_changed():
    network = copy.deepcopy(TINY)
    DetectionModel(network, nc=5).names = ["a", "b", "c", "d", "e"]
    assert network == TINY


def test_names():
    model = tiny(names=["cat", "dog"])
    assert model.names == {0: "cat", 1: "dog"}
    assert DetectionModel(model.yaml, nc=3).names == {0: "0", 1: "1", 2: "2"}
    with pytest.raises(ModelError, match="names for classes 0 to 1"):
        model.names = ["a", "b", "c"]
    with pytest.raises(ModelError, match="expected `names` as a list or id: name pairs"):
        tiny(names={"first": "cat"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nc": 0}, "nc as a whole number"),
        ({"nc": "many"}, "nc as"),
        ({"ch": 1.5}, "ch as"),
        ({"nc": 2**40}, "nc as at most 1000000, got 1099511627776"),
    ],
)
def test_bad_counts(given, message):
    with pytest.raises(ModelError, match=message):
        tiny(**given)


def test_missing_network():
    with pytest.raises(MissingFileError):
        DetectionModel("no-such-net.yaml")


def test_copies_and_pickles_predict_the_same():
    model, x = fill(tiny()).eval(), torch.rand(1, 3, 32, 32)
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), expected)
        assert twin.names == model.names


def test_fuse_keeps_outputs_and_counts():
    model, x = fill(DetectionModel("yolov8n-ghost.yaml")).eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        fused = model.fuse()
        assert fused is model
        torch.testing.assert_close(fused(x)[:, 4:], expected[:, 4:], rtol=1e-3, atol=1e-3)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())


def test_load_weights_takes_what_fits_and_lists_the_rest():
    source, model = fill(tiny()), tiny(nc=3)
    state = {**source.state_dict(), "extra": torch.zeros(1)}
    del state["model.0.bn.bias"]
    before = copy.deepcopy(model.state_dict())
    report = model.load_weights(state)
    assert report.missing == ("model.0.bn.bias",)
    assert report.unexpected == ("extra",)
    assert report.mismatched["model.3.cv3.0.2.bias"] == ((3,), (2,))
    assert all("cv3" in name for name in report.mismatched)
    after = model.state_dict()
    for name in after:
        expected = state[name] if name in report.taken else before[name]
        assert torch.equal(after[name], expected), name
    assert set(report.taken) | set(report.mismatched) | set(report.missing) == set(after)


def test_load_weights_refuses_what_is_no_state():
    with pytest.raises(CheckpointError, match="from names to tensors"):
        tiny().load_weights({"model": nn.Identity()})


def test_networks_share_no_module():
    first, second = tiny(), tiny()
    assert not set(map(id, first.modules())) & set(map(id, second.modules()))


def test_activation_of_a_network():
    model = tiny(activation="nn.ReLU")
    assert {type(m.act) for m in model.modules() if hasattr(m, "act")} == {nn.ReLU}
    for name in ("os.system", "MultiheadAttention"):  # the second needs arguments
        with pytest.raises(ModelError, match=f"activation '{name}'"):
            tiny(activation=name)


def test_user_s_layer_in_a_network(own_layers, tmp_path):
    """One decorator in the user's file, its name in his YAML."""

    @layer(plan=channelwise)
    class Squeeze(nn.Module):
        def __init__(self, channels, reduction=4):
            super().__init__()
            self.down = nn.Conv2d(channels, channels // reduction, 1)
            self.up = nn.Conv2d(channels // reduction, channels, 1)

        def forward(self, x):
            return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()

    file = tmp_path / "mine.yaml"
    file.write_text(
        "nc: 2\nbackbone:\n  - [-1, 1, Conv, [8, 3, 2]]\n  - [-1, 1, Squeeze, [2]]\n"
        "  - [-1, 1, Conv, [16, 3, 2]]\nhead:\n  - [[1, 2], 1, Detect, [nc]]\n"
    )
    model = DetectionModel(file)
    assert model.model[1].down.out_channels == 4
    sum(v.float().sum() for v in model(torch.rand(1, 3, 32, 32)).values()).backward()
    assert model.model[1].down.weight.grad.abs().sum() > 0
    state = model.state_dict()
    assert DetectionModel(model.yaml).load_weights(state).taken == tuple(state)
