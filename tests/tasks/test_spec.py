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
from yolo.tasks.spec import (
    TASKS,
    TaskRegistry,
    TaskSpec,
    homes_of_option,
    register_task,
    task_of_network,
)

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


@pytest.mark.processes
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
    assert TASKS["toy"] is task
    with pytest.raises(ConfigError, match="expects a TaskSpec, got dict"):
        register_task({"name": "toy"})


def test_a_definition_that_runs_again_counts_from_then_on(own_tasks):
    def cell(place="notebook"):
        parts = {"__module__": place, "__qualname__": "Judge"}
        return toy(validator=type("Judge", (TASK.validator,), parts))

    register_task(cell())
    again = register_task(cell())
    assert TASKS["toy"] is again
    with pytest.raises(ConfigError, match="task 'toy' is registered already"):
        register_task(cell("elsewhere"))


def test_a_built_in_name_is_taken_before_anything_was_looked_up(monkeypatch):
    monkeypatch.setattr(specs, "TASKS", TaskRegistry())
    with pytest.raises(ConfigError, match="task 'detect' is registered already"):
        register_task(toy("detect", suffix="-mine"))


def point(name, load):
    return SimpleNamespace(name=name, value=f"{name}:TASK", load=load)


def test_entry_points_bring_tasks_and_broken_ones_are_named_and_skipped(monkeypatch, caplog):
    def broken():
        raise RuntimeError("no such library")

    mine = toy()

    def registers_itself():
        return register_task(mine)

    points = [
        point("bad", broken),
        point("mine", registers_itself),
        point("made", lambda: lambda: toy("made")),
        point("late", lambda: toy("toy", suffix="-other")),
        point("thief", lambda: toy("detect", suffix="-mine")),
        point("number", lambda: 3),
    ]
    registry = TaskRegistry()
    monkeypatch.setattr(specs, "TASKS", registry)
    monkeypatch.setattr(specs, "entry_points", lambda group: points)
    with caplog.at_level(logging.WARNING, "yolo"):
        assert {"toy", "made", TASK.name} <= set(registry)
    assert registry["toy"] is mine
    assert registry["detect"] is TASK
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "task entry point 'bad = bad:TASK' skipped: no such library"
    assert "'late = late:TASK' skipped: task 'toy' is registered already" in said[1]
    assert "'thief = thief:TASK' skipped: task 'detect' is registered already" in said[2]
    assert "'number = number:TASK' skipped: " in said[3]
    assert len(said) == 4


def test_a_module_may_register_before_its_entry_point_is_looked_at(monkeypatch, caplog):
    """Registering looks no entry points up: the module of one may be half imported by then."""
    module = SimpleNamespace()
    registry = TaskRegistry()
    monkeypatch.setattr(specs, "TASKS", registry)
    monkeypatch.setattr(specs, "entry_points", lambda group: [point("toy", lambda: module.TASK)])
    module.TASK = register_task(toy())
    assert registry["toy"] is module.TASK
    assert not caplog.records


def test_a_class_that_is_not_there_is_named(tmp_path, monkeypatch):
    def trainer(reference):
        return toy(trainer=reference).trainer

    with pytest.raises(ConfigError, match=r"train:Detection.*no 'DetectionTr'.*'DetectionTrainer'"):
        trainer("yolo.tasks.detect.train:DetectionTr")
    with pytest.raises(ConfigError, match=r"'no_such_package\.x:Trainer'.* no module 'no_such_pa"):
        trainer("no_such_package.x:Trainer")
    # A fault inside of the module keeps its traceback.
    (tmp_path / "halting_task.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_package") as caught:
        trainer("halting_task:Trainer")
    assert caught.traceback[-1].path.name == "halting_task.py"


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


def test_a_task_that_the_user_names_has_to_fit(own_tasks):
    head = TASK.head_names[0]
    by_head, unknown = {"head": [[-1, 1, head, []]]}, {"head": [[-1, 1, "Odd", []]]}
    other, same = register_task(toy(heads=("somewhere:Other",))), register_task(toy("same"))
    assert task_of_network(by_head) is TASK  # the first that has the head
    assert task_of_network(by_head, asked=TASK.name) is TASK
    assert task_of_network(by_head, asked="same") is same
    assert task_of_network(unknown, asked="toy") is other
    assert task_of_network({"task": "toy", **by_head}, asked="toy") is other
    with pytest.raises(ModelError, match=r"a\.yaml: .* 'toy', found one for 'detect' .*holds Det"):
        task_of_network(by_head, "a.yaml", asked="toy")
    with pytest.raises(ModelError, match=r"'same', found one for 'toy' \(by its `task:` key\)"):
        task_of_network({"task": "toy", **by_head}, asked="same")
    with pytest.raises(UnknownNameError, match="unknown task 'segmentt'"):
        task_of_network(by_head, asked="segmentt")


def test_an_option_is_found_in_every_task_and_mode_that_has_it(own_tasks):
    class Own(TASK.predict_config):
        dots: int = 3

    register_task(toy(predict_config=Own))
    assert homes_of_option("dots") == [("toy", Own)]
    assert ("toy", TASK.train_config) in homes_of_option("epochs")
    assert homes_of_option("dotz") == []


def test_a_task_package_gives_its_classes_when_asked():
    import yolo.tasks.detect as package

    assert package.DetectionModel is TASK.model
    with pytest.raises(AttributeError, match=r"has no 'DetectionModl'\. Similar: 'DetectionModel'"):
        _ = package.DetectionModl
