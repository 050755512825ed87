# SPDX-License-Identifier: Apache-2.0
"""What a COCO JSON file says: the categories and the image folder without parsing all of it."""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yolo.data.keys import is_whole
from yolo.errors import DataError

CATEGORIES = re.compile(rb'"categories"\s*:\s*(?=\[)')
FILE_NAME = re.compile(rb'"file_name"\s*:\s*(?=")')
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


def read_categories(file: Path) -> dict[int, str]:
    """Return category id -> name in rising order of ids, without parsing the annotations.

    Raises:
        DataError: if the file isn't COCO JSON or its categories can't be used.
    """
    found: list[Any] = []
    with _mapped(file) as data:
        places = [match.end() for match in CATEGORIES.finditer(data)]
        if len(places) == 1:
            found = _decode_list(data, places[0])
    if not found:
        found = read_json(file)["categories"]
    names: dict[int, str] = {}
    for entry in found:
        if not isinstance(entry, dict) or not is_whole(entry.get("id")) or "name" not in entry:
            raise DataError(f"{file}: expected categories with id and name, found {entry!r:.80}")
        if entry["id"] in names:
            raise DataError(f"{file}: category id {entry['id']} appears twice")
        names[entry["id"]] = str(entry["name"])
    if not names:
        raise DataError(f"{file}: expected at least one category, found none")
    return dict(sorted(names.items()))


def find_image_folder(file: Path) -> Path:
    """Find the folder that a COCO JSON's file names refer to, among the usual places.

    Tried in order: `images` beside the JSON, its own folder, `images` and the folder above, and
    below each of these a folder named like the end of the JSON's name (instances_NAME.json). File
    names may be absolute.

    Raises:
        DataError: if the first images are in none of them.
    """
    names: list[str] = []
    with _mapped(file) as data:
        for match in FILE_NAME.finditer(data):
            text = STRING.match(data, match.end())
            if text:
                names.append(json.loads(text.group()))
            if len(names) == 8:
                break
    part, here, above = file.stem.rpartition("_")[2], file.parent, file.parent.parent
    bases = [here / "images", here, above / "images", above]
    tried = [*bases, *(base / part for base in bases)]
    for folder in tried:
        if folder.is_dir() and any((folder / name).is_file() for name in names):
            return folder
    raise DataError(
        f"{file}: none of its first images ({', '.join(names[:2]) or 'it names none'}) is in "
        f"{', '.join(map(str, tried[:4]))}; name the folder by `images:` in the dataset's YAML"
    )


@contextmanager
def _mapped(file: Path) -> Iterator[mmap.mmap]:
    """Open a JSON file as bytes without reading it all."""
    try:
        with open(file, "rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise DataError(f"{file}: the file is empty; expected COCO JSON")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data
    except OSError as error:
        raise DataError(f"{file}: can't be read: {error.strerror}") from error


def _decode_list(data: mmap.mmap, start: int) -> list[Any]:
    """Decode the JSON list at `start`; empty if it isn't whole within a megabyte."""
    text = data[start : start + (1 << 20)].decode("utf-8", errors="ignore")
    try:
        found, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []


def read_json(file: Path) -> dict[str, Any]:
    """Parse a whole COCO JSON and check its three lists.

    Raises:
        DataError: naming file and line, or the key that is missing.
    """
    try:
        content = json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: not valid JSON: {error.msg}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{file}: not a usable JSON file: {error}") from None
    for key in ("images", "annotations", "categories"):
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list):
            raise DataError(
                f"{file}: expected COCO JSON with a list {key!r}, "
                f"found {type(found if isinstance(content, dict) else content).__name__}"
            )
    checked: dict[str, Any] = content
    return checked
