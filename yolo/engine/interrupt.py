# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM as a wish that a run grants between two steps, when it can be saved."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asks the run to end; like KeyboardInterrupt no `Exception`."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class InterruptGuard:
    """Catches the signals while it is entered, and puts the handlers back that were there before.

    A signal raises `Interrupted` at once, but within `deferred` it waits for the next `check` or
    `allowed`. A second one ends the wait: it goes to the handler that was there before. Outside the
    main thread, where Python allows no handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self.noted: int | None = None
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            old = {number: signal.getsignal(number) for number in SIGNALS}
            # One that isn't Python's own (None) couldn't be put back; what a shell has a background
            # job ignore stays ignored.
            left = (None, signal.SIG_IGN)
            self._before = {number: old[number] for number in old if old[number] not in left}
            for number in self._before:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.noted = self.noted is not None, number
        if again:
            self.__exit__()
            signal.raise_signal(number)
        elif not self._deferred:
            raise Interrupted(number)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let signals wait."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Within `deferred`: let signals through again."""
        self.check()
        self._deferred = False
        try:
            yield
        finally:
            self._deferred = True

    def check(self) -> None:
        """Raise `Interrupted` if a signal waits."""
        if self.noted is not None:
            raise Interrupted(self.noted)


def leave(number: int) -> None:
    """End as a program does that a signal ended, without a traceback; a session gets its Ctrl-C.

    Raises:
        KeyboardInterrupt: in a notebook or at a prompt, which goes on.
        SystemExit: elsewhere, with status 128 + number.
    """
    if hasattr(sys, "ps1") or ("IPython" in sys.modules and _in_ipython()):
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _in_ipython() -> bool:
    return sys.modules["IPython"].get_ipython() is not None
