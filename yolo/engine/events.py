# SPDX-License-Identifier: Apache-2.0
"""Event names and the callbacks that hang on them.

A callback gets the trainer, validator, predictor or exporter itself, in the order it was added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from yolo.errors import ConfigError, nearest

Callback = Callable[[Any], object]

EVENTS: tuple[str, ...] = (
    "on_pretrain_routine_start",
    "on_pretrain_routine_end",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_fit_epoch_end",
    "on_model_save",
    "on_train_end",
    "teardown",
    "on_val_start",
    "on_val_batch_start",
    "on_val_batch_end",
    "on_val_end",
    "on_predict_start",
    "on_predict_batch_start",
    "on_predict_postprocess_end",
    "on_predict_batch_end",
    "on_predict_end",
    "on_export_start",
    "on_export_end",
)


class Callbacks:
    """Callbacks by event name.

    Args:
        initial: callbacks to start with, event name -> list of callables.

    Raises:
        ConfigError: if an event name is unknown.
    """

    def __init__(self, initial: Mapping[str, Sequence[Callback]] | None = None) -> None:
        self.by_event: dict[str, list[Callback]] = {event: [] for event in EVENTS}
        for event, callbacks in (initial or {}).items():
            for callback in callbacks:
                self.add(event, callback)

    def _at(self, event: str) -> list[Callback]:
        if event not in self.by_event:
            raise ConfigError(
                f"unknown event {event!r}. {nearest(event, EVENTS)} Known: {', '.join(EVENTS)}"
            )
        return self.by_event[event]

    def add(self, event: str, callback: Callback) -> None:
        """Call `callback(subject)` whenever `event` fires."""
        self._at(event).append(callback)

    def clear(self, event: str) -> None:
        """Remove every callback of `event`."""
        self._at(event).clear()

    def reset(self) -> None:
        """Remove every callback of every event."""
        for callbacks in self.by_event.values():
            callbacks.clear()

    def copy(self) -> Callbacks:
        """Return callbacks that can be added to without changing these."""
        return Callbacks(self.by_event)

    def fire(self, event: str, subject: object) -> None:
        """Call the callbacks of `event` with `subject`, in the order they were added."""
        for callback in tuple(self._at(event)):
            callback(subject)
