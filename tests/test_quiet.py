# SPDX-License-Identifier: Apache-2.0
"""Nothing happens behind the user's back: at import, and in a whole round of work.

Each test runs a fresh process with a home that can't be written to, an empty current folder and an
empty folder for temporary files. What all other tests do is seen by tests/guard.py as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

import nano
from guard import UNWRITABLE, listing
from yolo.data.shapes import write_shapes

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.processes

SNAPSHOT = """
import gc, locale, logging, multiprocessing, os, random, signal, sys, threading, warnings

def settings_of(logger):
    return logger.level, logger.propagate, logger.disabled, logger.handlers[:], logger.filters[:]

def mask():
    now = os.umask(0)
    os.umask(now)
    return now

def snapshot():
    state = {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "random": random.getstate(),
        "warnings": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "hooks": (sys.excepthook, sys.stdout, sys.stderr, sys.displayhook),
        "locale": locale.setlocale(locale.LC_ALL),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "threads": threading.active_count(),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "limits": (sys.getrecursionlimit(), sys.getswitchinterval()),
        "garbage": (gc.isenabled(), gc.get_threshold()),
        "mask": mask(),
        "temporary": [n for n in os.listdir(os.environ["TMPDIR"]) if "torchinductor_" not in n],
        "logging": settings_of(logging.root),
        "all logging": (logging.root.manager.disable, logging.raiseExceptions),
    }
    known = logging.root.manager.loggerDict.items()
    loggers = {k: settings_of(v) for k, v in known if isinstance(v, logging.Logger)}
    state["loggers"] = {k: v for k, v in loggers.items() if v != (0, True, False, [], [])}
    modules = sys.modules
    if "numpy" in modules:
        np = modules["numpy"]
        kind, keys, *rest = np.random.get_state()
        state["numpy's generator"] = kind, keys.tolist(), rest
        state["numpy"] = np.geterr(), np.geterrcall(), np.get_printoptions()
    if "cv2" in modules:
        cv2 = modules["cv2"]
        state["cv2"] = cv2.getNumThreads(), cv2.useOptimized(), cv2.ocl.useOpenCL()
        state["cv2's logging"] = cv2.utils.logging.getLogLevel()
    if "PIL.Image" in modules:
        from PIL import Image, ImageFile
        state["PIL"] = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, Image.open
    if "matplotlib" in modules:
        matplotlib = modules["matplotlib"]
        state["matplotlib"] = matplotlib.rcParams.copy()
        state["pyplot"] = "matplotlib.pyplot" in modules
    if "torch" in modules:
        torch = modules["torch"]
        state["torch's generator"] = hash(tuple(torch.get_rng_state().tolist()))
        state["torch"] = (
            torch.get_num_threads(), torch.get_num_interop_threads(),
            torch.get_default_dtype(), torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision(),
            torch.is_autocast_enabled("cpu"), vars(torch._tensor_str.PRINT_OPTS).copy(),
            torch.multiprocessing.get_sharing_strategy(), torch.save, torch.load,
            torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled,
            torch.get_deterministic_debug_mode(), torch.is_warn_always_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory, torch.is_anomaly_enabled(),
            torch.is_inference_mode_enabled(), torch.get_default_device(),
            torch.cuda.is_initialized(), torch.distributed.is_initialized(),
        )
    return state

def compare(before, after):
    for key in before:
        assert before[key] == after[key], (key, before[key], after[key])
"""

GUARDED = """
from guard import GUARD, install
install()
GUARD.on = True
"""


def run_quietly(folder: Path, code: str, *argv: object) -> Path:
    """Run `code` in a process of its own, which must say nothing; return its current folder."""
    places = {name: folder / name for name in ("current", "temporary")}
    for place in places.values():
        place.mkdir()
    environment = os.environ | {
        "HOME": UNWRITABLE,
        "TMPDIR": str(places["temporary"]),
        "MPLCONFIGDIR": matplotlib.get_configdir(),  # as after matplotlib's first time (conftest)
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)],
        cwd=places["current"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    left = [path.name for path in places["temporary"].iterdir()]
    assert not [name for name in left if not name.startswith("torchinductor_")]
    return places["current"]


def test_import_is_free(tmp_path):
    """Not by the clock, which other programs slow down, but by what is imported and changed."""
    code = f"""
{SNAPSHOT}
before, modules = snapshot(), set(sys.modules)
import yolo
new = {{m.split(".")[0] for m in set(sys.modules) - modules}} - sys.stdlib_module_names
compare(before, snapshot())
assert new == {{"yolo"}}, new
yolo.__version__, dir(yolo)
assert "yolo.api" not in sys.modules
yolo.YOLO, yolo.TASKS["detect"], yolo.register_task
assert not {{"torch", "cv2", "matplotlib", "rich", "PIL"}} & set(sys.modules)
compare(before, snapshot())
"""
    assert not list(run_quietly(tmp_path, code).iterdir())


def test_importing_every_module_changes_nothing(tmp_path):
    code = f"""
{SNAPSHOT}
import importlib, pkgutil
import cv2, numpy, pydantic, torch, torchvision, yaml, PIL.Image, PIL.ImageFile
import faster_coco_eval
import matplotlib.font_manager
{GUARDED}
before = snapshot()
import yolo
names = [m.name for m in pkgutil.walk_packages(yolo.__path__, "yolo.") if "__main__" not in m.name]
for name in names:
    importlib.import_module(name)
    compare(before, snapshot())
assert len(names) > 100, names
assert not GUARD.tried, GUARD.tried
assert "matplotlib.pyplot" not in sys.modules
"""
    assert not list(run_quietly(tmp_path, code).iterdir())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("quiet") / "set", train=6, val=4, size=(64, 64))


def test_work_changes_no_setting_reaches_no_network_and_starts_no_program(tmp_path, data):
    """Build, predict, train, validate, in one process: snapshots around each step."""
    network = nano.write_network(tmp_path)
    files = listing(data.parent)
    code = f"""
{SNAPSHOT}
import cv2, numpy as np, PIL.Image, PIL.ImageFile
import matplotlib.font_manager, torch   # they run fc-list and ldconfig, the first time
{GUARDED}
network, data = sys.argv[1:]
import nano
image = np.random.randint(0, 255, (48, 64, 3), np.uint8)
torch.set_num_threads(2)
cv2.setNumThreads(3)
before = snapshot()
from yolo import YOLO
with torch.random.fork_rng():   # weights are drawn from torch's generator, as in any network
    model = YOLO(network)
compare(before, snapshot())
(result,) = model.predict(image, imgsz=64)
result.plot(), result.summary(), result.boxes.xyxy
compare(before, snapshot())
assert not os.listdir("."), os.listdir(".")
import torch._dynamo   # as torch's optimizers do; it sets a variable and a warning filter
before = snapshot()
model.info()
compare(before, snapshot())
options = {{**nano.options("runs", "nano", epochs=2, workers=2), "plots": True, "verbose": True}}
metrics = model.train(data=data, **options)
compare(before, snapshot())
assert metrics.save_dir == model.trainer.save_dir
best = YOLO(metrics.save_dir / "weights" / "best.pt")
best.val(data=data, workers=0, plots=False)
compare(before, snapshot())
list(best.predict(data.replace("data.yaml", "images/val"), stream=True))
compare(before, snapshot())
assert "matplotlib.pyplot" not in sys.modules
assert not GUARD.tried, GUARD.tried
"""
    current = run_quietly(tmp_path, code, network, data)
    assert [path.name for path in current.iterdir()] == ["runs"]
    assert [path.name for path in (current / "runs").iterdir()] == ["nano"]
    assert (current / "runs" / "nano" / "results.png").is_file()
    assert listing(data.parent) == files, "the dataset's folder was written to"
