# SPDX-License-Identifier: Apache-2.0
"""The registry of tasks: lazy classes, clashes, entry points, and the task of a network."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from yolo.cfg.networks import find_network, known_networks
from yolo.errors import ConfigError, ModelError, UnknownNameError
from yolo.tasks import spec as specs
from yolo.tasks.detect import TASK
from yolo.tasks.spec import TASKS, TaskRegistry, TaskSpec, register_task, task_of_network

LAZY = sorted(specs._LAZY & {f.name for f in specs.fields(TaskSpec)})


def toy(name="toy", **changes):
    return replace(TASK, name=name, **changes)


@pytest.fixture
def own_tasks(monkeypatch):
    """Let a test register tasks without leaving them behind."""
    len(TASKS)  # loads the built-in ones
    monkeypatch.setattr(TASKS, "_parts", dict(TASKS._parts))


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("field", LAZY)
def test_every_field_of_every_task_names_a_class(name, field):
    value = getattr(TASKS[name], field)
    assert isinstance(value, type) or (field == "extras" and (value is None or callable(value)))


@pytest.mark.parametrize("name", list(TASKS))
def test_defaults_are_options_and_heads_are_layers(name):
    task = TASKS[name]
    assert [head.__name__ for head in task.heads] == list(task.head_names)
    modes = ("train", "val", "predict")
    known = {key for mode in modes for key in task.defaults_for(mode)}
    assert known == set(task.defaults)


def test_looking_a_task_up_imports_no_torch():
    code = (
        "import sys; from yolo import TASKS\n"
        "[(t.name, t.head_names, t.train_config, t.predictor) for t in TASKS.values()]\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_same_object_twice_is_no_clash_another_is(own_tasks):
    task = register_task(toy())
    assert register_task(task) is task
    assert TASKS["toy"] is task
    with pytest.raises(ConfigError, match="task 'toy' is registered already"):
        register_task(toy(suffix="-toy"))
    with pytest.raises(ConfigError, match="expects a TaskSpec, got dict"):
        register_task({"name": "toy"})


def test_entry_points_bring_tasks_and_broken_ones_are_named_and_skipped(monkeypatch, caplog):
    def broken():
        raise RuntimeError("no such library")

    mine = toy()
    points = [
        SimpleNamespace(name="bad", load=broken),
        SimpleNamespace(name="mine", load=lambda: mine),
        SimpleNamespace(name="made", load=lambda: lambda: toy("made")),
    ]
    registry = TaskRegistry()
    monkeypatch.setattr(specs, "TASKS", registry)
    monkeypatch.setattr(specs, "entry_points", lambda group: points)
    with caplog.at_level(logging.WARNING, "yolo"):
        assert {"toy", "made", TASK.name} <= set(registry)
    assert registry["toy"] is mine
    assert "task entry point 'bad' skipped: no such library" in caplog.text


@pytest.mark.parametrize("name", known_networks())
def test_the_task_of_every_network_in_the_package(name):
    network = find_network(name)
    assert task_of_network(network.yaml).suffix in network.path.stem


def test_the_task_of_a_network_by_key_or_by_its_head():
    head = TASK.head_names[0]
    assert task_of_network({"head": [[-1, 1, head, []]]}) is TASK
    assert task_of_network({"task": TASK.name, "head": [[-1, 1, "Odd", []]]}) is TASK
    with pytest.raises(ModelError, match=r"my.yaml: the last row holds 'Detct'.*Similar: 'Detect'"):
        task_of_network({"head": [[-1, 1, "Detct", []]]}, "my.yaml")
    with pytest.raises(ModelError, match="the last row holds 'nothing'"):
        task_of_network({})
    with pytest.raises(UnknownNameError, match=r"unknown task 'detcet'\. Similar: 'detect'"):
        task_of_network({"task": "detcet"})


def test_a_task_package_gives_its_classes_when_asked():
    import yolo.tasks.detect as package

    assert package.DetectionModel is TASK.model
    with pytest.raises(AttributeError, match=r"has no 'DetectionModl'\. Similar: 'DetectionModel'"):
        _ = package.DetectionModl
