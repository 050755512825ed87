# SPDX-License-Identifier: Apache-2.0
"""Results as rows of text, as plain dicts and as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolo.data.images import cv2
from yolo.engine.containers import OBB
from yolo.engine.progress import in_notebook
from yolo.errors import DataError

if TYPE_CHECKING:
    from yolo.engine.results import Results


def text_row(*columns: Any, digits: int = 6) -> str:
    """Return numbers and arrays, one behind the other, as a line of text."""
    numbers = np.concatenate([np.ravel(column) for column in columns])
    return " ".join(f"{number:.{digits}g}" for number in numbers)


def label_rows(result: Results, save_conf: bool) -> list[str]:
    """Return one normalised label row an object, six significant digits a number.

    boxes: `c cx cy w h`; masks: `c x1 y1 x2 y2 ...` (objects with fewer than three points have no
    row); keypoints: boxes and `x y [v]` each; rotated boxes: `c x1 y1 ... x4 y4`; then the
    confidence if asked for, then the track id if there is one. Probabilities: five rows `p name`.
    """
    if result.probs is not None:
        probs = result.probs
        return [f"{float(probs.data[i]):.2f} {result.name_of(i)}" for i in probs.top5]
    if result.rows is None:
        return []
    rows = []
    found = result.rows.numpy()
    polygons = None if result.masks is None else result.masks.xyn
    points = None if result.keypoints is None else result.keypoints.numpy()
    for i in range(len(found)):
        if polygons is not None:
            if len(polygons[i]) < 3:
                continue
            geometry = polygons[i]
        else:
            geometry = found[i].xyxyxyxyn if isinstance(found, OBB) else found[i].xywhn
        columns = [found.cls[i], geometry]
        if points is not None:
            columns.append(np.concatenate([points.xyn[i], points.data[i, :, 2:]], -1))
        if save_conf:
            columns.append(found.conf[i])
        if found.id is not None:
            columns.append(found.id[i])
        rows.append(text_row(*columns))
    return rows


def summary_rows(result: Results, normalize: bool, decimals: int) -> list[dict[str, Any]]:
    """Return one plain dict an object; see `Results.summary`."""

    def plain(values: np.ndarray) -> list[float]:
        return [round(float(value), decimals) for value in values]

    def xy(points: np.ndarray) -> dict[str, list[float]]:
        points = points / scale
        return {"x": plain(points[:, 0]), "y": plain(points[:, 1])}

    def head(class_id: int, conf: Any) -> dict[str, Any]:
        score = round(float(conf), decimals)
        return {"name": result.name_of(class_id), "class": class_id, "confidence": score}

    if result.probs is not None:
        return [head(i, result.probs.data[i]) for i in result.probs.top5]
    if result.rows is None:
        return []
    scale = np.asarray(result.orig_shape[::-1] if normalize else (1, 1), np.float64)
    found = result.rows.numpy()
    points = None if result.keypoints is None else result.keypoints.numpy()
    rows = []
    for i in range(len(found)):
        row = head(int(found.cls[i]), found.conf[i])
        corners = found.xyxyxyxy[i] if isinstance(found, OBB) else found.xyxy[i].reshape(2, 2)
        pairs = zip(*xy(corners).values(), strict=True)
        row["box"] = {
            f"{axis}{n}": value
            for n, pair in enumerate(pairs, start=1)
            for axis, value in zip("xy", pair, strict=True)
        }
        if found.id is not None:
            row["track_id"] = int(found.id[i])
        if result.masks is not None:
            row["segments"] = xy(result.masks.xy[i])
        if points is not None:
            row["keypoints"] = {**xy(points.xy[i]), "visible": plain(points.conf[i])}
        rows.append(row)
    return rows


def safe_name(name: str) -> str:
    """Return `name` as one harmless path component."""
    cleaned = "".join("_" if c in '/\\:*?"<>|' or ord(c) < 32 else c for c in name).strip(" .")
    return cleaned or "_"


def write_image(path: Path, image: np.ndarray) -> str:
    """Write a picture, making its folder.

    Raises:
        DataError: if the suffix is no picture format.
    """
    if not cv2.haveImageWriter(path.name):
        raise DataError(f"{path}: expected a picture suffix such as .jpg or .png to write to")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Encoding in memory bears paths that cv2.imwrite can't handle on every system.
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return str(path)


def show_image(canvas: np.ndarray) -> None:
    """Show a BGR picture inline in a notebook, else in the system's viewer."""
    from PIL import Image

    picture = Image.fromarray(cv2.cvtColor(canvas, cv2.COLOR_BGR2RGB))
    if in_notebook():
        from IPython.display import display

        display(picture)
    else:
        picture.show()
