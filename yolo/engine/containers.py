# SPDX-License-Identifier: Apache-2.0
"""What a prediction holds: boxes, masks, keypoints, rotated boxes, class probabilities.

Each container wraps one array, a NumPy array or a torch tensor alike, and offers views of it.

Letters: N objects, K keypoints, D 2 or 3, C classes, h w mask size. Pixels are those of the
original image; `*n` views are divided by its width and height.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from yolo.data.images import cv2
from yolo.data.letterbox import place
from yolo.engine.masks import PackedMasks, trace_outline
from yolo.engine.tensors import as_array, move, pick, stays, to_numpy
from yolo.nn.rotated import array_module, xywhr_to_corners

Self = TypeVar("Self", bound="Container")
SelfRows = TypeVar("SelfRows", bound="_Rows")


class Container:
    """An array of predictions that belongs to one image.

    Attributes:
        data: the array, NumPy or torch.
        orig_shape: (h, w) of the original image.
    """

    def __init__(self, data: Any, orig_shape: tuple[int, int]) -> None:
        self.data = as_array(data)
        self.orig_shape = (int(orig_shape[0]), int(orig_shape[1]))

    @property
    def shape(self) -> Any:
        """Shape of `data`."""
        return self.data.shape

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self: Self, index: Any) -> Self:
        return type(self)(pick(self.data, index), self.orig_shape)

    def __iter__(self: Self) -> Iterator[Self]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, orig_shape={self.orig_shape})"

    def _moved(self: Self, how: str, *args: Any, **kwargs: Any) -> Self:
        return type(self)(move(self.data, how, *args, **kwargs), self.orig_shape)

    def cpu(self: Self) -> Self:
        """Return a copy on the CPU."""
        return self._moved("cpu")

    def numpy(self: Self) -> Self:
        """Return a copy whose data and views are NumPy arrays."""
        return self._moved("numpy")

    def cuda(self: Self) -> Self:
        """Return a copy on the current CUDA device."""
        return self._moved("cuda")

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """Return a copy moved as `torch.Tensor.to` would."""
        return self._moved("to", *args, **kwargs)

    def _like_data(self, values: Any) -> Any:
        """Return numbers as an array of the kind, type and device of `data`."""
        if isinstance(self.data, np.ndarray):
            return np.asarray(values, dtype=self.data.dtype)
        return self.data.new_tensor(values)

    def _per_side(self, repeats: int = 1) -> Any:
        """Return (w, h) of the image, `repeats` times, to divide coordinates by."""
        return self._like_data([self.orig_shape[1], self.orig_shape[0]] * repeats)


class _Rows(Container):
    """Rows of `geometry` columns, then [id], conf, cls."""

    geometry = 4
    columns = ""

    def __init__(self, data: Any, orig_shape: tuple[int, int]) -> None:
        data = as_array(data)
        if data.ndim == 1:
            data = data[None]
        if data.ndim != 2 or data.shape[1] - self.geometry not in {2, 3}:
            raise ValueError(
                f"expected rows of {self.columns}, i.e. shape (N, {self.geometry + 2}) or "
                f"(N, {self.geometry + 3}), got {tuple(data.shape)}"
            )
        super().__init__(data, orig_shape)

    @property
    def is_track(self) -> bool:
        """Whether the rows carry track ids."""
        return int(self.data.shape[1]) == self.geometry + 3

    @property
    def conf(self) -> Any:
        """(N,) confidence, 0..1."""
        return self.data[:, -2]

    @property
    def cls(self) -> Any:
        """(N,) class ids, as floats."""
        return self.data[:, -1]

    @property
    def id(self) -> Any:
        """(N,) track ids as floats, or None without tracking."""
        return self.data[:, -3] if self.is_track else None

    def with_ids(self: SelfRows, ids: np.ndarray) -> SelfRows:
        """Return the rows with these (N,) track ids."""
        parts = self.data[:, : self.geometry], self._like_data(ids)[:, None], self.data[:, -2:]
        return type(self)(array_module(self.data).concatenate(parts, -1), self.orig_shape)


class Boxes(_Rows):
    """Axis-aligned boxes: rows x1 y1 x2 y2 [id] conf cls, (N, 6) or (N, 7)."""

    columns = "x1 y1 x2 y2 [id] conf cls"

    @property
    def xyxy(self) -> Any:
        """(N, 4) corners, pixels."""
        return self.data[:, :4]

    @property
    def xywh(self) -> Any:
        """(N, 4) centre, width, height, pixels."""
        x1, y1, x2, y2 = (self.data[:, i] for i in range(4))
        columns = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
        return array_module(self.data).stack(columns, -1)

    @property
    def xyxyn(self) -> Any:
        """(N, 4) corners, 0..1."""
        return self.xyxy / self._per_side(2)

    @property
    def xywhn(self) -> Any:
        """(N, 4) centre, width, height, 0..1."""
        return self.xywh / self._per_side(2)

    def clipped(self) -> Boxes:
        """Return boxes whose corners lie in the image."""
        height, width = self.orig_shape
        data = self.data.copy() if isinstance(self.data, np.ndarray) else self.data.clone()
        data[:, 0:4:2] = data[:, 0:4:2].clip(0, width)
        data[:, 1:4:2] = data[:, 1:4:2].clip(0, height)
        return Boxes(data, self.orig_shape)


class OBB(_Rows):
    """Rotated boxes: rows cx cy w h r [id] conf cls, (N, 7) or (N, 8); r in radians."""

    geometry = 5
    columns = "cx cy w h r [id] conf cls"

    @property
    def xywhr(self) -> Any:
        """(N, 5) centre, sides in pixels, angle in radians; see `yolo.nn.rotated`."""
        return self.data[:, :5]

    @property
    def xyxyxyxy(self) -> Any:
        """(N, 4, 2) corners in pixels; not clipped to the image."""
        return xywhr_to_corners(self.xywhr)

    @property
    def xyxyxyxyn(self) -> Any:
        """(N, 4, 2) corners, 0..1."""
        return self.xyxyxyxy / self._per_side()

    @property
    def xyxy(self) -> Any:
        """(N, 4) upright boxes around the rotated ones, pixels."""
        lib, corners = array_module(self.data), self.xyxyxyxy
        return lib.concatenate([lib.amin(corners, 1), lib.amax(corners, 1)], -1)


class Masks(Container):
    """Instance masks, (N, h, w) of 0 and 1, uint8, at the size the network saw or the image's own.

    Packed masks stay so until `data` is read; nothing else here needs them all at once. The
    outlines (`xy`, `xyn`) are traced at the first look and kept: change `data` before that, or make
    new Masks.

    Args:
        data: (N, h, w) or (h, w), or packed masks.
        orig_shape: (h, w) of the original image.
    """

    def __init__(self, data: Any, orig_shape: tuple[int, int]) -> None:
        self._packed = data if isinstance(data, PackedMasks) else None
        if self._packed is not None:
            self.orig_shape = (int(orig_shape[0]), int(orig_shape[1]))
            return
        data = as_array(data)
        if data.ndim == 2:
            data = data[None]
        if data.ndim != 3:
            raise ValueError(f"expected masks of shape (N, h, w), got {tuple(data.shape)}")
        super().__init__(data, orig_shape)

    @cached_property
    def data(self) -> Any:
        """(N, h, w) uint8, NumPy or torch; all masks at once."""
        assert self._packed is not None
        return as_array(self._packed.dense())

    @property
    def _source(self) -> Any:
        """The packed masks, or `data` once that is there: it may have been written to."""
        return self.__dict__.get("data", self._packed)

    @property
    def shape(self) -> Any:
        """(N, h, w)."""
        return self._source.shape

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Masks:
        source = self._source
        if isinstance(source, PackedMasks):
            return Masks(source.select(pick(np.arange(len(source)), index)), self.orig_shape)
        return super().__getitem__(index)

    def _moved(self, how: str, *args: Any, **kwargs: Any) -> Masks:
        source = self._source
        if isinstance(source, PackedMasks) and stays(how, *args, **kwargs):
            packed = replace(source, tensors=source.tensors and how != "numpy")
            return Masks(packed, self.orig_shape)
        return super()._moved(how, *args, **kwargs)

    def full(self, i: int) -> np.ndarray:
        """Return mask `i` at the size of the image, (H, W) bool: the letterbox is undone."""
        height, width = self.orig_shape
        mask = to_numpy(self._source[i]).astype(np.uint8)
        if mask.shape == (height, width):
            return mask.astype(bool)
        top, left, inner_h, inner_w = self._content()
        inner = mask[top : top + inner_h, left : left + inner_w].astype(np.float32)
        return cv2.resize(inner, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5

    def _content(self) -> tuple[int, int, int, int]:
        """Return (top, left, height, width) of the image inside the letterboxed mask."""
        size = int(self.shape[1]), int(self.shape[2])
        placement, (inner_h, inner_w) = place(self.orig_shape, size)
        return placement.pad_top, placement.pad_left, inner_h, inner_w

    @cached_property
    def xy(self) -> list[np.ndarray]:
        """N outlines, each (P, 2) float32 pixels: outer contours joined to one polygon."""
        if not len(self):
            return []
        height, width = self.orig_shape
        top, left, inner_h, inner_w = self._content()
        scale = np.array([width / inner_w, height / inner_h], dtype=np.float32)
        outlines = []
        for i in range(len(self)):
            mask = to_numpy(self._source[i])
            outline = (trace_outline(mask) - np.asarray([left, top], np.float32)) * scale
            outlines.append(outline.clip(0, [width, height]).astype(np.float32))
        return outlines

    @property
    def xyn(self) -> list[np.ndarray]:
        """N outlines, each (P, 2) float32, 0..1."""
        size = np.asarray([self.orig_shape[1], self.orig_shape[0]], np.float32)
        return [outline / size for outline in self.xy]


class Keypoints(Container):
    """Keypoints, (N, K, 2) or (N, K, 3): x, y [, visibility 0..1]."""

    def __init__(self, data: Any, orig_shape: tuple[int, int]) -> None:
        data = as_array(data)
        if data.ndim == 2:
            data = data[None]
        if data.ndim != 3 or data.shape[2] not in {2, 3}:
            raise ValueError(
                f"expected keypoints of shape (N, K, 2) or (N, K, 3), got {tuple(data.shape)}"
            )
        super().__init__(data, orig_shape)

    @property
    def has_visible(self) -> bool:
        """Whether a visibility is predicted."""
        return int(self.data.shape[2]) == 3

    @property
    def xy(self) -> Any:
        """(N, K, 2) positions, pixels."""
        return self.data[..., :2]

    @property
    def xyn(self) -> Any:
        """(N, K, 2) positions, 0..1."""
        return self.xy / self._per_side()

    @property
    def conf(self) -> Any:
        """(N, K) visibility, 0..1; ones when the model predicts none, since readers expect it."""
        if self.has_visible:
            return self.data[..., 2]
        return array_module(self.data).ones_like(self.data[..., 0])


class Probs(Container):
    """Class probabilities of a whole image, (C,)."""

    def __init__(self, data: Any, orig_shape: tuple[int, int] = (0, 0)) -> None:
        data = as_array(data)
        if data.ndim != 1:
            raise ValueError(f"expected probabilities of shape (C,), got {tuple(data.shape)}")
        super().__init__(data, orig_shape)

    @property
    def top1(self) -> int:
        """The most probable class."""
        return self.top5[0]

    @property
    def top5(self) -> list[int]:
        """The five most probable classes (fewer when there are fewer), best first."""
        return [int(i) for i in np.argsort(-to_numpy(self.data), kind="stable")[:5]]

    @property
    def top1conf(self) -> Any:
        """0-d probability of `top1`."""
        return self.data[self.top1]

    @property
    def top5conf(self) -> Any:
        """Probabilities of `top5`."""
        return self.data[self.top5]
