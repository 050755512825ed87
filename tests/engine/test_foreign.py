# SPDX-License-Identifier: Apache-2.0
"""What Ultralytics saved: weights, network, names and options come over, and nothing is run.

Files of that kind are written here, without the package. Genuine and hostile ones, which aren't
ours to copy, are read where YOLO_GOLDEN_CKPT names the folder that holds them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from peer_files import named_modules, peer_content, tiny_network, write_peer_file
from yolo import TASKS, YOLO, attempt_load_weights
from yolo.engine.checkpoint import load_checkpoint
from yolo.engine.foreign import _module, _walk
from yolo.engine.torchfile import TorchFile
from yolo.errors import CheckpointError, ModelError

SPEC = TASKS["detect"]


@pytest.fixture(scope="module")
def network():
    model = tiny_network(SPEC)
    model.names = ["disc", "square", "bar"]
    return model


def as_saved(model):
    return {
        k: v.half().float() if v.is_floating_point() else v for k, v in model.state_dict().items()
    }


@pytest.mark.parametrize("task", TASKS)
def test_the_models_of_every_task_come_over(tmp_path, task):
    model = tiny_network(TASKS[task])
    found = YOLO(write_peer_file(tmp_path / "a.pt", model, task))
    expected, state = as_saved(model), found.model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[k], v) and state[k].dtype == v.dtype for k, v in expected.items())
    assert (found.task, found.model.training) == (task, False)
    assert found.overrides == {"model": str(tmp_path / "a.pt"), "imgsz": 64, "data": "a.yaml"}
    assert "ultralytics" not in sys.modules
    found.save(tmp_path / "ours.pt")
    again = YOLO(tmp_path / "ours.pt")
    assert all(torch.equal(again.model.state_dict()[k], v) for k, v in state.items())


@pytest.mark.parametrize(
    "package",
    ["ultralytics.nn.modules", "ultralytics.nn.modules.conv", "ultralytics.yolo.nn.modules"],
)
@pytest.mark.parametrize("slot", ["model", "ema"])
def test_old_and_new_class_paths_and_slots(tmp_path, network, slot, package):
    path = write_peer_file(tmp_path / "a.pt", network, "detect", slot=slot, package=package)
    saved = load_checkpoint(path)
    assert saved.names == {0: "disc", 1: "square", 2: "bar"}
    assert saved.network["nc"] == 3
    assert "yaml_file" not in saved.network
    assert saved.history == [{"epoch": 1, "lr/pg0": 0.1}, {"epoch": 2, "lr/pg0": 0.2}]
    assert saved.metrics == {"fitness": 0.5}
    assert saved.versions == {"ultralytics": "8.2.0"}
    assert saved.config["lr0"] == 0.01
    assert saved.state is None


def test_averaged_weights_are_preferred(tmp_path, network):
    other = tiny_network(SPEC)
    with named_modules() as make:
        content = peer_content(network, "detect", make, slot="ema")
        content["model"] = peer_content(other, "detect", make)["model"]
        torch.save(content, tmp_path / "a.pt")
    weights = load_checkpoint(tmp_path / "a.pt").weights
    assert all(torch.equal(weights[k], v) for k, v in as_saved(network).items())


def test_names_as_a_list_options_as_an_object_and_numpy_numbers(tmp_path, network):
    path = write_peer_file(
        tmp_path / "a.pt", network, "detect", names=["x", "y", "z"], train_args=None,
        train_metrics={"fitness": np.float64(0.25)}, best_fitness=np.float64(0.25),
    )  # fmt: skip
    saved = load_checkpoint(path)
    assert (saved.task, saved.metrics) == ("", {"fitness": 0.25})
    assert saved.names == {0: "x", 1: "y", 2: "z"}
    assert YOLO(path).task == "detect"  # by the network's last row
    arguments = types.SimpleNamespace(task="detect", imgsz=96, odd=None, model=Path("/a/b.pt"))
    write_peer_file(path, network, "detect", train_args=arguments)
    assert load_checkpoint(path).config == {"task": "detect", "imgsz": 96, "model": "/a/b.pt"}


def test_a_network_for_gray_images(tmp_path):
    model = tiny_network(SPEC, ch=1)
    model.yaml["channels"] = model.yaml.pop("ch")
    path = write_peer_file(tmp_path / "a.pt", model, "detect")
    assert YOLO(path).model.num_channels == 1


@pytest.mark.parametrize("count", [3, 80])
def test_a_network_for_words_brings_those_it_had_last(tmp_path, count):
    """Its YAML has the number of classes that the branches were built for, its names another."""
    row = [[2, 3], 1, "WorldDetect", ["nc", 8, True]]
    model, text = tiny_network(SPEC, nc=count, head=[row]), torch.randn(1, 3, 8)
    model.yaml.pop("class_width")
    names = {0: "cat", 1: "red car", 2: "dog"}
    path = write_peer_file(tmp_path / "a.pt", model, "detect", names=names, text=text)
    found = YOLO(path)
    x = torch.rand(1, 3, 64, 64)
    unit = torch.nn.functional.normalize(text, dim=2)
    model.load_state_dict(as_saved(model))
    torch.testing.assert_close(found.model(x), model(x, unit))
    assert found.names == names
    write_peer_file(path, model, "detect", names=names, text=text[:, :2])
    assert YOLO(path).model.head.text is None


@pytest.mark.parametrize("unscaled", [None, 64])
def test_rows_as_wide_as_there_are_classes(tmp_path, unscaled):
    """Version 8.2 didn't scale such rows, later ones do; the file doesn't say which."""
    model = tiny_network(SPEC, nc=64, unscaled=unscaled)
    model.yaml.pop("unscaled")
    found = YOLO(write_peer_file(tmp_path / "a.pt", model, "detect")).model
    assert len(found.state_dict()["model.0.conv.weight"]) == (unscaled or 8)
    assert found.yaml.get("unscaled") == unscaled


def test_a_head_that_keeps_its_base_forward(tmp_path, network):
    """Heads of segment, pose and obb were saved so by 8.0 and 8.1: by getattr on a class."""
    with named_modules() as make:
        content = peer_content(network, "detect", make)
        base = make("ultralytics.nn.modules.head.Detect")
        base.forward = lambda self, x: x
        base.forward.__qualname__ = "Detect.forward"
        base.forward.__module__ = base.__module__
        content["model"].model[-1].detect = base.forward
        torch.save(content, tmp_path / "a.pt")
    assert b"getattr" in (tmp_path / "a.pt").read_bytes()
    assert YOLO(tmp_path / "a.pt").task == "detect"


def change(attribute, value):
    def edit(content):
        setattr(content["model"], attribute, value)

    return edit


def test_texts_that_are_something_nested_are_dropped(tmp_path, network):
    endless = ()
    for _ in range(60):
        endless = (endless, endless)
    nested = dict.fromkeys(("version", "date", "epoch"), endless)
    saved = load_checkpoint(write_peer_file(tmp_path / "a.pt", network, "detect", **nested))
    assert (saved.versions, saved.date, saved.epoch) == ({"ultralytics": ""}, "", -1)


@pytest.mark.parametrize(
    ("edit", "kind", "told"),
    [
        (change("yaml", None), CheckpointError, "no network description"),
        (change("names", None), CheckpointError, "expected class names, found None"),
        (change("names", {0: "a", 2: "b"}), CheckpointError, "expected class names"),
        (change("names", ["a"]), ModelError, "don't fit the network in the file: model.4.cv3"),
        (change("model", torch.nn.Identity()), CheckpointError, "holds no weights"),
        (change("yaml", {"backbone": [[-1, 1, "C3k2", [8]]], "head": []}), ModelError,
         "unknown layer 'C3k2'"),
        (change("yaml", {"backbone": [[-1, 10**9, "Conv", [8, 3]]], "head": []}), ModelError,
         "at most 1000 repeats"),
        (change("yaml", {"backbone": [[-1, 1, "Conv", [10**9, 3]]], "head": []}), ModelError,
         "(1000000000, 3, 3, 3)"),
        (change("yaml", {"backbone": [[-1, 1, "Conv", [10**9, 3]]], "head": [[-1, 1, "meta", []]]}),
         ModelError, "unknown layer 'meta'"),
        (change("yaml", {"backbone": [], "head": [], "scales": {"n": 1}, "scale": [1]}), ModelError,
         "can't be used (TypeError"),
        (change("yaml", {"backbone": [[-1, 1, "Conv", [10**18, 3]]], "head": []}), ModelError,
         "row 0"),
        (lambda c: c["train_args"].update(task="depth"), CheckpointError, "for 'depth'; known"),
        (lambda c: c["model"].model._modules.update(x=c["model"]), CheckpointError,
         "larger than the file"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said_in_a_line(tmp_path, network, edit, kind, told):
    path = tmp_path / "a.pt"
    with named_modules() as make:
        content = peer_content(network, "detect", make)
        edit(content)
        torch.save(content, path)
    with pytest.raises(kind) as caught:
        YOLO(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_object_of_somebody_elses_class_is_named(tmp_path, network):
    path = tmp_path / "a.pt"
    with named_modules() as make:
        content = peer_content(network, "detect", make)
        content["model"].extra = make("malicious.package.Thing", object)()
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"names 'malicious\.package\.Thing'"):
        YOLO(path)


# ---------------------------------------------------------------------- genuine files

FOLDER = Path(os.environ.get("YOLO_GOLDEN_CKPT", "no folder"))
TABLE = FOLDER / "expected.json"
EXPECTED = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}
genuine = pytest.mark.skipif(not EXPECTED, reason="YOLO_GOLDEN_CKPT names no folder")


def fingerprint(path):
    """SHA-256 of the state as saved, by the recipe in the folder's README."""
    sha = hashlib.sha256()
    with TorchFile(path) as file:
        for name, stored in sorted(_walk(file, _module(file.content), "", 0)):
            value = file.tensor(stored).contiguous()
            kind = str(value.dtype).removeprefix("torch.")
            sha.update(f"{name}\0{kind}\0{tuple(value.shape)}\0".encode())
            sha.update(value.numpy().tobytes())
    return sha.hexdigest()


@genuine
@pytest.mark.parametrize("name", EXPECTED)
def test_genuine_files_predict_what_they_did(name):
    expected = EXPECTED[name]
    path = FOLDER / expected["file"]
    assert fingerprint(path) == expected["state_bytes_sha256"]
    model = YOLO(path)
    assert model.task == expected["task"]
    assert model.names == {int(i): n for i, n in expected["names"].items()}
    assert [float(s) for s in model.stride] == expected["stride"]
    assert len(model.model.state_dict()) == expected["n_state_keys"]
    fused = attempt_load_weights(path)
    assert sum(p.numel() for p in fused.parameters()) == expected["n_parameters"]
    assert model.overrides["imgsz"] == expected["train_args"]["imgsz"]
    with np.load(FOLDER / "expected.npz", allow_pickle=False) as stored:
        own = {key.split("/")[1]: stored[key] for key in stored.files if key.startswith(f"{name}/")}
        image = torch.from_numpy(stored["x_64x64" if "probs" in own else "x_64x96"])
    for network in (model.model, fused):
        with torch.no_grad():
            found = network(image)
        outputs = [found] if isinstance(found, torch.Tensor) else list(found)
        assert len(outputs) == len(own)
        for value, key in zip(outputs, sorted(own, reverse=True), strict=True):  # y, then proto
            np.testing.assert_allclose(value.numpy(), own[key], rtol=1e-4, atol=1e-3)


@genuine
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hostile_os_system", "os.system"),
        ("hostile_builtins_eval", "builtins.eval"),
        ("hostile_nested_zip", "pickle.loads"),
        ("hostile_dotted_torch_global", "torch.serialization.os.system"),
    ],
)
def test_hostile_files_do_nothing(tmp_path, monkeypatch, name, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"refused: the pickle names '{told}'"):
        YOLO(FOLDER / f"{name}.pt")
    assert not list(tmp_path.iterdir())
