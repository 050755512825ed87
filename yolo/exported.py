# SPDX-License-Identifier: Apache-2.0
"""An exported file in the facade: opened once a device, run by the predictor and the validator."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo.backends import open_backend
from yolo.errors import ModelError
from yolo.tasks.spec import TASKS

if TYPE_CHECKING:
    from yolo.backends.exported import ExportedModel
    from yolo.tasks.spec import TaskSpec

LOGGER = logging.getLogger(__name__)


class ExportedFile:
    """A file or folder that `export` wrote, here or elsewhere.

    Args:
        path: the file or folder.
        **given: what it doesn't say itself, or None: `task`, `names`, `kpt_shape`.

    Attributes:
        backend: what runs it.
        spec: its task.
    """

    def __init__(self, path: str | Path, **given: Any) -> None:
        self._path = path
        self._given = {key: value for key, value in given.items() if value is not None}
        self._device: Any = None
        self.backend: ExportedModel = open_backend(path, **self._given)
        if self.backend.task not in TASKS:
            raise ModelError(
                f"{path}: is for the task {self.backend.task!r}; known are {', '.join(TASKS)}"
            )
        self.spec: TaskSpec = TASKS[self.backend.task]
        self.backend.layout = self.spec.outputs

    def for_call(self, config: Any) -> ExportedModel:
        """Return what runs the file with the options of a call: on `device`, None: where it is."""
        device, floor = config.device, self.backend.metadata.conf
        if self.backend.nms and config.conf < floor:
            LOGGER.warning(
                "conf=%g: %s was exported with nms=True, conf=%g: it leaves out all below that",
                config.conf,
                self._path,
                floor,
            )
        if device is not None and device != self._device:
            self.backend = open_backend(self._path, device, **self._given)
            self.backend.layout = self.spec.outputs
            self._device = device
        return self.backend

    def for_validation(self, config: Any) -> tuple[Any, Any]:
        """Return options that the file can keep to, and a network for the validator."""
        from yolo.backends.module import ExportedNetwork

        backend = self.for_call(config)
        if not backend.dynamic:
            if config.imgsz not in (backend.imgsz, backend.imgsz[0]):
                LOGGER.warning(
                    "imgsz=%s: %s takes %s alone", config.imgsz, self._path, backend.imgsz
                )
            config = config.model_copy(update={"imgsz": backend.imgsz, "rect": False})
        return config, ExportedNetwork(backend)
