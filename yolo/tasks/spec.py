# SPDX-License-Identifier: Apache-2.0
"""What a task is: one dataclass, and the registry of all of them.

Looking a task up imports no torch.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import entry_points
from typing import Any

from yolo.errors import ConfigError, ModelError, nearest
from yolo.registry import Registry

LOGGER = logging.getLogger(__name__)

_LAZY = frozenset(
    {
        "model", "criterion", "label_format", "trainer", "validator", "predictor", "exporter",
        "train_config", "val_config", "predict_config", "extras",
    }
)  # fmt: skip


@dataclass(frozen=True)
class TaskSpec:
    """Everything the engine asks about a task.

    A class may be given itself or as "package.module:Name"; reading the field always gives the
    class, imported at that moment, so that registering and looking up tasks stays light.

    Attributes:
        name: what users write, "detect".
        suffix: what model file names of this task end in, "-seg"; "" for none.
        heads: the layers that may stand in the last row of the task's network YAMLs, as classes
            or "module:Name".
        model: subclass of BaseModel, built as `model(cfg, ch=, nc=)`.
        criterion: the loss, an nn.Module whose call `(raw, targets)` returns a LossReport and
            whose `names` are the logged terms; the task's trainer says how it is constructed.
        label_format: class that reads labels of this task (yolo/data/labels.py).
        trainer, validator, predictor: the classes that run the three loops.
        train_config, val_config, predict_config: the task's option schemas.
        extras: makes, of (options, dataset), what gives batches targets beyond boxes
            (`yolo.data.batch.Extras`); None where boxes are all.
        payload: fields of Results that a prediction fills, ("boxes",).
        fitness: key of the metrics by which the best epoch is chosen when `monitor` is unset.
        defaults: options whose default differs for this task.
    """

    name: str
    heads: tuple[Any, ...]
    model: Any
    criterion: Any
    label_format: Any
    trainer: Any
    validator: Any
    predictor: Any
    train_config: Any
    val_config: Any
    predict_config: Any
    extras: Any = None
    suffix: str = ""
    payload: tuple[str, ...] = ("boxes",)
    fitness: str = "fitness"
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def defaults_for(self, mode: str) -> dict[str, Any]:
        """Return the `defaults` that the option schema of `mode` knows."""
        known = getattr(self, f"{mode}_config").model_fields
        return {key: value for key, value in self.defaults.items() if key in known}

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name == "heads":
            return tuple(map(_resolve, value))
        return _resolve(value) if name in _LAZY else value

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of the head layers, read without importing them."""
        heads = object.__getattribute__(self, "heads")
        return tuple(h.rpartition(":")[2] if isinstance(h, str) else h.__name__ for h in heads)


def _resolve(reference: Any) -> Any:
    """Import what a "module:Name" string names; return anything else as it is."""
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


class TaskRegistry(Registry[TaskSpec]):
    """Registry that imports the built-in tasks and the entry points at the first look-up."""

    def __init__(self) -> None:
        super().__init__("task")
        self._loaded = False

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        from yolo.tasks import BUILTIN, ENTRY_POINTS

        for module in BUILTIN:
            register_task(importlib.import_module(module).TASK)
        for point in entry_points(group=ENTRY_POINTS):
            try:
                spec = point.load()
                register_task(spec() if not isinstance(spec, TaskSpec) else spec)
            except Exception as error:  # somebody else's package must not take ours down
                LOGGER.warning("task entry point %r skipped: %s", point.name, error)

    def __getitem__(self, name: str) -> TaskSpec:
        self._load()
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._load()
        return super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        self._load()
        return super().__iter__()

    def __len__(self) -> int:
        self._load()
        return super().__len__()


TASKS = TaskRegistry()


def register_task(spec: TaskSpec) -> TaskSpec:
    """Make a task known to `YOLO` and the `yolo` command.

    Raises:
        ConfigError: if `spec` is no TaskSpec, or another task has its name.
    """
    if not isinstance(spec, TaskSpec):
        raise ConfigError(f"register_task expects a TaskSpec, got {type(spec).__name__}")
    return TASKS.add(spec.name, spec)


def task_of_network(network: Mapping[str, Any], origin: str = "the network") -> TaskSpec:
    """Return the task of a network description: its `task` key, else the owner of its last row.

    Raises:
        UnknownNameError: if the `task` key names no task.
        ModelError: if no task owns the last row's layer.
    """
    if network.get("task"):
        return TASKS[str(network["task"])]
    rows = [*network.get("backbone", []), *network.get("head", [])]
    last = str(rows[-1][2]) if rows and len(rows[-1]) > 2 else "nothing"
    owners = {name: spec for spec in TASKS.values() for name in spec.head_names}
    if last not in owners:
        raise ModelError(
            f"{origin}: the last row holds {last!r}, expected the head of a task "
            f"({', '.join(sorted(owners))}). {nearest(last, owners)} Or set `task:` in the YAML"
        )
    return owners[last]


def lazy_exports(spec: TaskSpec) -> Callable[[str], Any]:
    """Return a module `__getattr__` that serves the classes a spec names, imported when asked."""
    written = {f.name: object.__getattribute__(spec, f.name) for f in fields(spec)}
    references = [*written["heads"], *written.values()]
    names = {r.rpartition(":")[2]: r for r in references if isinstance(r, str) and ":" in r}

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"task {spec.name!r} has no {name!r}. {nearest(name, names)}")
        return _resolve(names[name])

    return get
