# SPDX-License-Identifier: Apache-2.0
"""`Results`: everything predicted for one image, and what to do with it.

Boxes, masks, keypoints, rotated boxes and probabilities are named parts; a task from outside may
add parts of its own by keyword (`Results(..., points=MyPoints(...))`). A part is a `Container`, or
whatever else has `len`, indexing and `cpu/numpy/cuda/to`. What it has of the following is called:
`draw(image, result)` by `plot`, `label_rows(result, save_conf) -> [text]` by `save_txt`,
`summary_rows(result, normalize, decimals) -> [dict]` by `summary` and the tables, and
`verbose(result) -> "2 points, "` by `verbose`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yolo.data.images import cv2
from yolo.engine.containers import (
    OBB,
    Boxes,
    Container,
    Keypoints,
    Masks,
    Probs,
)
from yolo.engine.draw import Marks, draw_marks, draw_probs, viewable
from yolo.engine.records import (
    label_rows,
    safe_name,
    show_image,
    summary_rows,
    write_image,
)
from yolo.engine.table import Row, Table
from yolo.engine.tensors import as_array, move, pick, to_numpy

__all__ = ["OBB", "Boxes", "Container", "Keypoints", "Masks", "Probs", "Results"]

LOGGER = logging.getLogger(__name__)

STAGES = ("preprocess", "inference", "postprocess")
_KINDS: dict[str, Callable[..., Any]] = {
    "boxes": Boxes,
    "masks": Masks,
    "probs": Probs,
    "keypoints": Keypoints,
    "obb": OBB,
}


class Results(Table):
    """The prediction for one image.

    Parts may be given as containers or as raw arrays (NumPy or torch). Masks without a row count
    as none.

    Args:
        orig_img: (H, W, C) image, BGR for three channels; kept, never altered.
        path: where the image came from.
        names: class id -> name.
        boxes: (N, 6) or (N, 7) x1 y1 x2 y2 [id] conf cls, pixels of `orig_img`.
        masks: (N, h, w) 0 or 1.
        probs: (C,) probabilities.
        keypoints: (N, K, 2) or (N, K, 3).
        obb: (N, 7) or (N, 8) cx cy w h r [id] conf cls.
        speed: milliseconds an image of each stage.
        scores: (N, C) all class scores of each kept detection, or None.
        parts: further parts, by name.

    Attributes:
        orig_shape: (h, w) of the image.
        save_dir: folder of the run's files, or None when nothing was written.
    """

    boxes: Boxes | None
    masks: Masks | None
    probs: Probs | None
    keypoints: Keypoints | None
    obb: OBB | None

    def __init__(
        self,
        orig_img: np.ndarray,
        path: str,
        names: Mapping[int, str],
        boxes: Any = None,
        masks: Any = None,
        probs: Any = None,
        keypoints: Any = None,
        obb: Any = None,
        speed: Mapping[str, float | None] | None = None,
        scores: Any = None,
        **parts: Any,
    ) -> None:
        self.orig_img = orig_img
        self.orig_shape: tuple[int, int] = (int(orig_img.shape[0]), int(orig_img.shape[1]))
        self.path = str(path)
        self.names = dict(names)
        self.speed: dict[str, float | None] = dict(speed or dict.fromkeys(STAGES))
        self.save_dir: str | None = None
        self.scores = None if scores is None else as_array(scores)
        self._extras = tuple(parts)
        self._set(boxes=boxes, masks=masks, probs=probs, keypoints=keypoints, obb=obb)
        for name, part in parts.items():
            setattr(self, name, part)

    def _set(self, **parts: Any) -> None:
        for name, part in parts.items():
            if part is not None and not isinstance(part, Container):
                part = _KINDS[name](part, self.orig_shape)
            setattr(self, name, None if name == "masks" and not part else part)

    @property
    def _parts(self) -> dict[str, Any]:
        """The parts that are there, by name."""
        found = {name: getattr(self, name) for name in (*_KINDS, *self._extras)}
        return {name: part for name, part in found.items() if part is not None}

    def _hooks(self, name: str) -> list[Callable[..., Any]]:
        """List the methods of this name that a task's own parts have."""
        parts = [part for key, part in self._parts.items() if key in self._extras]
        return [getattr(part, name) for part in parts if hasattr(part, name)]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pickle and copy probe these before __init__ has run
            raise AttributeError(name)
        known = sorted(n for n in {*vars(self), *dir(type(self))} if not n.startswith("_"))
        raise AttributeError(f"Results has no {name!r}. It has: {', '.join(known)}")

    def __len__(self) -> int:
        return next((len(part) for part in self._parts.values()), 0)

    def __getitem__(self, index: Any) -> Results:
        result = self._mapped(lambda part: part[index])
        result.scores = None if self.scores is None else pick(self.scores, index)
        return result

    def __iter__(self) -> Iterator[Results]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        parts = ", ".join(f"{n}={tuple(p.shape)}" for n, p in self._parts.items())
        return f"Results({self.path!r}, {self.orig_shape}, {parts or 'nothing'})"

    def new(self) -> Results:
        """Return empty Results of the same image."""
        result = Results(self.orig_img, self.path, self.names, speed=self.speed)
        result.save_dir = self.save_dir
        return result

    def _mapped(self, change: Callable[[Any], Any]) -> Results:
        result = self.new()
        result._extras = self._extras
        for name in (*_KINDS, *self._extras):
            part = getattr(self, name)
            part = None if part is None else change(part)
            setattr(result, name, None if name == "masks" and not part else part)
        return result

    def _moved(self, how: str, *args: Any, **kwargs: Any) -> Results:
        result = self._mapped(lambda part: getattr(part, how)(*args, **kwargs))
        if self.scores is not None:
            result.scores = move(self.scores, how, *args, **kwargs)
        return result

    def cpu(self) -> Results:
        """Return a copy on the CPU."""
        return self._moved("cpu")

    def numpy(self) -> Results:
        """Return a copy whose parts are NumPy arrays."""
        return self._moved("numpy")

    def cuda(self) -> Results:
        """Return a copy on the current CUDA device."""
        return self._moved("cuda")

    def to(self, *args: Any, **kwargs: Any) -> Results:
        """Return a copy moved as `torch.Tensor.to` would."""
        return self._moved("to", *args, **kwargs)

    def update(
        self,
        boxes: Any = None,
        masks: Any = None,
        probs: Any = None,
        obb: Any = None,
        keypoints: Any = None,
    ) -> None:
        """Replace parts in place; boxes are clipped to the image.

        `scores` of another number of objects no longer belong to them, and are dropped.
        """
        given = {"masks": masks, "probs": probs, "obb": obb, "keypoints": keypoints}
        self._set(**{name: part for name, part in given.items() if part is not None})
        if boxes is not None:
            self._set(boxes=boxes)
            self.boxes = self.boxes.clipped() if self.boxes is not None else None
        if self.scores is not None and len(self.scores) != len(self):
            self.scores = None

    @property
    def rows(self) -> Boxes | OBB | None:
        """The boxes of either kind, upright or rotated, or None."""
        return self.boxes if self.boxes is not None else self.obb

    def tracked(self, index: Any, ids: np.ndarray) -> Results:
        """Return the objects at `index` with these track ids, one each."""
        result = self[index]
        for name in ("boxes", "obb"):
            rows = getattr(result, name)
            setattr(result, name, None if rows is None else rows.with_ids(ids))
        return result

    def name_of(self, class_id: float) -> str:
        """Return the name of a class, its number where it has none."""
        return self.names.get(int(class_id), str(int(class_id)))

    def marks(self) -> Marks:
        """Return what `plot` draws, as plain arrays."""
        rows = None if self.rows is None else self.rows.numpy()
        points = None if self.keypoints is None else self.keypoints.numpy().data
        ids = None if rows is None else rows.id
        return Marks(
            boxes=np.zeros((0, 4), np.float32) if rows is None else rows.xyxy,
            classes=np.zeros(0, np.int64) if rows is None else rows.cls.astype(np.int64),
            conf=None if rows is None else rows.conf,
            ids=None if ids is None else ids.astype(np.int64),
            corners=None if self.obb is None else self.obb.numpy().xyxyxyxy,
            keypoints=points,
            mask=None if self.masks is None else self.masks.full,
        )

    def plot(
        self,
        conf: bool = True,
        line_width: float | None = None,
        font_size: float | None = None,
        font: str | None = None,
        pil: bool = False,
        img: np.ndarray | None = None,
        kpt_radius: float | None = None,
        kpt_line: bool = True,
        labels: bool = True,
        boxes: bool = True,
        masks: bool = True,
        probs: bool = True,
        show: bool = False,
        save: bool = False,
        filename: str | Path | None = None,
        color_mode: str = "class",
        txt_color: tuple[int, int, int] | None = None,
    ) -> Any:
        """Draw the prediction on a copy of the image.

        Args:
            conf: write confidences into the labels.
            line_width: pixels; fitted to the image when None.
            font_size: text height in pixels; fitted to the image when None.
            font: TrueType file for the labels (needs Pillow).
            pil: return a PIL image (RGB) in place of an array.
            img: draw on a copy of this image, of the same size, in place of the original.
            kpt_radius: radius of keypoints in pixels; fitted to the image when None.
            kpt_line: join 17 keypoints to a skeleton.
            labels: write labels.
            boxes: draw boxes.
            masks: draw masks.
            probs: write class probabilities.
            show: open the picture in a window.
            save: write the picture to `filename`.
            filename: default `results_<name>` in the current folder.
            color_mode: "class" or "instance".
            txt_color: BGR of the labels; chosen for contrast when None.

        Returns:
            (H, W, 3) uint8 BGR array, or a PIL image.
        """
        canvas = viewable(self.orig_img if img is None else img)
        canvas = draw_marks(
            canvas,
            self.marks(),
            self.names,
            show_conf=conf,
            show_labels=labels,
            show_boxes=boxes,
            show_masks=masks,
            line_width=line_width,
            font_size=font_size,
            font=font,
            kpt_radius=kpt_radius,
            kpt_line=kpt_line,
            color_mode=color_mode,
            txt_color=txt_color,
        )
        if self.probs is not None and probs:
            lines = [(self.name_of(i), float(self.probs.data[i])) for i in self.probs.top5]
            draw_probs(canvas, lines, font_size=font_size, font=font)
        for draw in self._hooks("draw"):
            draw(canvas, self)
        if save:
            self._write(canvas, filename)
        if show:
            show_image(canvas)
        if not pil:
            return canvas
        from PIL import Image

        return Image.fromarray(cv2.cvtColor(canvas, cv2.COLOR_BGR2RGB))

    def show(self, *args: Any, **kwargs: Any) -> None:
        """Draw with the arguments of `plot` and open the picture (inline in a notebook)."""
        self.plot(*args, **{**kwargs, "show": True, "pil": False})

    def save(self, filename: str | Path | None = None, *args: Any, **kwargs: Any) -> str:
        """Draw with the arguments of `plot` and write the picture.

        Returns:
            Path of the file, `results_<name>` in the current folder unless given.

        Raises:
            DataError: if the picture can't be written.
        """
        return self._write(self.plot(*args, **{**kwargs, "pil": False}), filename)

    def _write(self, canvas: np.ndarray, filename: str | Path | None) -> str:
        target = Path(filename) if filename else Path(f"results_{Path(self.path).name}")
        if not filename and not cv2.haveImageWriter(target.name):
            target = target.with_suffix(".jpg")
        return write_image(target, canvas)

    def verbose(self) -> str:
        """Return the finding in words: "2 cats, 1 dog, "."""
        if self.probs is not None:
            top = [(self.name_of(i), float(self.probs.data[i])) for i in self.probs.top5]
            return "".join(f"{name} {score:.2f}, " for name, score in top)
        if not len(self):
            return "(no detections), "
        if own := self._hooks("verbose"):
            return "".join(say(self) for say in own)
        if self.rows is None:
            return "".join(f"{len(part)} {name}, " for name, part in self._parts.items())
        ids, counts = np.unique(to_numpy(self.rows.cls).astype(int), return_counts=True)
        return "".join(
            f"{n} {self.name_of(i)}{'s' if n > 1 else ''}, "
            for i, n in zip(ids, counts, strict=True)
        )

    def save_txt(self, txt_file: str | Path, save_conf: bool = False) -> str:
        """Append one normalised row an object to a label file; write nothing when there is none.

        Returns:
            Path of the file.
        """
        rows = label_rows(self, save_conf)
        rows += [row for own in self._hooks("label_rows") for row in own(self, save_conf)]
        if rows:
            path = Path(txt_file)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as stream:
                stream.writelines(f"{row}\n" for row in rows)
        return str(txt_file)

    def save_crop(self, save_dir: str | Path, file_name: str | Path = "im.jpg") -> None:
        """Write each object's cut-out to `<save_dir>/<class>/<stem>[-2].jpg`."""
        if self.rows is None:
            LOGGER.warning("save_crop needs boxes; %s has none", self.path)
            return
        image = viewable(self.orig_img)
        height, width = self.orig_shape
        stem = Path(file_name).stem
        found = self.rows.numpy()
        for box, class_id in zip(found.xyxy, found.cls, strict=True):
            x1, y1 = np.floor(box[:2]).clip(0, [width - 1, height - 1]).astype(int)
            x2, y2 = np.ceil(box[2:]).clip([x1 + 1, y1 + 1], [width, height]).astype(int)
            # A class name is data: it may not lead out of the folder.
            folder = Path(save_dir) / safe_name(self.name_of(class_id))
            number, target = 1, folder / f"{stem}.jpg"
            while target.exists():
                number += 1
                target = folder / f"{stem}-{number}.jpg"
            write_image(target, image[y1:y2, x1:x2])

    def summary(self, normalize: bool = False, decimals: int = 5) -> list[Row]:
        """Return one plain dict an object (classification: one for each of the top five classes).

        Args:
            normalize: give coordinates in 0..1.
            decimals: digits kept.
        """
        rows = summary_rows(self, normalize, decimals)
        own = self._hooks("summary_rows")
        return rows + [row for give in own for row in give(self, normalize, decimals)]

    tojson = Table.to_json
