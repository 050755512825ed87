# SPDX-License-Identifier: Apache-2.0
"""The tasks. `BUILTIN` and the entry points are loaded at the first look-up in `spec.TASKS`."""

BUILTIN: tuple[str, ...] = (
    "yolo.tasks.detect",
    "yolo.tasks.segment",
    "yolo.tasks.classify",
    "yolo.tasks.pose",
    "yolo.tasks.obb",
)
"""Modules of the built-in tasks, each with its TaskSpec as `TASK`."""

ENTRY_POINTS = "yolo.tasks"
"""Entry-point group by which installed packages add tasks: a TaskSpec, or a call that gives one."""
