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
from types import MappingProxyType
from typing import Any

from yolo.errors import ConfigError, ModelError, nearest
from yolo.registry import Registry

LOGGER = logging.getLogger(__name__)

_LAZY = frozenset(
    {
        "model", "criterion", "label_format", "trainer", "validator", "predictor",
        "train_config", "val_config", "predict_config", "export_config", "extras",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Outputs:
    """What a task's network gives, as an exported file has it.

    B images, C classes, A anchor points, E further values.

    Attributes:
        boxes: the first output is (B, 4 + C + E, A): centre, width and height in pixels, scores,
            further values; overlapping boxes can then be suppressed in the file. Else it is
            (B, C), scores of the whole image.
        rotated: the last of the further values is the box's angle.
        extra: units of the E further values, by turns: "px", "score", "rad" or "value". Of three
            units the first two are used where a keypoint has two numbers.
        fit: how images are brought to size: "letterbox" or "crop".
        names: of all outputs.
        axes: for each output, its sizes that follow the image's: axis -> name.
    """

    boxes: bool = True
    rotated: bool = False
    extra: tuple[str, ...] = ()
    fit: str = "letterbox"
    names: tuple[str, ...] = ("output0",)
    axes: tuple[Mapping[int, str], ...] = (MappingProxyType({2: "anchors"}),)


@dataclass(frozen=True)
class TaskSpec:
    """Everything the engine asks about a task.

    A class may be given itself or as "package.module:Name"; reading the field always gives the
    class, imported at that moment, so that registering and looking up tasks stays light.

    Attributes:
        name: what users write, "detect".
        suffix: what the names of the task's network files end in, "-seg"; "" for none.
        heads: the layers that may stand in the last row of the task's network YAMLs, as classes
            or "module:Name".
        model: subclass of BaseModel, built as `model(cfg, ch=, nc=)`.
        criterion: the loss, an nn.Module whose call `(raw, targets)` returns a LossReport and
            whose `names` are the logged terms; the task's trainer says how it is constructed.
        label_format: class that reads labels of this task (yolo/data/labels.py).
        trainer, validator, predictor: the classes that run the three loops.
        train_config, val_config, predict_config, export_config: the task's option schemas.
        outputs: what the network gives; None: it can't be exported.
        extras: makes, of (options, dataset), what gives batches targets beyond boxes
            (`yolo.data.batch.Extras`); None where boxes are all.
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
    export_config: Any = "yolo.cfg.schema:ExportConfig"
    outputs: Outputs | None = None
    extras: Any = None
    suffix: str = ""
    fitness: str = "fitness"
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def defaults_for(self, mode: str) -> dict[str, Any]:
        """Return the `defaults` that the option schema of `mode` knows."""
        known = getattr(self, f"{mode}_config").model_fields
        return {key: value for key, value in self.defaults.items() if key in known}

    def __deepcopy__(self, memo: Any) -> TaskSpec:
        return self  # frozen, and compared by identity

    def __reduce__(self) -> tuple[Any, ...]:
        return _registered, (self.name,)  # in another process it is the one of that process

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name == "heads":
            return tuple(map(_resolve, value))
        if name == "model":
            _ = self.heads  # a network is built of layers that have been imported
        return _resolve(value) if name in _LAZY else value

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of the head layers, read without importing them."""
        heads = object.__getattribute__(self, "heads")
        return tuple(h.rpartition(":")[2] if isinstance(h, str) else h.__name__ for h in heads)


def _registered(name: str) -> TaskSpec:
    return TASKS[name]


def _resolve(reference: Any) -> Any:
    """Import what a "module:Name" string names; return anything else as it is.

    Raises:
        ConfigError: if there is no such module, or it has no such name.
    """
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):  # one that the module itself imports
            raise
        reason = f"{reference!r} in a TaskSpec: there is no module {error.name!r}"
        raise ConfigError(reason) from None
    for part in name.split("."):
        if not hasattr(found, part):
            known = nearest(part, dir(found))
            raise ConfigError(f"{reference!r} in a TaskSpec: {module} has no {part!r}. {known}")
        found = getattr(found, part)
    return found


class TaskRegistry(Registry[TaskSpec]):
    """Registry that imports the built-in tasks and the entry points at the first look-up."""

    def __init__(self) -> None:
        super().__init__("task")
        self._has_builtin = self._has_entry_points = False

    def add(self, name: str, part: TaskSpec) -> TaskSpec:
        """Register a task; another run of its own definition (a notebook's cell) replaces it."""
        # Built-in names are taken from the start. Entry points wait: this may be inside of one.
        self._load_builtin()
        known = self._parts.get(name)
        if known is not None and known is not part and _definition(known) == _definition(part):
            return self.replace(name, part)
        return super().add(name, part)

    def _load_builtin(self) -> None:
        if self._has_builtin:
            return
        self._has_builtin = True
        from yolo.tasks import BUILTIN

        for module in BUILTIN:
            task: TaskSpec = importlib.import_module(module).TASK
            self.add(task.name, task)

    def _load(self) -> None:
        self._load_builtin()
        if self._has_entry_points:
            return
        self._has_entry_points = True
        from yolo.tasks import ENTRY_POINTS

        for point in entry_points(group=ENTRY_POINTS):
            try:
                found = point.load()
                register_task(found if isinstance(found, TaskSpec) else found())
            except Exception as error:  # somebody else's package must not take ours down
                where = f"{point.name} = {point.value}"
                LOGGER.warning("task entry point '%s' skipped: %s", where, error)

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


def _definition(spec: TaskSpec) -> dict[str, Any]:
    """Describe a spec by the places of its classes, which a second run doesn't change."""

    def place(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(place, value))
        named = f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', '')}"
        return named if isinstance(value, type) or callable(value) else value

    return {f.name: place(object.__getattribute__(spec, f.name)) for f in fields(spec)}


def task_of_network(
    network: Mapping[str, Any], origin: str = "the network", asked: str | None = None
) -> TaskSpec:
    """Return the task of a network description.

    It is what the `task` key says, else what `asked` says, else the first task whose heads include
    the layer of the last row.

    Args:
        network: the description.
        origin: where it comes from, for messages.
        asked: the task that the user named.

    Raises:
        UnknownNameError: if the `task` key or `asked` names no task.
        ModelError: if no task owns the last row's layer, or the network is not for `asked`.
    """
    rows = [*network.get("backbone", []), *network.get("head", [])]
    last = str(rows[-1][2]) if rows and len(rows[-1]) > 2 else "nothing"
    owners: dict[str, TaskSpec] = {}
    for spec in TASKS.values():
        for name in spec.head_names:
            owners.setdefault(name, spec)
    said = TASKS[str(network["task"])] if network.get("task") else None
    found = said or owners.get(last)
    if asked is not None:
        wanted = TASKS[asked]
        if found is None or wanted is found or (said is None and last in wanted.head_names):
            return wanted
        why = "by its `task:` key" if said else f"its last row holds {last}"
        raise ModelError(
            f"{origin}: expected a network for {asked!r}, found one for {found.name!r} ({why}); "
            "leave the task out, or name another network"
        )
    if found is None:
        raise ModelError(
            f"{origin}: the last row holds {last!r}, expected the head of a task "
            f"({', '.join(sorted(owners))}). {nearest(last, owners)} Or set `task:` in the YAML"
        )
    return found


def homes_of_option(name: str) -> list[tuple[str, Any]]:
    """List (task, option schema) of every task and mode that has an option of this name."""
    return [
        (task, schema)
        for task, spec in TASKS.items()
        for schema in (
            spec.train_config,
            spec.val_config,
            spec.predict_config,
            spec.export_config,
        )
        if name in schema.model_fields
    ]


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
