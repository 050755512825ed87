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


def test_quickstart_runs_and_shows_pictures(tmp_path, monkeypatch):
    # The kernel is another process: it finds the package under test, and nothing else, by this.
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [o for o in outputs if {"image/png", "image/jpeg"} & o.get("data", {}).keys()]
    assert len(pictures) == 4
    text = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    assert "mAP50-95" in text
    assert "as before: True" in text
    runs = tmp_path / "runs"
    assert [path.name for path in runs.rglob("best.pt")] == ["best.pt"]
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "predicted.jpg"}


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
