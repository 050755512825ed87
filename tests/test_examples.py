# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def run_notebook(name, folder, monkeypatch, parameters=None):
    """Execute a notebook in `folder`; return its outputs."""
    # The kernel is another process: it finds the package under test, and nothing else, by this.
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    for variable in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, f"{folder}-{variable.lower()}")  # they need a home
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    if parameters:
        cell.source = re.sub(r"^EPOCHS, SIZE = .*$", parameters, cell.source, flags=re.M)
        assert parameters in cell.source
    NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def stdout(outputs):
    return "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")


@pytest.mark.processes
@pytest.mark.slow
def test_quickstart_runs_and_shows_pictures(tmp_path, monkeypatch):
    # On a busy machine two threads that wait for each other take many times as long as one.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    outputs = run_notebook("quickstart", tmp_path, monkeypatch, "EPOCHS, SIZE = 1, 96")
    pictures = [o for o in outputs if {"image/png", "image/jpeg"} & o.get("data", {}).keys()]
    assert len(pictures) == 4
    assert "mAP50-95" in stdout(outputs)
    assert "as before: True" in stdout(outputs)
    runs = tmp_path / "runs"
    assert [path.name for path in runs.rglob("best.pt")] == ["best.pt"]
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "predicted.jpg"}


@pytest.mark.processes
@pytest.mark.slow
def test_quickstart_as_it_stands_trains_a_good_detector(tmp_path, monkeypatch):
    outputs = run_notebook("quickstart", tmp_path, monkeypatch)
    found = re.search(r"mAP50 ([0-9.]+), mAP50-95", stdout(outputs))
    assert float(found[1]) > 0.5


@pytest.mark.processes
def test_the_examples_in_contributing_run():
    """In a process of their own, since they register parts."""
    text = (EXAMPLES.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(blocks) == 3
    check = """
import torch
from yolo.nn.layer import LAYERS, BuildContext
from yolo.tasks.spec import TASKS

plan = LAYERS["Sharp"].plan([64, 2], BuildContext(Sharp, (3,), width=0.25))
assert plan.out_channels == 16
assert Sharp(**plan.kwargs)(torch.zeros(1, 3, 8, 8)).shape == (1, 16, 4, 4)
assert BOX_LOSSES["l1"](torch.zeros(5, 4), torch.ones(5, 4)).tolist() == [1] * 5
assert "count" in TASKS
"""
    script = "\n".join([*blocks, check])
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, cwd=EXAMPLES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({path.stem for path in NOTEBOOKS} - {"quickstart"}))
def test_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    outputs = run_notebook(name, tmp_path, monkeypatch, "EPOCHS, SIZE = 1, 96")
    assert not [o for o in outputs if o.output_type == "error"]
    assert name == "own_loop" or [o for o in outputs if "image/png" in o.get("data", {})]
    assert stdout(outputs) or name != "own_loop"
