# SPDX-License-Identifier: Apache-2.0
"""Whatever a file or a command line says, it gives a result or an error of ours, soon.

Files begin as good ones and are spoiled: trees at random places, bytes by cutting, doubling and
overwriting. The default run tries a few of each; `pytest -m slow tests/test_fuzz.py` thousands.
Label rows, pickles and image headers have tests of their own beside their code.
"""

from __future__ import annotations

import contextlib
import copy
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nano
from yolo.cfg.load import resolve
from yolo.cfg.schema import PredictConfig
from yolo.cli import main
from yolo.data.datasets import read_dataset
from yolo.data.images import read_image
from yolo.data.index import open_split
from yolo.data.shapes import write_shapes
from yolo.engine.checkpoint import load_checkpoint
from yolo.errors import YoloError
from yolo.tasks.spec import TASKS
from yolo.weights import open_checkpoint, write_checkpoint

EFFORT = [20, pytest.param(1500, marks=pytest.mark.slow)]
WORDS = (
    "nc", "nearest", "None", "Conv", "C2f", "Detect", "Concat", "nn.Upsample", "..", "/", "a.yaml",
    "train", "val", "predict", "export", "help", "detect", "pose", "=", "imgsz=0", "conf=2", "--x",
    "model=gone.pt", "model=net.yaml", "data=gone.yaml", "source=gone.jpg", "epochs=x", "[", "{",
    "device=gpu", "cfg=gone.yaml", "batch=[1", "task=none", "é", "\x00", "classes=[", "format=x",
)  # fmt: skip
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.sampled_from([-(2**70), 2**31, 2**70]),
    st.floats(), st.sampled_from(WORDS), st.text(max_size=8), st.just([]), st.just({}),
    st.lists(st.integers(-2, 9), max_size=4), st.dictionaries(st.text(max_size=3), st.none()),
)  # fmt: skip
KEYS = st.one_of(st.text(max_size=4), st.integers(), st.sampled_from(WORDS))


@pytest.fixture
def attempt(record_property):
    """Call `work` with what `strategy` draws; only errors of ours may come."""

    def draw_and_call(effort, strategy, work):
        inputs = 0

        @settings(
            max_examples=effort, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(strategy)
        def one(value):
            nonlocal inputs
            inputs += 1
            with contextlib.suppress(YoloError):
                work(value)

        one()
        record_property("inputs", inputs)

    return draw_and_call


def places(tree, at=()):
    """List the ways to all parts of a tree of mappings and lists."""
    found = [at] if at else []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        found += (
            places(value, (*at, key)) if isinstance(value, (dict, list)) and value
            else [(*at, key)]
        )  # fmt: skip
    return found


@st.composite
def spoiled_tree(draw, tree):
    """Draw the tree with one to three parts replaced, removed or added."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        ways = places(tree)
        if not ways:
            break
        *way, last = draw(st.sampled_from(ways))
        part = tree
        for key in way:
            part = part[key]
        action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "remove":
            del part[last]
        elif action == "add" and isinstance(part, list):
            part.insert(last, draw(JUNK))
        elif action == "add":
            part[draw(KEYS)] = draw(JUNK)
        else:
            part[last] = draw(JUNK)
    return tree


@st.composite
def spoiled_bytes(draw, data):
    """Draw the bytes cut, doubled or overwritten at one to four places."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        action = draw(st.sampled_from(["set", "set", "cut", "double", "drop"]))
        if action == "set":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=8))
        elif action == "cut":
            del data[at:]
        elif action == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
        else:
            del data[at : at + draw(st.integers(1, 64))]
    return bytes(data)


@pytest.mark.parametrize("effort", EFFORT)
def test_network_descriptions(attempt, effort):
    def build(network):
        with torch.device("meta"):
            TASKS["detect"].model(network)

    attempt(effort, spoiled_tree(yaml.safe_load(nano.NETWORK)), build)


@pytest.mark.parametrize("effort", EFFORT)
def test_dataset_descriptions(attempt, effort, tmp_path):
    file = write_shapes(tmp_path / "set", train=2, val=2, size=(64, 64))
    known = {"path": str(file.parent), "nc": 5, **yaml.safe_load(file.read_text())}
    extra = {"kpt_shape": [4, 3], "flip_idx": [0, 1, 2, 3], "channels": 3, "classes": [0, 1]}
    spec = TASKS["detect"]

    def read(content):
        place = tmp_path / "set" / "spoiled.yaml"
        place.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        found = read_dataset(str(place))
        open_split(found, "train", spec.label_format())

    attempt(effort, spoiled_tree(known | extra), read)


@pytest.mark.parametrize("effort", EFFORT)
def test_options(attempt, effort):
    schemas = [PredictConfig, *(spec.train_config for spec in TASKS.values())]
    names = sorted({name for schema in schemas for name in schema.model_fields})
    given_options = st.dictionaries(st.sampled_from(names), JUNK, min_size=1, max_size=3)
    attempt(
        effort * 5,
        st.tuples(st.sampled_from(schemas), given_options),
        lambda drawn: resolve(drawn[0], drawn[1]),
    )


@pytest.mark.parametrize("effort", EFFORT)
def test_checkpoints(attempt, effort, tmp_path):
    path = tmp_path / "a.pt"
    write_checkpoint(TASKS["detect"].model(nano.TINY), "detect", path)
    whole = path.read_bytes()

    def load(data):
        path.write_bytes(data)
        load_checkpoint(path)
        open_checkpoint(path, None)

    attempt(effort, spoiled_bytes(whole), load)


@pytest.mark.parametrize("effort", EFFORT)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff", ".webp", ".bmp"])
@pytest.mark.filterwarnings("ignore")  # Pillow's remarks about mangled headers
def test_images(attempt, effort, suffix):
    scene = np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3)
    whole = cv2.imencode(suffix, scene)[1].tobytes()
    attempt(effort, spoiled_bytes(whole), read_image)


@pytest.mark.parametrize("effort", EFFORT)
def test_command_lines(attempt, effort, tmp_path, monkeypatch, capsys):
    """In a folder without data, so that nothing trains."""
    monkeypatch.chdir(tmp_path)
    Path("net.yaml").write_text(nano.NETWORK)
    words = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)), max_size=5)

    def call(argv):
        status = main(argv)
        said = capsys.readouterr()
        assert status in (0, 2)
        assert (status == 2) == said.err.startswith("error: ")
        assert "Traceback" not in said.err
        assert os.listdir(tmp_path) == ["net.yaml"]

    attempt(effort * 5, words, call)
