# SPDX-License-Identifier: Apache-2.0
"""Network descriptions by name or path, and the scale letter that a name carries."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo.cfg.load import read_yaml
from yolo.errors import MissingFileError, ModelError, nearest

_LOG = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "models"

# Names of the package's own families: "yolov8n-ghost-p2" = "yolov8" + "n" + "-ghost-p2".
_FAMILY = re.compile(r"^(?P<base>.*?\d)(?P<letter>[a-z])(?P<rest>(-.*)?)$")


@dataclass(frozen=True, slots=True)
class Network:
    """A network description that was found.

    Args:
        yaml: the file's content.
        scale: the chosen key of its `scales`, or None where it has none.
        path: the file.
        stem: the name that was asked for, without folder and suffix ("yolov8n").
    """

    yaml: dict[str, Any]
    scale: str | None
    path: Path
    stem: str


def find_network(name: str | Path) -> Network:
    """Find a network description and choose its scale.

    An existing file is read as it is. Otherwise `yolov8n-p2.yaml` (or `yolov8n-p2`) means
    `yolov8-p2.yaml` with scale n, looked for beside the given path and in the package.

    Raises:
        MissingFileError: with the places looked at and the known names.
        ModelError: if the file is of another kind, isn't valid YAML, or its `scales` no mapping.
    """
    asked = Path(name)
    if asked.is_file() and asked.suffix not in {".yaml", ".yml"}:
        raise ModelError(
            f"{asked}: not a model; expected a network (.yaml), weights (.pt, .safetensors), or an "
            "exported file"
        )
    stem = asked.name.removesuffix(".yaml").removesuffix(".yml")
    looked = list(_places(asked, stem))
    path = next((place for place in looked if place.is_file()), None)
    content = read_yaml(path, error=ModelError) if path else {}
    if path is None or not (path.stem == stem or _named_scale(content.get("scales") or (), stem)):
        # a letter that names no scale is a slip of the pen, not a wish for the first one
        known = known_networks()
        raise MissingFileError(
            f"no network description {str(name)!r}. {nearest(f'{stem}.yaml', known)}\n"
            f"Looked for: {', '.join(map(str, looked))}\nKnown: {', '.join(known)}"
        )
    return Network(content, choose_scale(content.get("scales"), stem, str(path)), path, stem)


def known_networks() -> list[str]:
    """List the names of the package's networks, one for each family and scale."""
    names = []
    for path in sorted(FOLDER.glob("*.yaml")):
        base, dash, rest = path.stem.partition("-")
        names += [f"{base}{scale}{dash}{rest}.yaml" for scale in read_yaml(path).get("scales", {})]
    return names


def choose_scale(scales: Any, stem: str, source: str) -> str | None:
    """Choose a key of `scales` by a network's name.

    The key counts where it ends a word after a digit ("yolov8s", "net3s-mine") or is a word
    ("mine-s"). One scale in the file is that one; several and no hint mean the first, which
    is logged as a warning.

    Raises:
        ModelError: if `scales` isn't a mapping.
    """
    if not scales:
        return None
    if not isinstance(scales, Mapping):
        raise ModelError(
            f"{source}: expected `scales` as a mapping from a letter to "
            f"[depth, width, max_channels], got {scales!r}"
        )
    keys = [str(key) for key in scales]
    if len(keys) == 1:
        return keys[0]
    named = _named_scale(keys, stem)
    if named is None:
        _LOG.warning(
            "%s: the name %r chooses none of the scales %s; using the first, %r",
            source, stem, ", ".join(keys), keys[0],
        )  # fmt: skip
    return named or keys[0]


def _named_scale(keys: Iterable[str], stem: str) -> str | None:
    for before in (r"\d", r"(?:^|[-_. ])"):
        for key in keys:
            if re.search(rf"{before}{re.escape(key)}(?=$|[-_. ])", stem):
                return key
    return None


def _places(asked: Path, stem: str) -> Iterable[Path]:
    """List the files that `asked` may mean, most literal first."""
    match = _FAMILY.match(stem)
    stems = [stem, match["base"] + match["rest"]] if match else [stem]
    yield asked
    for folder in (asked.parent, FOLDER):
        if folder is FOLDER and asked.parent != Path():
            continue  # a path with a folder means a user's file, never one of ours
        for candidate in stems:
            yield folder / f"{candidate}.yaml"
