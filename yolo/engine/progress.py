# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a run goes on: a bar in terminals and notebooks, lines in log files."""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

LOGGER = logging.getLogger("yolo")
T = TypeVar("T")


def in_notebook() -> bool:
    """Return True inside a Jupyter kernel."""
    shell = sys.modules.get("IPython")
    instance = shell.get_ipython() if shell is not None else None
    return instance is not None and hasattr(instance, "kernel")


def logging_is_set_up() -> bool:
    """Return True if somebody gave the library's log lines a place to go."""
    return LOGGER.isEnabledFor(logging.INFO) and LOGGER.hasHandlers()


class Progress:
    """Lines and bars of one run.

    A line goes to the log; where nobody has set logging up, it is shown in an interactive terminal
    or notebook, and is silent otherwise. A bar is shown only where it can be redrawn.

    Args:
        verbose: False keeps everything but warnings quiet.
    """

    def __init__(self, verbose: bool = True) -> None:
        before = random.getstate()
        from rich.console import Console

        random.setstate(before)  # rich draws from Python's generator when it is first imported
        self.notebook = in_notebook()
        self.console = Console(stderr=not self.notebook, highlight=False, soft_wrap=True)
        self.verbose = verbose
        self.interactive = verbose and (self.console.is_terminal or self.notebook)

    def line(self, text: str) -> None:
        """Show one line (or a few)."""
        if not self.verbose:
            return
        if logging_is_set_up():
            LOGGER.info(text)
        elif self.notebook:
            sys.stdout.write(f"{text}\n")  # rich would make one HTML block of each line
        elif self.interactive:
            self.console.print(text, markup=False)

    def bar(self, items: Iterable[T], total: int, describe: Any = None) -> Iterator[T]:
        """Yield from `items` under a bar; `describe()` gives the text beside it."""
        if not self.interactive:
            yield from items
        elif self.notebook:
            yield from self._notebook_bar(items, total, describe)
        else:
            yield from self._terminal_bar(items, total, describe)

    def _notebook_bar(self, items: Iterable[T], total: int, describe: Any) -> Iterator[T]:
        """Redraw one output in place, at most twice a second; it is empty at the end."""
        from IPython.display import display

        def show(text: str) -> dict[str, str]:
            return {"text/plain": text}

        handle = display(show(""), raw=True, display_id=True)
        shown = 0.0
        for number, item in enumerate(items, 1):
            yield item
            if time.monotonic() - shown > 0.5:
                shown = time.monotonic()
                done = "━" * (24 * number // max(total, 1))
                text = describe() if describe else ""
                handle.update(show(f"{text}  {done:<24} {number}/{total}"), raw=True)
        handle.update(show(""), raw=True)

    def _terminal_bar(self, items: Iterable[T], total: int, describe: Any) -> Iterator[T]:
        from rich import progress

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(
            *columns, console=self.console, transient=True, refresh_per_second=4
        ) as display:
            task = display.add_task("", total=total)
            for item in items:
                yield item
                display.update(task, advance=1, description=describe() if describe else "")
