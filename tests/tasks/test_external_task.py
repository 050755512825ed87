# SPDX-License-Identifier: Apache-2.0
"""A sixth task from outside: the code of docs/own_task.md, run as the page says, in its own folder.

Nothing of the package is edited or patched; the task arrives by its entry point, as installed.
"""

from __future__ import annotations

import csv
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import nano
from yolo import YOLO
from yolo.cfg.load import read_yaml
from yolo.cli import main
from yolo.data.labels import LabelRules, parse_labels
from yolo.errors import CheckpointError, ConfigError, ModelError
from yolo.nn.layer import LAYERS
from yolo.tasks.spec import TASKS

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.processes
PAGE = (ROOT / "docs" / "own_task.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```\w+\n# ([\w./]+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^yolo (.*)", PAGE, re.MULTILINE)
SHORT = {"imgsz": 64, "batch": 8, "device": "cpu", "workers": 0, "plots": False, "verbose": False}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the page's files, the task as good as installed, the page's script run."""
    folder = tmp_path_factory.mktemp("own_task")
    for name, text in BLOCKS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    toml = r'\[project\.entry-points\."(.*)"\]\n(\w+ = )"(.*)"\n'
    group, name, value = re.fullmatch(toml, BLOCKS["pyproject.toml"]).groups()
    installed = folder / "counting-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[{group}]\n{name}{value}\n")
    process(folder, "make_data.py")
    (folder / "said.txt").write_text(process(folder, "use.py"))
    return folder


def process(folder, *words):
    """Run Python in a process that finds the task's package, and only there its entry point."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def alone(monkeypatch, own_layers):
    """Let a test bring tasks and modules without leaving them behind."""
    monkeypatch.setattr(TASKS, "_parts", dict(TASKS._parts))
    monkeypatch.setattr(TASKS, "_has_entry_points", False)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "counting" or "plugin_counting" in name:
            del sys.modules[name]


@pytest.fixture
def installed(home, alone, monkeypatch):
    """Have the task's package on the path, and be in its folder."""
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.chdir(home)
    return home


def best(home):
    return home / "runs" / "count" / "train" / "weights" / "best.pt"


# ---------------------------------------------------------------------- in Python


def test_the_script_learns_to_count(home):
    said = (home / "said.txt").read_text().splitlines()
    assert float(re.match(r"counts are off by ([\d.]+); weights are in ", said[0])[1]) < 0.3
    assert re.match(r"\d (disc|square), .*\[\[\d+\.\d, ", said[1])
    assert len(said) == 1 + 8
    assert cv2.imread(str(home / "counted.png")).shape == (64, 64, 3)


def test_its_run_folder_is_like_any_others(home):
    run = home / "runs" / "count" / "train"
    with (run / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    losses = [float(row["train/heat_loss"]) for row in rows]
    assert losses[-1] < 0.5 * losses[0]
    assert {"val/heat_loss", "metrics/error", "metrics/exact", "lr/pg0"} <= set(rows[0])
    assert read_yaml(run / "args.yaml")["centre_weight"] == 10.0
    made = {path.name for path in run.iterdir()}
    assert made >= {"labels.jpg", "results.png", "train_batch0.jpg", "val_batch0_pred.jpg"}


def test_what_it_says_of_an_image(installed, tmp_path):
    model = YOLO(best(installed))
    (result,) = model.predict("dots/images/val/0.png", verbose=False)
    truth = np.loadtxt(installed / "dots" / "labels" / "val" / "0.txt", ndmin=2)
    assert result.boxes is None
    assert len(result) == len(result.points) == pytest.approx(len(truth), abs=1)
    rows = result.summary(normalize=True)
    assert all(set(row) == {"name", "class", "confidence", "x", "y"} for row in rows)
    said = np.array([[row["class"], row["x"], row["y"]] for row in rows])
    assert abs(said[:, None] - truth).max(axis=2).min(axis=1).max() < 0.05
    assert result.to_csv().count("\n") == len(result) + 1
    assert sum(result[0].points.counts().values()) == 1
    assert len(result.cpu().numpy()[:0].points) == 0
    assert not np.array_equal(result.plot(), result.orig_img)
    # What it writes, its label format reads.
    result.save_txt(tmp_path / "0.txt", save_conf=False)
    text = (tmp_path / "0.txt").read_bytes()
    found, problems = parse_labels(text, "0.txt", TASKS["count"].label_format(), LabelRules(2))
    assert not problems
    assert found.classes.tolist() == said[:, 0].tolist()


def test_validation_by_itself_gives_what_training_gave(installed):
    metrics = YOLO(best(installed)).val(plots=False, verbose=False, workers=0)
    said = (installed / "said.txt").read_text()
    assert f"off by {metrics.error:.2f};" in said
    assert [row["Class"] for row in metrics.summary()] == ["disc", "square"]


def test_every_default_and_option_counts(installed, caplog):
    model = YOLO("count.yaml")
    given = {"data": "dots/data.yaml", **SHORT}
    with pytest.raises(ConfigError, match=r"unknown option 'centre_wait'.*'centre_weight'"):
        model.train(**given, centre_wait=3)
    with pytest.raises(ConfigError, match=r"'centre_weight' \(train\): expected float > 0"):
        model.train(**given, centre_weight=-1)
    with pytest.raises(ConfigError, match="'centre_weight' belongs to count train, not to val"):
        model.val(**given, centre_weight=3)
    model.predict(np.zeros((64, 64, 3), np.uint8), verbose=False)
    assert model.predictor.args.conf == 0.5
    detector = YOLO(nano.write_network(installed))
    detector.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False)
    assert detector.predictor.args.conf == 0.25
    with pytest.raises(ConfigError, match="train needs data="):
        detector.train(centre_weight=3.0)
    assert "'centre_weight' is for count; it has no effect on this model" in caplog.text


def test_it_goes_on_and_starts_from_other_weights(installed, tmp_path):
    given = {**SHORT, "data": "dots/data.yaml", "project": str(tmp_path), "epochs": 1}
    model = YOLO(best(installed))
    model.train(**given, name="more")
    metrics = YOLO(tmp_path / "more/weights/last.pt").train(resume=True, epochs=2)
    assert len((metrics.save_dir / "results.csv").read_text().splitlines()) == 3


def test_a_bad_row_says_what_its_format_expects(installed, tmp_path, capsys):
    label = installed / "dots" / "labels" / "val" / "0.txt"
    before = label.read_text()
    label.write_text(f"{before}0 0.5 0.5 0.5\n1 1.5 0.5\n")
    try:
        assert main(["check", "count", "dots/data.yaml"]) == 1
    finally:
        label.write_text(before)
    out, line = capsys.readouterr().out, len(before.splitlines()) + 1
    expected = "3 columns (class x y) or 5 (class cx cy w h), found 4 columns"
    assert f"{label}:{line}: expected {expected}" in out
    assert f"{label}:{line + 1}: expected coordinates from 0 to 1" in out


# ---------------------------------------------------------------------- by the command


def test_every_command_of_the_page_runs(installed, capsys):
    assert len(COMMANDS) >= 5
    for line in COMMANDS:
        quick = ["workers=0", "plots=False"] if {"train", "val"} & {*line.split()} else []
        assert main([*line.split(), *quick]) == 0, line
    out = capsys.readouterr().out
    assert re.search(r"count train\n(.*\n)+centre_weight +float > 0 +20\.0 ", out)
    assert re.search(r"count predict\n\noption .*\nconf .* 0\.5 ", out)
    labels = installed / "runs" / "count" / "predict" / "labels"
    assert len(list(labels.glob("*.txt"))) == 8
    assert read_yaml(installed / "runs/count/train-2/args.yaml")["centre_weight"] == 10
    assert '"counts"' in (installed / "runs/count/val/predictions.json").read_text()


def test_a_process_of_its_own_finds_the_task_by_its_entry_point(home):
    code = (
        "import sys\nfrom yolo.cli import main\n"
        "assert main(['cfg', 'count']) == 0 and 'torch' not in sys.modules\n"
        f"sys.exit(main(['val', r'model={best(home)}', 'data=dots/data.yaml', 'workers=0']))\n"
    )
    assert "centre_weight" in process(home, "-c", code)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("detect train model=count.yaml data=dots/data.yaml",
         "count.yaml: expected a network for 'detect', found one for 'count'"),
        ("count train model=yolov8n.yaml data=dots/data.yaml",
         "expected a network for 'count', found one for 'detect'"),
        ("count train model=count.yaml data=dots/data.yaml centre_weight=0", "centre_weight"),
        ("cuont train model=count.yaml data=dots/data.yaml", "Similar: 'count'"),
    ],
)  # fmt: skip
def test_mistakes_exit_with_2(installed, capsys, line, words):
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("error: ") == 1


# ---------------------------------------------------------------------- other ways to bring it


def test_without_its_task_a_checkpoint_says_what_is_missing(home, alone, monkeypatch):
    monkeypatch.chdir(home)
    with pytest.raises(CheckpointError, match=r"holds a model for 'count'.*plugins="):
        YOLO(best(home))
    with pytest.raises(ModelError, match="the last row holds 'Count', expected the head of a task"):
        YOLO("count.yaml")


def test_importing_is_enough_and_comes_to_the_same(installed):
    import counting

    assert TASKS["count"] is counting.TASK
    assert YOLO("count.yaml").task_map["count"]["trainer"].__name__ == "CountTrainer"


def test_one_file_named_as_plugin(home, alone, tmp_path):
    """All of the page in one file, the classes in the place of their names."""
    modules = [text for name, text in BLOCKS.items() if name.startswith("counting/")]
    text = "\n".join([*modules[1:], modules[0]])
    text = re.sub(r"^from counting.*\n", "", text, flags=re.MULTILINE)
    file = tmp_path / "counting.py"
    file.write_text(re.sub(r'"counting\.\w+:(\w+)"', r"\1", text), encoding="utf-8")
    model = YOLO(best(home), plugins=file)
    assert model.task == "count"
    assert len(model.predict(home / "dots/images/val", verbose=False, imgsz=64)) == 8


def test_nothing_was_left_behind():
    assert "count" not in TASKS
    assert "Count" not in LAYERS
    assert not [name for name in sys.modules if name.startswith("counting")]
    assert logging.getLogger("yolo").level == logging.NOTSET
