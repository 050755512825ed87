# SPDX-License-Identifier: Apache-2.0
"""A user's own block, from his file to trained weights and back, with no edit in the package.

The processes are real ones, since what a fresh one knows is the question. This process never loads
the block, so it shows what happens without.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nano
from yolo import YOLO
from yolo.cli import main
from yolo.data.shapes import write_shapes
from yolo.engine.checkpoint import load_checkpoint
from yolo.errors import ConfigError, ModelError
from yolo.nn.layer import LAYERS
from yolo.options import resolve_call

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.processes

BLOCK = '''
import torch
from torch import nn
from yolo import layer
from yolo.nn.layer import channelwise

@layer(plan=channelwise)
class Gate(nn.Module):
    """Weigh each map by what all of them are on average."""

    def __init__(self, channels):
        super().__init__()
        self.weigh = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x * self.weigh(x.mean((2, 3), keepdim=True)).sigmoid()

def darker(sample):
    """A transform: what workers get must find its way to them."""
    sample.image //= 2
    return sample
'''

ROUND = """
import json, sys
import numpy as np, torch
from yolo import YOLO
source, plugin, data, out = sys.argv[1:]
model = YOLO(source, plugins=plugin)
if data:
    darker = sys.modules[type(model.model.model[3]).__module__].darker
    import nano
    model.train(data=data, augmentations=[darker], **nano.options(".", "run", epochs=1, workers=2))
image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
(result,) = model.predict(image, conf=1e-7, imgsz=64)
x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
module = model.model.eval()
found = {"boxes": result.boxes.data, "direct": module(x).detach()}
if not data:
    found["traced"] = torch.export.export(module, (x,)).module()(x).detach()
np.savez(out, **found)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the user's files, and runs/run trained with them."""
    folder = tmp_path_factory.mktemp("custom")
    (folder / "myblocks.py").write_text(BLOCK)
    text = nano.NETWORK.replace("  - [-1, 3, C2f", "  - [-1, 1, Gate, []]\n  - [-1, 3, C2f")
    nano.write_network(folder, text.replace("[[3, 4], 1", "[[4, 5], 1"))
    write_shapes(folder / "set", train=6, val=4, size=(64, 64))
    python(folder, ROUND, "nano.yaml", "myblocks.py", "set/data.yaml", "trained.npz")
    return folder


def run(folder, *argv):
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    return subprocess.run(
        [sys.executable, *argv],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def python(folder, code, *argv):
    done = run(folder, "-c", code, *argv)
    assert done.returncode == 0, done.stderr
    return done


def test_a_fresh_process_predicts_the_same_and_exports(home):
    python(home, ROUND, "run/weights/best.pt", "myblocks.py", "", "reloaded.npz")
    trained, reloaded = np.load(home / "trained.npz"), np.load(home / "reloaded.npz")
    assert len(trained["boxes"]) > 0
    for name in ("boxes", "direct"):
        np.testing.assert_array_equal(reloaded[name], trained[name])
    np.testing.assert_allclose(reloaded["traced"], reloaded["direct"], rtol=1e-4, atol=1e-4)


def test_the_block_was_trained_and_the_file_named_in_the_record(home):
    saved = load_checkpoint(home / "run" / "weights" / "last.pt")
    assert any(key.startswith("model.3.weigh") for key in saved.weights)
    assert [row[2] for row in saved.network["backbone"]][3] == "Gate"


@pytest.mark.slow
def test_on_the_command_line_with_workers(home):
    words = "train model=nano.yaml data=set/data.yaml plugins=myblocks.py epochs=1 imgsz=64 batch=4"
    rest = "workers=2 device=cpu plots=False project=. name=cli"
    done = run(home, "-m", "yolo", *words.split(), *rest.split())
    assert done.returncode == 0, done.stderr
    assert (home / "cli" / "weights" / "best.pt").is_file()


def test_a_worker_that_is_no_fork_knows_the_plugin(home):
    """As on macOS and Windows, and everywhere from Python 3.14 on."""
    code = """
import sys, numpy as np, yolo.data.loader as loader
from yolo.data.cache import ImageStore
from yolo.data.datasets import read_dataset
from yolo.data.index import build_index
from yolo.data.labels import BoxLabels
from yolo.data.recipe import Augment
from yolo.plugins import load_plugins

if __name__ == "__main__":
    (mine,) = load_plugins("myblocks.py")
    loader._start_method = lambda: "spawn"
    index, _ = build_index(read_dataset("set/data.yaml"), "train", BoxLabels)
    gains = Augment(mosaic=0, custom=(mine.darker,))
    batches = [
        list(line.epoch(0))
        for line in [
            loader.TrainLoader(index, ImageStore(index, (64, 64)), gains, batch=3, size=(64, 64),
                               workers=workers)
            for workers in (0, 1)
        ]
    ]
    for here, there in zip(*batches, strict=True):
        assert np.array_equal(here.images, there.images)
    assert here.images.max() < 128
"""
    (home / "program.py").write_text(code)
    done = run(home, "program.py")
    assert done.returncode == 0, done.stderr


def test_without_the_plugin_the_message_names_layer_file_and_option(home, capsys):
    assert "Gate" not in LAYERS
    for file, place in (("nano.yaml", "row 3"), ("run/weights/best.pt", "row 3")):
        with pytest.raises(ModelError) as caught:
            YOLO(home / file)
        for part in (file, place, "unknown layer 'Gate'", "plugins="):
            assert part in str(caught.value)
    assert main(["predict", f"model={home}/run/weights/best.pt", "source=x.jpg"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "unknown layer 'Gate'" in error
    assert error.count("\n") == 1


def test_no_file_imports_code_by_itself(home, tmp_path):
    """Neither a file of options nor a checkpoint: only the user names plugins."""
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    options = tmp_path / "args.yaml"
    options.write_text(json.dumps({"data": "shapes", "plugins": [str(trap)]}))
    model = YOLO("yolov8n.yaml")
    with pytest.raises(ConfigError, match=r"args\.yaml: names plugins.*plugins=.*trap\.py"):
        model.train(cfg=str(options), epochs=1)
    assert main(["train", "model=yolov8n.yaml", f"cfg={options}"]) == 2
    model.overrides["plugins"] = [str(trap)]  # what a checkpoint's options end up in
    resolve_call(model.spec, "train", model.overrides, {"data": "shapes"})
    assert not (tmp_path / "sprung").exists()
