# SPDX-License-Identifier: Apache-2.0
"""The embedded dataset `shapes`: scenes written out as a normal YOLO dataset, offline.

What the scenes show and what their labels mean stands in `yolo.data.scene`. A written folder
depends on its specification alone, which it holds in `shapes.json`; it appears in one step, so
that a killed or concurrent writer leaves no half of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from yolo.data.figures import FLIP_IDX, KEYPOINTS, NAMES
from yolo.data.folder import written_whole
from yolo.data.images import cv2
from yolo.data.sample import Instances, Polygon
from yolo.data.scene import SPLITS, scene
from yolo.errors import ConfigError, DataError, nearest

GENERATOR_VERSION = 1
"""To be raised with every change that alters a picture or a label."""

TRAIN, VAL, SIZE = 400, 100, 320
"""Images and longer side in pixels of `data="shapes"`."""

_JPEG_QUALITY = 95
_THREADS = 4  # OpenCV and NumPy let go of the interpreter's lock in most of the work


def shapes(cache_dir: Path, seed: int = 0, kinds: frozenset[str] = frozenset()) -> Path:
    """Provide `data="shapes"`: write the default set below `cache_dir`, or find it there.

    Args:
        cache_dir: folder for generated datasets; made when needed.
        seed: of the set.
        kinds: of labels that are wanted; the first that the set has, else boxes.

    Returns:
        The data.yaml, or the folder of class folders for kind "classes".
    """
    kind = next((known for known in KINDS if known in kinds), "boxes")
    spec = _specification(TRAIN, VAL, 0, SIZE, seed, kind)
    digest = hashlib.sha256(_dump(spec).encode()).hexdigest()[:8]
    folder = Path(cache_dir) / f"shapes-{kind}-{digest}"
    return write_shapes(folder, train=TRAIN, val=VAL, size=SIZE, seed=seed, kind=kind)


def write_shapes(
    folder: str | Path,
    *,
    train: int = TRAIN,
    val: int = VAL,
    test: int = 0,
    size: int | tuple[int, int] = SIZE,
    seed: int = 0,
    kind: str = "boxes",
) -> Path:
    """Write scenes as a YOLO dataset; a folder that holds the same set already is kept.

    Args:
        folder: where to; it must not exist, be empty, or hold the same set.
        train: number of training images.
        val: number of validation images.
        test: number of test images; 0 leaves the split out.
        size: the longer side in pixels, or (h, w); see `yolo.data.scene.scene`.
        seed: of the set; splits and indices of one seed share no scene.
        kind: "boxes", "polygons", "keypoints", "corners" (label files, one a kind), or "classes"
            (a folder a class and no label files).

    Returns:
        The data.yaml, or `folder` itself for kind "classes".

    Raises:
        ConfigError: if `kind` is unknown.
        DataError: if `folder` holds something else.
    """
    folder = Path(folder).absolute()
    spec = _specification(train, val, test, size, seed, kind)
    result = folder if kind == "classes" else folder / "data.yaml"
    if _holds(folder, spec):
        return result
    with written_whole(folder) as building:
        _write(building, spec)
    _holds(folder, spec)  # another process may have been quicker
    return result


def label_rows(instances: Instances, shape: tuple[int, int], kind: str) -> list[str]:
    """Return the label file's rows of one image, one an instance, normalised to 0..1.

    Args:
        instances: with the label kind asked for.
        shape: (h, w) of the image.
        kind: "boxes", "polygons", "keypoints" or "corners".

    Raises:
        ValueError: if the instances carry no labels of this kind.
    """
    return [
        " ".join([str(c), *(f"{x:.6f}" for x in _row(instances, i, shape[::-1], kind))])
        for i, c in enumerate(instances.classes.tolist())
    ]


def single_ring(rings: Polygon) -> np.ndarray:
    """Join parts and holes into one ring, (P, 2), for formats that know no other.

    Each further ring is entered and left over the same bridge between the nearest two points,
    which encloses nothing under the even-odd rule.
    """
    joined = rings[0]
    for ring in rings[1:]:
        gaps = np.linalg.norm(joined[:, None] - ring[None], axis=2)
        here, there = np.unravel_index(int(gaps.argmin()), gaps.shape)
        detour = np.concatenate([ring[there:], ring[: there + 1]])
        joined = np.concatenate([joined[: here + 1], detour, joined[here:]])
    return joined


def _row(instances: Instances, i: int, size: tuple[int, int], kind: str) -> Iterable[float]:
    """Return what stands behind the class in the row of instance i; `size` is (w, h)."""
    given = getattr(instances, kind)
    if given is None:
        raise ValueError("the instances carry no labels of this kind")
    if kind in ("polygons", "corners"):
        return ((single_ring(given[i]) if kind == "polygons" else given[i]) / size).ravel()
    (x0, y0, x1, y1), (w, h) = instances.boxes[i].tolist(), size
    box = [(x0 + x1) / 2 / w, (y0 + y1) / 2 / h, (x1 - x0) / w, (y1 - y0) / h]
    return box if kind == "boxes" else [*box, *(given[i] / (*size, 1)).ravel()]


KINDS = ("boxes", "polygons", "keypoints", "corners", "classes")
"""Kinds of labels that a set can be written with."""


def _specification(
    train: int, val: int, test: int, size: int | tuple[int, int], seed: int, kind: str
) -> dict[str, Any]:
    """Return everything a written set depends on, as plain JSON data."""
    if kind not in KINDS:
        text = f"unknown kind of labels {kind!r}. {nearest(kind, KINDS)} Known: {', '.join(KINDS)}"
        raise ConfigError(text)
    splits = {"train": train, "val": val, "test": test}
    sides = size if isinstance(size, int) else list(size)
    made_by = {"generator": GENERATOR_VERSION, "seed": seed}
    return {**made_by, "splits": splits, "size": sides, "kind": kind}


def _dump(spec: dict[str, Any]) -> str:
    return json.dumps(spec, indent=1, sort_keys=True)


def _holds(folder: Path, spec: dict[str, Any]) -> bool:
    """Say whether `folder` holds this set already.

    Raises:
        DataError: if it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    record = folder / "shapes.json"
    if record.is_file() and record.read_text(encoding="utf-8") == _dump(spec):
        return True
    raise DataError(
        f"{folder}: expected a new folder, or the shapes dataset asked for; found something else. "
        "Choose another folder, or remove this one."
    )


def _write(folder: Path, spec: dict[str, Any]) -> None:
    """Fill an empty folder with the images, labels and descriptions of a set."""
    size = spec["size"] if isinstance(spec["size"], int) else tuple(spec["size"])
    kind = spec["kind"]
    counts = {split: count for split, count in spec["splits"].items() if count}
    parts: tuple[str, ...] = ("images/{}", "labels/{}")
    if kind == "classes":
        parts = tuple(f"{{}}/{name}" for name in NAMES.values())
    for split in counts:
        for part in parts:
            (folder / part.format(split)).mkdir(parents=True)

    def draw(job: tuple[str, int]) -> None:
        split, index = job
        drawn = scene(spec["seed"], split, index, size)
        if kind == "classes":
            _save_image(folder / split / NAMES[drawn.image_class] / f"{index:06d}.jpg", drawn.image)
            return
        _save_image(folder / f"images/{split}/{index:06d}.jpg", drawn.image)
        h, w = drawn.image.shape[:2]
        text = "".join(f"{row}\n" for row in label_rows(drawn.instances, (h, w), kind))
        (folder / f"labels/{split}/{index:06d}.txt").write_text(text, encoding="utf-8")

    jobs = [(split, index) for split in SPLITS for index in range(counts.get(split, 0))]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        list(pool.map(draw, jobs))  # which passes a worker's error on
    if kind != "classes":
        (folder / "data.yaml").write_text(_data_yaml(counts, kind), encoding="utf-8")
    (folder / "shapes.json").write_text(_dump(spec), encoding="utf-8")


def _save_image(path: Path, image: np.ndarray) -> None:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    path.write_bytes(data.tobytes())


def _data_yaml(counts: dict[str, int], kind: str) -> str:
    """Return the dataset description; without `path`, it is its own folder that counts."""
    lines = ["# Written by yolo.data.shapes: drawn scenes, labels exact."]
    lines += [f"{split}: images/{split}" for split in counts]
    lines += ["names:", *(f"  {class_id}: {name}" for class_id, name in NAMES.items())]
    if kind == "keypoints":
        lines += [f"kpt_shape: [{len(KEYPOINTS)}, 3]  # {', '.join(KEYPOINTS)}"]
        lines += [f"flip_idx: {list(FLIP_IDX)}"]
    return "\n".join(lines) + "\n"
