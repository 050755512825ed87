# SPDX-License-Identifier: Apache-2.0
"""Holds that nothing is hidden: sees by an audit hook what a test's process opens and starts.

While a test runs, its process may open no socket but those between processes of this machine
(AF_UNIX), ask no name server, start no program, and change nothing in a protected dataset. What it
tries is refused as by a locked-up machine, and fails the test even where the refusal is swallowed.

Tests that are about other processes (ranks, notebooks, commands, what a fresh interpreter imports)
or about downloads, from a server of their own, carry the marker `processes`: they may start
programs, and connect within this machine.

Forks take the guard along. What C libraries do raises no events.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = frozenset(
    {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile",
     "pty.spawn", "webbrowser.open"}
)  # fmt: skip
QUESTIONS = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"})
CONNECTIONS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
CHANGES = frozenset(
    {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink",
     "os.truncate", "os.chmod", "os.chown", "os.utime"}
)  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
INTERNET = (socket.AF_INET, socket.AF_INET6)
WITHIN = {"127.0.0.1", "localhost", "::1"}

UNWRITABLE = "/dev/null/home"
"""A home below a file: nobody can write there, root neither."""


class Guard:
    """What is forbidden now, and what was tried.

    Attributes:
        on: a test runs.
        free: it has the marker.
        tried: what was refused, until it is reported.
        protected: folders below which nothing may change.
    """

    def __init__(self) -> None:
        self.on = self.free = False
        self.tried: list[str] = []
        self.protected: set[str] = set()

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Be Python's audit hook."""
        if self.on and self._forbids(event, args):
            self.tried.append(f"{event}{args[:2]!r:.200}")
            raise PermissionError(f"a test tried {self.tried[-1]}")

    def _forbids(self, event: str, args: tuple[Any, ...]) -> bool:
        if event in CHANGES:
            return bool(self.protected) and self._spoils(event, args)
        if event in PROGRAMS or event in QUESTIONS:
            return not self.free
        if event == "socket.__new__":
            return not self.free and args[1] in INTERNET
        address = args[1] if event in CONNECTIONS else None
        return isinstance(address, tuple) and address[0] not in WITHIN

    def _spoils(self, event: str, args: tuple[Any, ...]) -> bool:
        """Tell whether a file or folder of a protected one would change."""
        if event == "open" and not args[2] & WRITING:
            return False
        first, last = (1, 2) if event in {"os.link", "os.symlink"} else (0, 1)
        last = 2 if event == "os.rename" else last
        named = [a for a in args[first:last] if isinstance(a, str | bytes | os.PathLike)]
        places = [f"{os.path.abspath(os.fsdecode(name))}/" for name in named]
        return any(place.startswith(f"{folder}/") for place in places for folder in self.protected)

    @contextmanager
    def read_only(self, folder: Path) -> Iterator[None]:
        """Refuse changes below a folder, and look for those that nobody announced."""
        before = listing(folder)
        self.protected.add(str(folder))
        try:
            yield
        finally:
            self.protected.remove(str(folder))
        assert listing(folder) == before, f"{folder} was written to"


GUARD = Guard()


def listing(folder: Path) -> dict[str, int]:
    """Return when each file and folder below `folder` was changed, nanoseconds."""
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def install() -> None:
    """Begin to see, for good: Python takes no hook back."""
    sys.addaudithook(GUARD)
