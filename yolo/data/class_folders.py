# SPDX-License-Identifier: Apache-2.0
"""Image folders: every image below a class folder is of that class.

An image's class is kept as one object that covers the whole image, so that an index, its cache and
its report are those of every other dataset.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from yolo.data.folder import FileSource, list_files
from yolo.data.labels import BoxLabels, LabelledImage, LabelRules
from yolo.data.report import Problem
from yolo.data.sample import Instances
from yolo.errors import DataError, nearest

CLASSES = "classes"
"""The kind of label: of a label format's `kinds`, and of a `DatasetSpec`."""

SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
"""Split -> names of its folder, the first that is there counts."""

HOW_TO_SPLIT = (
    "To split images that lie in <class>/*.jpg: move about a fifth of each class's into "
    "val/<class>/ and the others into train/<class>/"
)


@dataclass(frozen=True, slots=True)
class ImageClasses(BoxLabels):
    """The label format of whole images: there are no label rows, the folder's name is the label."""

    name: str = "image-classes-1"
    kinds: frozenset[str] = frozenset({CLASSES})

    def expected(self, rules: LabelRules) -> str:
        """Say what is wanted in place of rows."""
        return "no label rows but class folders, <split>/<class>/*.jpg"

    def accepts(self, columns: int, rules: LabelRules) -> bool:
        """Accept no row."""
        return False


def whole_image(class_id: int, shape: tuple[int, int]) -> Instances:
    """Return the one object that stands for the class of an image of `shape` (h, w)."""
    return Instances.from_boxes([class_id], [[0, 0, shape[1], shape[0]]])


def split_folders(root: Path) -> dict[str, str]:
    """Find the splits of a folder with class folders: split -> name of the folder in `root`.

    Raises:
        DataError: if there is no folder for training or none for validation.
    """
    there = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    named = {split: [n for n in names if n in there] for split, names in SPLIT_NAMES.items()}
    for split in ("train", "val"):
        if not named[split]:
            found = ", ".join(there[:10]) or "no folder"
            text = f"{root}: expected the folder {split!r} with a folder for each class"
            raise DataError(f"{text} ({split}/<class>/*.jpg), found {found}. {HOW_TO_SPLIT}")
    return {split: names[0] for split, names in named.items() if names}


def class_names(folders: Sequence[Path]) -> dict[int, str]:
    """Number the class folders of the training folders in the order of their names."""
    names = sorted({name for folder in folders for name in _class_folders(folder)})
    return dict(enumerate(names))


def _class_folders(folder: Path) -> list[str]:
    """Name the class folders in a folder.

    Raises:
        DataError: if there is none.
    """
    entries = list(folder.iterdir()) if folder.is_dir() else []
    names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        found = f"{len(entries)} files and no folder" if folder.is_dir() else "a file"
        text = "expected a folder with a folder for each class (<class>/*.jpg)"
        raise DataError(f"{folder}: {text}, found {found}")
    return names


def class_files(
    folders: Sequence[Path], names: Mapping[int, str], *, all_needed: bool
) -> FileSource:
    """List the images of class folders, searched recursively.

    Args:
        folders: hold one folder a class.
        names: class id -> name of its folder.
        all_needed: a class folder without images is an error, not a finding.

    Raises:
        DataError: if a folder's name is no class, or a class folder is empty where none may be.
    """
    inner = [root / name for root in folders for name in _class_folders(root)]
    ids = {name: i for i, name in names.items()}
    roots = sorted(map(os.fspath, folders), key=len, reverse=True)

    def label(image: LabelledImage, _: int) -> list[Problem]:
        name = os.path.basename(_home(image.path, roots))
        if name not in ids:
            text = "expected the image in a class folder, found it beside them in"
            raise DataError(f"{image.path}: {text} {name!r}")
        image.instances = whole_image(ids[name], image.shape)
        return []

    files = list_files(folders, folders[0], label)
    # Texts beside the images aren't labels here.
    files.problems = [p for p in files.problems if p.kind != "orphan"]
    homes = {_home(path, roots) for path in files.paths}
    for folder in inner:
        name, filled = folder.name, str(folder) in homes
        if name not in ids and filled:
            listed = ", ".join(list(ids)[:10]) + (", ..." if len(ids) > 10 else "")
            raise DataError(
                f"{folder}: expected one of the {len(ids)} classes ({listed}), "
                f"found {name!r}. {nearest(name, ids)} Rename or remove the folder"
            )
        if name in ids and not filled:
            other = sum(1 for _ in folder.iterdir())
            found = f"{other} other files" if other else "an empty folder"
            reason = f"expected images of the class {name!r}, found {found}"
            if all_needed:
                raise DataError(f"{folder}: {reason}; fill the folder or remove it")
            files.problems.append(Problem(str(folder), 0, reason, "orphan"))

    return files


def _home(path: str, roots: Sequence[str]) -> str:
    """Return the class folder that an image lies in; its split's folder if in none.

    Args:
        path: of the image.
        roots: the folders that hold class folders, the longest first.
    """
    root = next(root for root in roots if path.startswith(f"{root}{os.sep}"))
    first, inside, _ = path[len(root) + 1 :].partition(os.sep)
    return f"{root}{os.sep}{first}" if inside else root
