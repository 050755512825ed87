# SPDX-License-Identifier: Apache-2.0
"""Read a pickle as data: a small machine that builds containers and records, and calls nothing.

A pickle is a program that names functions and calls them. `pickletools` splits the bytes into
instructions without running them; the machine here follows those that build plain data. A global
name is never imported: it is looked up in a table of functions of ours, or it matches a pattern of
classes whose objects become inert `Record`s, or the file is refused with that name.

Memory and time grow with the number of bytes alone: nothing is copied, no integer is longer than
`MAX_INT_BITS`, and nothing that may be nested is hashed or printed: a few hundred bytes can
describe tuples within tuples that as a tree are larger than any memory.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from re import Pattern
from typing import Any, Final

from yolo.errors import CheckpointError

MAX_INT_BITS: Final = 256  # generators' states hold numbers of 128 bits
_KEYS = (str, int, float, bool, type(None))


@dataclass(frozen=True, slots=True)
class Name:
    """A global that a pickle mentions, "package.module.Name"; it isn't imported."""

    text: str


@dataclass(slots=True, eq=False)
class Record:
    """An object of a class that isn't imported.

    Args:
        kind: the class, "package.module.Name".
        args: what its constructor would have got.
        state: its attributes, usually a dict.
    """

    kind: str
    args: tuple[Any, ...]
    state: Any = None


class Machine:
    """Runs one pickle.

    Args:
        functions: what stands for the functions that the pickle may call, by global name.
        classes: pattern that the whole name of every other allowed global matches.
        persistent: turns a persistent id into a value; torch's storages are such.
    """

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Any]],
        classes: Pattern[str],
        persistent: Callable[[Any], Any],
    ) -> None:
        self.functions = functions
        self.classes = classes
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """Return what the pickle describes.

        Raises:
            CheckpointError: without a file's name: a global or an instruction that isn't allowed,
                or damage.
        """
        try:
            for opcode, value, _ in pickletools.genops(data):
                if opcode.name == "STOP":
                    return self.stack.pop()
                step = _STEPS.get(opcode.name)
                if step is None:
                    raise CheckpointError(
                        f"refused: the pickle holds the instruction {opcode.name}, which plain "
                        "checkpoints don't need; nothing was run"
                    )
                step(self, value)
        except CheckpointError:
            raise
        except Exception as error:  # a damaged program may fail in any way
            raise CheckpointError(f"its pickle is damaged ({type(error).__name__})") from error
        raise CheckpointError("its pickle is damaged (no end)")

    def name(self, module: Any, name: Any) -> None:
        """Push a global, if it is allowed; `name` itself may have no dots."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a global without a name")
        text = f"{module}.{name}"
        known = text in self.functions or self.classes.fullmatch(text)
        if not known or "." in name:
            raise CheckpointError(
                f"refused: the pickle names {text[:200]!r}, which isn't among the few names that "
                "a checkpoint needs; nothing was run"
            )
        self.stack.append(Name(text))

    def call(self) -> None:
        """Let a function of ours, or a record, stand for a call."""
        args, target = self.stack.pop(), self.stack.pop()
        if not isinstance(target, Name) or not isinstance(args, tuple):
            raise CheckpointError("refused: the pickle calls what has no name; nothing was run")
        stands_in = self.functions.get(target.text)
        made = stands_in(*args) if stands_in else Record(target.text, args)
        self.stack.append(made)

    def build(self) -> None:
        """Give a record its attributes; those of a dict (a state dict's metadata) are dropped."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, dict):
            raise TypeError("attributes for plain data")

    def mark(self) -> None:
        """Begin a run of items."""
        self.marked.append(self.stack)
        self.stack = []

    def items(self) -> list[Any]:
        """Take the items since the last mark."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def join(self, kind: Callable[[list[Any]], Any]) -> None:
        """Make the items since the last mark one value."""
        items = self.items()
        self.stack.append(kind(items))

    def pack(self, count: int) -> None:
        """Make the last `count` values a tuple."""
        if len(self.stack) < count:
            raise IndexError("fewer values than the tuple needs")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def extend(self, items: list[Any]) -> None:
        """Add items to the list below them."""
        _of(list, self.stack[-1]).extend(items)

    def update(self, items: list[Any]) -> None:
        """Add keys and values, in turns, to the dict below them."""
        target = _of(dict, self.stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def remember(self, index: int | None) -> None:
        """Keep the last value for later use."""
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]


def make_dict(pairs: Any = ()) -> dict[Any, Any]:
    """Stand for OrderedDict."""
    return {_key(key): value for key, value in pairs}


def make_set(items: Any = ()) -> set[Any]:
    """Stand for set and frozenset."""
    return {_key(item) for item in items}


def _key(value: Any) -> Any:
    if not isinstance(value, _KEYS):
        raise CheckpointError(f"refused: the pickle has a {type(value).__name__} as a key")
    return value


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"items for a {type(value).__name__}")
    return value


def _push(machine: Machine, value: Any) -> None:
    if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
        raise CheckpointError("refused: the pickle has an absurdly long number")
    machine.stack.append(value)


def _constant(value: Any, machine: Machine, _: Any) -> None:
    machine.stack.append(value)


_VALUES = (
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
)  # fmt: skip

_STEPS: dict[str, Callable[[Machine, Any], Any]] = {
    "PROTO": lambda m, v: None,
    "FRAME": lambda m, v: None,
    **dict.fromkeys(_VALUES, _push),
    "NONE": partial(_constant, None),
    "NEWTRUE": partial(_constant, True),
    "NEWFALSE": partial(_constant, False),
    "EMPTY_TUPLE": partial(_constant, ()),
    "EMPTY_DICT": lambda m, v: m.stack.append({}),
    "EMPTY_LIST": lambda m, v: m.stack.append([]),
    "EMPTY_SET": lambda m, v: m.stack.append(set()),
    "MARK": lambda m, v: m.mark(),
    "POP": lambda m, v: m.stack.pop(),
    "POP_MARK": lambda m, v: m.items(),
    "TUPLE": lambda m, v: m.join(tuple),
    "TUPLE1": lambda m, v: m.pack(1),
    "TUPLE2": lambda m, v: m.pack(2),
    "TUPLE3": lambda m, v: m.pack(3),
    "FROZENSET": lambda m, v: m.join(make_set),
    "APPEND": lambda m, v: m.extend([m.stack.pop()]),
    "APPENDS": lambda m, v: m.extend(m.items()),
    "SETITEM": lambda m, v: m.update([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m, v: m.update(m.items()),
    "ADDITEMS": lambda m, v: _add_items(m, m.items()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, v: m.stack.append(m.memo[v])),
    "GLOBAL": lambda m, v: m.name(*v.split(" ", 1)),
    "STACK_GLOBAL": lambda m, v: m.name(m.stack.pop(-2), m.stack.pop()),
    "BINPERSID": lambda m, v: m.stack.append(m.persistent(m.stack.pop())),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, v: m.call()),
    "BUILD": lambda m, v: m.build(),
}  # fmt: skip
"""The instructions that are followed; all others are refused."""


def _add_items(machine: Machine, items: list[Any]) -> None:
    _of(set, machine.stack[-1]).update(map(_key, items))
