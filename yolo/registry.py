# SPDX-License-Identifier: Apache-2.0
"""Named parts. One class serves layers, tasks, losses and assigners alike."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Generic, TypeVar

from yolo.errors import ConfigError, UnknownNameError, nearest

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to parts that refuses clashes and explains misses.

    Args:
        kind: what the registry holds, singular, for messages ("layer", "assigner").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, T] = {}

    def add(self, name: str, part: T) -> T:
        """Register `part`. The same object under the same name again is no clash.

        Raises:
            ConfigError: if another part already has the name.
        """
        known = self._parts.setdefault(name, part)
        if known is not part:
            raise ConfigError(
                f"{self.kind} {name!r} is registered already, as {known!r}; "
                f"choose another name for {part!r}"
            )
        return part

    def replace(self, name: str, part: T) -> T:
        """Register `part` in the place of what has its name, as when a notebook cell runs again."""
        self._parts[name] = part
        return part

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers what it decorates under `name`."""
        return lambda part: self.add(name, part)

    def choose(self, choice: str | Mapping[str, Any]) -> tuple[T, dict[str, Any]]:
        """Return the part that an option chooses, and the options for it.

        Args:
            choice: a name, or a mapping with `name` and the part's options.

        Raises:
            UnknownNameError: if no part has the name.
            ConfigError: if the name is missing.
        """
        options = {"name": choice} if isinstance(choice, str) else dict(choice)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(f"{self.kind}={choice!r} needs a 'name': one of {sorted(self)}")
        return self[name], options

    def function(self, choice: str | Mapping[str, Any], inputs: int = 2) -> Callable[..., Any]:
        """Return the function that an option chooses, with the options for it filled in.

        Args:
            choice: as of `choose`.
            inputs: its first parameters that are no options.

        Raises:
            UnknownNameError, ConfigError: as `choose`, or if it has no such option.
        """
        part, options = self.choose(choice)
        assert callable(part)
        known = list(inspect.signature(part).parameters)[inputs:]
        for name in options:
            if name not in known:
                raise ConfigError(
                    f"{self.kind}={choice!r}: expected {', '.join(known) or 'no options'}, found "
                    f"{name!r}. {nearest(name, known)}"
                )
        return partial(part, **options) if options else part

    def __getitem__(self, name: str) -> T:
        """Return the part called `name`.

        Raises:
            UnknownNameError: with the nearest names and the whole list.
        """
        try:
            return self._parts[name]
        except KeyError:
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}. {nearest(name, self._parts)} "
                f"Known: {', '.join(sorted(self._parts)) or 'none'}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)
