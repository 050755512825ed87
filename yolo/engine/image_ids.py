# SPDX-License-Identifier: Apache-2.0
"""Image ids for predictions.json: short where possible, never the same for two images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath


def unique_image_ids(ids: Sequence[int | str], paths: Sequence[str]) -> list[int | str]:
    """Make ids unique and of one kind.

    Tools that read the file sort the ids, which numbers mixed with text do not allow.

    Args:
        ids: one id an image, wished for: COCO's own, or the file's stem, as a number if it is one.
        paths: one path an image, all different.

    Returns:
        The ids themselves when they are numbers and all different; else the files' stems, with as
        many parent folders in front ("left/0001") as it takes to tell equal ones apart.
    """
    if len(set(ids)) == len(ids) and all(isinstance(i, int) for i in ids):
        return list(ids)
    parts = [PurePath(path).with_suffix("").parts for path in paths]
    names = [part[-1] for part in parts]
    depth = 1
    while repeated := {name for name, count in Counter(names).items() if count > 1}:
        depth += 1
        if depth > max(len(part) for part in parts):  # 1.jpg and 1.png in one folder
            return [path if n in repeated else n for n, path in zip(names, paths, strict=True)]
        names = [
            "/".join(part[-depth:]) if name in repeated else name
            for name, part in zip(names, parts, strict=True)
        ]
    return list(names)
