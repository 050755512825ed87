# SPDX-License-Identifier: Apache-2.0
"""README.md keeps its word: its snippets run, its commands parse, the files it names are there.

So that the first snippet takes seconds, `YOLO.train` gets a small dataset and small settings in the
place of those written there; everything else runs as it stands, in a folder that has `images/` and
`my_data.yaml`.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

import nano
from yolo import YOLO, cli
from yolo.data.shapes import write_shapes
from yolo.engine.results import Results
from yolo.nn.class_losses import CLASS_LOSSES
from yolo.nn.layer import LAYERS
from yolo.tasks.spec import TASKS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    data = write_shapes(folder / "set", train=6, val=4, test=2, size=(64, 64))
    content = yaml.safe_load(data.read_text()) | {"path": str(folder / "set")}
    (folder / "my_data.yaml").write_text(yaml.safe_dump(content))
    (folder / "images").symlink_to(folder / "set" / "images" / "val")
    return folder


def test_there_are_two_snippets_and_two_commands_of_one_line():
    assert len(blocks("python")) == 2
    assert len(blocks("bash")) >= 2
    for block in blocks("bash")[:2]:
        assert len(block.splitlines()) == 1
    install, test = blocks("bash")[:2]
    assert "yolo detect train" in install
    assert "data=shapes" in install
    assert "pytest" in test


def test_the_tour_runs(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    train = YOLO.train

    def shortly(self, **options):
        assert options["data"] == "shapes"
        small = {"data": "my_data.yaml", "epochs": 1, "imgsz": 64, "batch": 4, "workers": 0}
        return train(self, **{**options, **small, "device": "cpu", "plots": False})

    monkeypatch.setattr(YOLO, "train", shortly)
    exec(compile(blocks("python")[0], "README.md", "exec"), {"__name__": "readme"})
    out = capsys.readouterr().out
    assert str(home / "runs" / "detect" / "train") in out
    assert (home / "out.jpg").is_file()


def test_the_block_runs_and_builds_by_its_name(own_layers, tmp_path):
    source = blocks("python")[1]
    assert source.startswith("# myblocks.py\n")
    name = re.search(r"Name `(\w+)` in a row", TEXT)[1]
    exec(compile(source, "myblocks.py", "exec"), {"__name__": "myblocks"})
    assert name in LAYERS
    text = nano.NETWORK.replace("  - [-1, 3, C2f", f"  - [-1, 1, {name}, []]\n  - [-1, 3, C2f")
    file = nano.write_network(tmp_path, text.replace("[[3, 4], 1", "[[4, 5], 1"))
    assert type(YOLO(file).model.model[3]).__name__ == name


def test_the_table_of_tasks_is_true():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TEXT.splitlines()]
    table = {row[0]: row[1:] for row in rows if row and row[0] in TASKS}
    assert {*table} == {*TASKS}
    boxes = table["detect"][3].split(", ")
    for name, (_, parts, losses, keys) in table.items():
        spec = TASKS[name]
        assert tuple(losses.split(", ")) == spec.criterion.names
        result = Results(np.zeros((8, 8, 3), np.uint8), "", {})
        assert all(hasattr(result, part) for part in re.findall("`(.*?)`", parts))
        metrics = spec.validator(spec.val_config(), spec).make_metrics()
        said = boxes if keys.startswith("as detect") else keys.split(", ")
        if other := re.search(r"\((\w)\)$", keys) if said is boxes and name != "detect" else None:
            said = said + [key.replace("(B)", f"({other[1]})") for key in boxes]
        assert metrics.keys == [f"metrics/{key}" for key in said]


def test_the_table_of_losses_and_assigners_is_true():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TEXT.splitlines()]
    table = {
        row[0].strip("`"): row[1:] for row in rows if row and row[0].endswith(("loss`", "er`"))
    }
    criterion = TASKS["detect"].criterion
    parts = {"cls_loss": CLASS_LOSSES, "box_loss": criterion.box_losses,
             "assigner": criterion.assigners}  # fmt: skip
    assert {*table} == {*parts}
    own = {"l1"}  # of the example in CONTRIBUTING.md, where that ran in this process
    for option, (names, default) in table.items():
        assert names.split(";")[0].split(", ") == sorted({*parts[option]} - own)
        assert default.split(";")[0] == TASKS["detect"].train_config.model_fields[option].default
    assert table["box_loss"][0].endswith(": " + ", ".join(TASKS["obb"].criterion.box_losses))
    assert table["box_loss"][1].endswith(TASKS["obb"].train_config.model_fields["box_loss"].default)
    assert {*TASKS["obb"].criterion.assigners} == {*criterion.assigners}


def commands() -> list[str]:
    lines = [
        line for kind in ("text", "bash") for block in blocks(kind) for line in block.split("&&")
    ]
    lines = [line.split("#")[0].strip() for text in lines for line in text.splitlines()]
    return [line for line in lines if re.match(r"(\S*/)?yolo ", line)]


@pytest.mark.parametrize("line", commands())
def test_every_command_parses_and_its_options_exist(line):
    command = cli.parse(shlex.split(line)[1:])
    assert command.verb in cli.COMMANDS
    if command.verb in cli.EXAMPLES:
        task, words = cli._find_task(command.words, None)
        assert not cli._switches(words, command.verb, task)
        schema = cli._schema(command.verb, task or next(iter(TASKS.values())))
        assert command.options.keys() <= {*schema.model_fields, "cfg"}


def test_there_are_commands():
    assert len(commands()) >= 6


def named_files() -> list[str]:
    quoted = [word for text in re.findall(r"`([^`\n]+)`", TEXT) for word in text.split()]
    listed = [line.split()[0] for block in blocks("text") for line in block.splitlines() if line]
    beside = re.findall(r"\b(CONTRIBUTING\.md|CHANGELOG\.md|LICENSE)\b", TEXT)
    ours = re.compile(r"(tests|yolo|docs|examples|benchmarks|\.ci)/[\w./-]*")
    return sorted({name for name in (*quoted, *listed) if ours.fullmatch(name)} | {*beside})


@pytest.mark.parametrize("name", named_files())
def test_every_file_that_is_named_exists(name):
    assert (ROOT / name).exists()


def test_files_are_named():
    found = named_files()
    assert "tests/golden/" in found
    assert "yolo/api.py" in found
    assert sum(name.startswith("tests/") for name in found) >= 6
    beside = re.findall(r"; +(\w+\.py):", TEXT)  # "yolo/nn/assign.py ...;  losses.py: ..."
    assert all(list((ROOT / "yolo").rglob(name)) for name in beside)
