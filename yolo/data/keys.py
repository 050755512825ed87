# SPDX-License-Identifier: Apache-2.0
"""Check the keys of a dataset's description one by one: names, channels, keypoints, paths."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolo.errors import DataError

SPLITS = ("train", "val", "test")


def read_names(entries: Mapping[str, Any], where: str) -> dict[int, str] | None:
    """Return the class names of `names` or `nc` by id; None if neither is there.

    Raises:
        DataError: naming `where` and the key; so do all functions here.
    """
    names, count = entries.get("names"), entries.get("nc")
    if count is not None and (not _is_whole(count) or count < 1):
        raise DataError(f"{where}: nc: expected a number of classes from 1 on, found {count!r}")
    if names is None:
        return None if count is None else {i: f"class_{i}" for i in range(count)}
    if isinstance(names, list | tuple):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping) or not names:
        raise DataError(f"{where}: names: expected a list or id: name pairs, found {names!r:.80}")
    try:
        ids = sorted(int(key) for key in names)
    except (TypeError, ValueError):
        raise DataError(
            f"{where}: names: expected whole numbers as ids, found {names!r:.80}"
        ) from None
    if ids != list(range(len(names))):
        raise DataError(
            f"{where}: names: expected the ids 0 to {len(names) - 1}, found {ids[0]} to {ids[-1]} "
            f"({len(names)} names)"
        )
    for key, name in names.items():
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise DataError(
                f"{where}: names: {key}: expected text, found {name!r}; put it in quotes"
            )
    if count is not None and count != len(names):
        raise DataError(
            f"{where}: nc is {count}, but `names` holds {len(names)}; correct one or leave nc out"
        )
    return {i: str(name) for i, name in sorted((int(key), name) for key, name in names.items())}


def read_channels(entries: Mapping[str, Any], where: str) -> int:
    """Return how many channels the images have; 3 where nothing is said."""
    channels = entries.get("channels", 3)
    if not _is_whole(channels) or channels < 1:
        raise DataError(f"{where}: channels: expected a whole number from 1 on, found {channels!r}")
    return int(channels)


def read_keypoints(entries: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return kpt_shape and the keys that depend on it, as fields of a `DatasetSpec`."""
    shape = entries.get("kpt_shape")
    if shape is None:
        return {}
    if (
        not isinstance(shape, list | tuple)
        or len(shape) != 2
        or not all(map(_is_whole, shape))
        or shape[0] < 1
        or shape[1] not in (2, 3)
    ):
        raise DataError(
            f"{where}: kpt_shape: expected [number of keypoints, 2 or 3], found {shape!r}"
        )
    count = shape[0]
    found: dict[str, Any] = {"kpt_shape": (count, shape[1])}
    flip = entries.get("flip_idx")
    if flip is not None:
        if not isinstance(flip, list | tuple) or sorted(map(str, flip)) != sorted(
            map(str, range(count))
        ):
            raise DataError(
                f"{where}: flip_idx: expected each of 0 to {count - 1} once, found {flip!r}"
            )
        found["flip_idx"] = pairs = tuple(map(int, flip))
        odd = next((i for i in range(count) if pairs[pairs[i]] != i), None)
        if odd is not None:
            raise DataError(
                f"{where}: flip_idx: expected pairs that change places, found {odd} -> {pairs[odd]}"
                f" -> {pairs[pairs[odd]]}"
            )
    sigmas = entries.get("kpt_oks_sigmas")
    if sigmas is not None:
        numbers = [s for s in sigmas if _is_positive(s)] if isinstance(sigmas, list | tuple) else []
        if len(numbers) != count or len(sigmas) != count:
            raise DataError(
                f"{where}: kpt_oks_sigmas: expected {count} numbers above 0, found {sigmas!r}"
            )
        found["kpt_oks_sigmas"] = tuple(map(float, numbers))
    names = entries.get("kpt_names")
    if names is not None:
        by_class = names if isinstance(names, Mapping) else {0: names}
        for key, listed in by_class.items():
            if not isinstance(listed, list | tuple) or len(listed) != count:
                raise DataError(f"{where}: kpt_names: {key}: expected {count} names of keypoints")
        found["kpt_names"] = {int(k): tuple(map(str, v)) for k, v in by_class.items()}
    return found


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
            raise DataError(
                f"{where}: expected the key {split!r} (a folder, a list file or a JSON file), "
                f"found {', '.join(map(str, entries)) or 'nothing'}"
            )
        value = values[split]
        if isinstance(value, Mapping) and "objects" in value:
            raise DataError(
                f"{where}: {split}: the run's {value['objects']} images were Python objects, which "
                "its record can't hold; give them again, as data="
            )
        listed = value if isinstance(value, list | tuple) else [value]
        if not listed or not all(isinstance(item, str | Path) and str(item) for item in listed):
            raise DataError(
                f"{where}: {split}: expected paths, found {value!r:.80}; a sequence of items "
                "(yolo.data.objects) needs len() and [i]"
            )
        splits[split] = tuple(
            Path(os.path.abspath(root / Path(item).expanduser())) for item in listed
        )
    return splits


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9
