# SPDX-License-Identifier: Apache-2.0
"""Callbacks by event name."""

from __future__ import annotations

import pytest

from yolo.engine.events import Callbacks
from yolo.errors import ConfigError


def test_callbacks_run_in_order_with_the_subject():
    seen = []
    callbacks = Callbacks()
    callbacks.add("on_train_start", lambda x: seen.append(("first", x)))
    callbacks.add("on_train_start", lambda x: seen.append(("second", x)))
    callbacks.fire("on_train_start", 7)
    assert seen == [("first", 7), ("second", 7)]


def test_a_copy_is_independent():
    callbacks = Callbacks()
    callbacks.copy().add("on_val_end", print)
    assert callbacks.by_event["on_val_end"] == []


def test_clear_and_reset():
    callbacks = Callbacks({"on_val_end": [print], "on_val_start": [print]})
    callbacks.clear("on_val_end")
    assert not callbacks.by_event["on_val_end"]
    assert callbacks.by_event["on_val_start"]
    callbacks.reset()
    assert not callbacks.by_event["on_val_start"]


def test_a_misspelt_event_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'on_train_strat'.*Similar: 'on_train_start'"):
        Callbacks().add("on_train_strat", print)
