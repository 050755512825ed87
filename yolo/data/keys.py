# SPDX-License-Identifier: Apache-2.0
"""Check the keys of a dataset's description one by one: names, channels, keypoints, paths."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from yolo.cfg.load import MAX_CLASSES
from yolo.errors import DataError

SPLITS = ("train", "val", "test")


def read_names(entries: Mapping[str, Any], where: str) -> dict[int, str] | None:
    """Return the class names of `names` or `nc` by id; None if neither is there.

    Raises:
        DataError: naming `where` and the key; so do all functions here.
    """
    names, count = entries.get("names"), entries.get("nc")
    if count is not None and (not is_whole(count) or not 1 <= count <= MAX_CLASSES):
        raise bad(where, "nc", f"a number of classes from 1 to {MAX_CLASSES}", count)
    if names is None:
        return None if count is None else {i: f"class_{i}" for i in range(count)}
    names = dict(enumerate(names)) if isinstance(names, list | tuple) else names
    if not isinstance(names, Mapping) or not names:
        raise bad(where, "names", "a list or id: name pairs", names)
    try:
        by_id = {int(key): name for key, name in names.items()}
    except (TypeError, ValueError):
        raise bad(where, "names", "whole numbers as ids", names) from None
    if sorted(by_id) != list(range(len(names))):
        raise bad(where, "names", f"the ids 0 to {len(names) - 1}", sorted(by_id))
    for i, name in by_id.items():
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise bad(where, f"names: {i}", "text (in quotes)", name)
    if count not in (None, len(names)):
        raise bad(where, "nc", f"{len(names)} as in `names`, or no such key", count)
    return {i: str(name) for i, name in sorted(by_id.items())}


def read_channels(entries: Mapping[str, Any], where: str) -> int:
    """Return how many channels the images have; 3 where nothing is said."""
    channels = entries.get("channels", 3)
    if not is_whole(channels) or channels < 1:
        raise bad(where, "channels", "a whole number from 1 on", channels)
    return int(channels)


def read_keypoints(entries: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return kpt_shape and the keys that depend on it, as fields of a `DatasetSpec`."""
    found: dict[str, Any] = {}
    if (shape := entries.get("kpt_shape")) is None:
        return found
    if (
        _length(shape) != 2
        or not all(map(is_whole, shape))
        or shape[0] < 1
        or shape[1] not in (2, 3)
    ):
        raise bad(where, "kpt_shape", "[number of keypoints, 2 or 3]", shape)
    found["kpt_shape"] = tuple(shape)
    count = shape[0]
    if (flip := entries.get("flip_idx")) is not None:
        whole = _length(flip) == count and all(map(is_whole, flip))
        if not whole or sorted(flip) != list(range(count)):
            raise bad(where, "flip_idx", f"each of 0 to {count - 1} once", flip)
        if any(flip[j] != i for i, j in enumerate(flip)):
            raise bad(where, "flip_idx", "pairs that change places", flip)
        found["flip_idx"] = tuple(flip)
    if (sigmas := entries.get("kpt_oks_sigmas")) is not None:
        if _length(sigmas) != count or not all(is_number(s) and s > 0 for s in sigmas):
            raise bad(where, "kpt_oks_sigmas", f"{count} numbers above 0", sigmas)
        found["kpt_oks_sigmas"] = tuple(map(float, sigmas))
    if (names := entries.get("kpt_names")) is not None:
        by_class = names if isinstance(names, Mapping) else {0: names}
        for key, listed in by_class.items():
            if _length(listed) != count:
                raise bad(where, f"kpt_names: {key}", f"{count} names of keypoints", listed)
        found["kpt_names"] = {int(k): tuple(map(str, v)) for k, v in by_class.items()}
    return found


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list | tuple) else -1


def read_splits(
    values: Mapping[str, Any], entries: Mapping[str, Any], root: Path, where: str
) -> dict[str, tuple[Path, ...]]:
    """Return the absolute paths of each split.

    Args:
        values: split -> path or paths.
        entries: the whole description, for messages.
        root: folder that relative paths refer to.
        where: the file, for messages.
    """
    splits: dict[str, tuple[Path, ...]] = {}
    for split in SPLITS:
        if split not in values:
            if split == "test":
                continue
            keys = ", ".join(map(str, entries)) or "nothing"
            raise DataError(f"{where}: expected the key {split!r} (a folder or file), found {keys}")
        value = values[split]
        if isinstance(value, Mapping) and "objects" in value:
            raise DataError(
                f"{where}: {split}: the run's {value['objects']} images were Python objects, which "
                "its record can't hold; give them again, as data="
            )
        listed = value if isinstance(value, list | tuple) else [value]
        if not listed or not all(isinstance(item, str | Path) and str(item) for item in listed):
            raise bad(where, split, "paths, or items that have len() and [i]", value)
        paths = (os.path.abspath(root / Path(item).expanduser()) for item in listed)
        splits[split] = tuple(map(Path, paths))
    return splits


def as_mapping(value: Any) -> Any:
    """Return a dataclass's fields that aren't None by their names; anything else as it is."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    pairs = ((f.name, getattr(value, f.name)) for f in fields(value))
    return {name: found for name, found in pairs if found is not None}


def bad(where: str, key: str, expected: str, found: Any) -> DataError:
    """Return the error about the value of a key."""
    return DataError(f"{where}: {key}: expected {expected}, found {found!r:.80}")


def is_whole(value: Any) -> bool:
    """Tell whole numbers of 64 bits, which an array can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_number(value: Any) -> bool:
    """Tell numbers, without nan, infinities, and whole numbers that no float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e15 < value < 1e15
