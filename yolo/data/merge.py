# SPDX-License-Identifier: Apache-2.0
"""Several datasets as one, and classes chosen, renamed, joined or ordered: by their names.

A class of one name is one class, wherever it comes from. Without `classes` a merged dataset has
every class, in the order in which the datasets name them; with it, the ones that it lists: `[car,
person]` keeps two, and `{vehicle: [car, truck], person: person}` makes two of three. Objects of
other classes are left out, or with `others: ignore` neither objects nor background; their images
stay.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolo.data.keys import bad
from yolo.data.labels import LabelledImage
from yolo.data.report import ScanReport
from yolo.data.scan import Source
from yolo.errors import DataError, nearest

if TYPE_CHECKING:
    from yolo.data.datasets import DatasetSpec

logger = logging.getLogger(__name__)

AGREED = ("channels", "kpt_shape", "flip_idx", "kpt_oks_sigmas")
"""What has to be the same in all datasets that are merged."""


@dataclass(slots=True)
class MergedSource:
    """Images of several sources, their classes renumbered.

    Attributes:
        parts: sources, each with the class here of each of its classes, -1 for none.
        others: number of classes here where objects of class -1 stay as regions to ignore: one for
            each class, as scoring goes by classes. 0 where they go.
    """

    parts: Sequence[tuple[Source, tuple[int, ...]]]
    others: int = 0

    def fingerprint(self) -> str | None:
        """Return a hash of all parts'; None if one has none."""
        digest = hashlib.blake2b(str(self.others).encode(), digest_size=16)
        for source, classes in self.parts:
            found = source.fingerprint()
            if found is None:
                return None
            digest.update(f"{found}{classes}".encode())
        return digest.hexdigest()

    def scan(self, report: ScanReport, workers: int) -> Iterator[LabelledImage]:
        """Read all parts, one after the other."""
        for source, classes in self.parts:
            table = np.array(classes, dtype=np.int64)
            for image in source.scan(report, workers):
                ids = table[image.instances.classes]
                kept, others = np.flatnonzero(ids >= 0), np.flatnonzero(ids < 0)
                regions = np.repeat(others, self.others)
                image.instances = image.instances.select(np.concatenate([kept, regions]))
                new = np.tile(np.arange(self.others), len(others))
                image.instances.classes = np.concatenate([ids[kept], new])
                image.instances.ignore[len(kept) :] = True
                if len(self.parts) > 1:  # the ids of several JSON files may be the same
                    image.image_id = None
                yield image


def merge(
    parts: Sequence[DatasetSpec], entries: Mapping[str, Any], where: str, file: Path | None
) -> DatasetSpec:
    """Make one dataset of several, or of the chosen classes of one.

    Args:
        parts: at least one dataset.
        entries: the description that asks for it, with the keys `classes` and `others`.
        where: who asks for it, for messages.
        file: the YAML file that asks for it.

    Raises:
        DataError: if a name isn't known, or the datasets don't fit together.
    """
    classes, others = entries.get("classes"), entries.get("others", "drop")
    if others not in ("drop", "ignore"):
        raise bad(where, "others", "'drop' or 'ignore'", others)
    names, maps = choose_classes([part.names for part in parts], classes, where)
    pairs = tuple(zip(parts, maps, strict=True))
    common = {key: _agreed(parts, key, where) for key in AGREED}
    keypoints: dict[int, tuple[str, ...]] = {}
    for part, chosen in pairs:
        for old, listed in (part.kpt_names or {}).items():
            keypoints.setdefault(chosen[old], listed)
    keypoints.pop(-1, None)
    common["kpt_names"] = keypoints or None
    if any(part.kpt_shape is None for part in parts):
        common |= dict.fromkeys(("kpt_shape", "flip_idx", "kpt_oks_sigmas", "kpt_names"))
    for name in names.values() if classes is None else ():
        homes = [part.where for part in parts if name in part.names.values()]
        if len(homes) < len(parts):
            text = "%s: %r is a class of %s alone; in the other images it counts as background"
            logger.warning(text, where, name, " and ".join(homes))
    common |= {"image_folders": {}, "category_ids": None, "items": {}, "kind": "merged"}
    common |= {"parts": pairs, "ignore_others": others == "ignore", "names": names, "file": file}
    return replace(
        parts[0], splits=dict.fromkeys((s for part in parts for s in part.splits), ()), **common
    )


def _agreed(parts: Sequence[DatasetSpec], key: str, where: str) -> Any:
    """Return the one value that all datasets have that have any."""
    given = [(getattr(part, key), part.where) for part in parts]
    given = [pair for pair in given if pair[0] is not None]
    for value, home in given:
        if value != given[0][0]:
            text = f"{given[0][0]!r} in {given[0][1]} and {value!r} in {home}"
            raise DataError(f"{where}: merge: expected one {key} in all datasets, found {text}")
    return given[0][0] if given else None


def choose_classes(
    known: Sequence[Mapping[int, str]], wanted: Any, where: str
) -> tuple[dict[int, str], list[tuple[int, ...]]]:
    """Number the classes of several datasets anew.

    Args:
        known: for each dataset, class id -> name.
        wanted: None for all of them, names, or new name -> old name or names.
        where: who asks for it, for messages.

    Returns:
        The new names by id, and for each dataset the new id of each of its classes, -1 for none.
    """
    every = dict.fromkeys(name for names in known for name in names.values())
    wanted = list(every) if wanted is None else wanted
    if isinstance(wanted, list | tuple) and all(isinstance(name, str | int) for name in wanted):
        wanted = dict(zip(wanted, wanted, strict=True))
    if not isinstance(wanted, Mapping) or not wanted:
        raise bad(where, "classes", "names, or new name: [old names]", wanted)
    place: dict[str, int] = {}
    for number, (new, olds) in enumerate(wanted.items()):
        olds = new if olds is None else olds
        for old in map(str, olds if isinstance(olds, list | tuple) else [olds]):
            if old not in every:
                text = f"there is no class {old!r}. {nearest(old, every)} Known: {', '.join(every)}"
                raise DataError(f"{where}: classes: {new}: {text}")
            if old in place:
                raise DataError(f"{where}: classes: {new}: {old!r} stands further up already")
            place[old] = number
    maps = [tuple(place.get(names[i], -1) for i in range(len(names))) for names in known]
    return {i: str(name) for i, name in enumerate(wanted)}, maps
