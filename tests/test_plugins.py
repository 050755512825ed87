# SPDX-License-Identifier: Apache-2.0
"""A user's own files: imported once, under a stable name, with errors that name the file."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from yolo.errors import ConfigError, MissingFileError
from yolo.plugins import load_plugins, loaded_plugins

BLOCK = """
from torch import nn
from yolo.nn.layer import channelwise, layer

@layer(plan=channelwise)
class PluginBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x
"""


@pytest.fixture(autouse=True)
def _own_modules():
    """Forget the modules that a test imports."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if "plugin" in name:
            del sys.modules[name]


def write(folder: Path, text: str, name: str = "my_plugin.py") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_a_file_runs_once(tmp_path):
    file = write(tmp_path, "from pathlib import Path\nruns = []\nruns.append(1)\n")
    (first,) = load_plugins([file])
    first.runs.append(2)
    (second,) = load_plugins([str(file)])
    assert second is first
    assert second.runs == [1, 2]


def test_a_file_that_the_program_imported_is_not_run_again(tmp_path, monkeypatch):
    file = write(tmp_path, "value = []\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = importlib.import_module("my_plugin")
    assert load_plugins([file]) == [own]


@pytest.mark.processes
def test_the_name_is_the_same_in_another_process(tmp_path):
    """What a worker that loaded the same file needs in order to unpickle."""
    file = write(tmp_path, "class Thing:\n    value = 7\n")
    (module,) = load_plugins([file])
    stored = pickle.dumps(module.Thing())
    code = (
        "import pickle, sys; from yolo.plugins import load_plugins; load_plugins([sys.argv[1]]); "
        f"print(pickle.loads({stored!r}).value)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "7", done.stderr


def test_what_is_loaded_is_told_for_other_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("yolo.plugins._LOADED", {})
    files = [write(tmp_path, "value = 1\n", f"plugin_{i}.py") for i in (2, 1)]
    own = write(tmp_path, "value = 1\n", "own_plugin.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("own_plugin")  # by the user's program: its classes have that name
    load_plugins(f"{files[0]}, {files[1]},{own}")
    assert loaded_plugins() == tuple(map(str, files))


def test_two_files_with_one_stem(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    files = [write(folder, f"value = {folder.name!r}\n") for folder in folders]
    assert [module.value for module in load_plugins(files)] == ["a", "b"]


def test_a_layer_joins_the_registry(tmp_path):
    layers = pytest.importorskip("yolo.nn.layer").LAYERS
    try:
        load_plugins([write(tmp_path, BLOCK)])
        assert layers["PluginBlock"].cls.__name__ == "PluginBlock"
    finally:
        layers._parts.pop("PluginBlock", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nraise ValueError('bad day')\n", r"my_plugin\.py:2: ValueError: bad day"),
        ("x = 1\ny = (\n", r"my_plugin\.py:\d: SyntaxError"),
        ("import no_such_package_here\n", r"my_plugin\.py:1: ModuleNotFoundError"),
    ],
)
def test_errors_name_the_file_and_leave_nothing(tmp_path, text, message):
    file = write(tmp_path, text)
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=message):
        load_plugins([file])
    assert not [name for name in set(sys.modules) - before if "my_plugin" in name]


def test_what_is_no_plugin(tmp_path):
    with pytest.raises(MissingFileError, match="no plugin file"):
        load_plugins([tmp_path / "gone.py"])
    with pytest.raises(ConfigError, match="expected a Python file"):
        load_plugins([write(tmp_path, "", "plugin.txt")])
