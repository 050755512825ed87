# SPDX-License-Identifier: Apache-2.0
"""Lines and bars: shown where somebody looks, quiet in files."""

from __future__ import annotations

import io
import logging
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from yolo.engine import progress
from yolo.engine.progress import Progress


@pytest.fixture(autouse=True)
def _no_handlers(monkeypatch):
    """As in a program that hasn't set logging up: pytest's own handlers hang on the root."""
    monkeypatch.setattr(logging.getLogger("yolo"), "propagate", False)


def terminal(width=100):
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, highlight=False, soft_wrap=True
    )


def on(console, verbose=True):
    shown = Progress(verbose)
    shown.console, shown.interactive = console, verbose
    return shown


def test_no_terminal_no_output(capfd):
    shown = Progress()
    assert not shown.interactive
    shown.line("epoch 1")
    assert list(shown.bar(range(3), 3)) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


def test_lines_go_to_the_log_where_there_is_one(monkeypatch, capfd):
    logger, heard = logging.getLogger("yolo"), []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()
    console = terminal()
    on(console).line("epoch 1, 100% [done]")
    assert heard == ["epoch 1, 100% [done]"]
    assert console.file.getvalue() == ""
    on(console, verbose=False).line("epoch 2")
    assert len(heard) == 1
    monkeypatch.undo()
    logger.manager._clear_cache()


def test_a_terminal_shows_lines_as_they_are_and_a_bar_that_goes_away():
    console = terminal()
    shown = on(console)
    shown.line("[b]epoch[/b] 1")
    assert console.file.getvalue() == "[b]epoch[/b] 1\n"
    assert list(shown.bar(iter("abc"), 3, lambda: "epoch 1/9")) == ["a", "b", "c"]
    assert "epoch 1/9" in console.file.getvalue()
    assert "3/3" in console.file.getvalue()


def test_a_bar_that_is_left_early_ends():
    console = terminal()
    for item in on(console).bar(range(9), 9):
        if item == 2:
            break
    assert "\x1b[?25h" in console.file.getvalue()  # the cursor is back


def test_a_notebook_is_told_by_its_kernel(monkeypatch):
    assert not progress.in_notebook()
    shell = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1))
    monkeypatch.setitem(sys.modules, "IPython", shell)
    assert progress.in_notebook()
    assert Progress().interactive
    assert not Progress(verbose=False).interactive
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not progress.in_notebook()
