# SPDX-License-Identifier: Apache-2.0
"""Names in a run: of its folder, `runs/<task>/<mode>` or as the user says, and of its files."""

from __future__ import annotations

from pathlib import Path


def run_path(project: str | Path | None, name: str | None, task: str, mode: str) -> Path:
    """Return the folder that a run's options name; see `run_folder`."""
    return ((Path(project) if project else Path("runs") / task) / (name or mode)).absolute()


def run_folder(
    project: str | Path | None, name: str | None, task: str, mode: str, exist_ok: bool = False
) -> Path:
    """Choose and create the folder of a run.

    Args:
        project: parent folder, relative to the current one; None means `runs/<task>`.
        name: folder name; None means `mode`.
        task: name of the task, used when `project` is None.
        mode: "train", "val", "predict".
        exist_ok: use the folder even if it exists; otherwise `-2`, `-3`... is appended.

    Returns:
        The absolute path of the created folder.
    """
    base = run_path(project, name, task, mode)
    if exist_ok:
        base.mkdir(parents=True, exist_ok=True)
        return base
    base.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            folder.mkdir()  # creating is the test, so two runs can't take the same folder
        except FileExistsError:
            number += 1
        else:
            return folder


def free_stem(stem: str, taken: set[str]) -> str:
    """Return `stem`, or `<stem>-2`, `-3`... where that is taken, and add it to `taken`."""
    free, number = stem, 1
    while free in taken:
        number += 1
        free = f"{stem}-{number}"
    taken.add(free)
    return free
