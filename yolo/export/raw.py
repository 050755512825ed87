# SPDX-License-Identifier: Apache-2.0
"""Preparing a raw image inside an exported graph, and bringing what is found back to its pixels.

These are `preprocess="raw"`. The graph's input is one image as it was decoded, (H, W, C) uint8 of
any size. `RawLetterbox` computes what `yolo.data.letterbox` does, bit for bit: OpenCV's bilinear
resize of 8-bit images works with weights of 11 bits in whole numbers (its C++ source,
modules/imgproc/src/resize.cpp, Apache-2.0), and so does this. The one exception is an image whose
size rounds from exactly half a pixel, one in a million, which may come out a pixel wider.
`RawCrop` computes what `yolo.data.crop` does but for halves of a grey level, which Pillow's weights
of 22 bits round either way: up to a few pixels in a hundred differ by one level.

Boxes and keypoints come out in the image's pixels. Masks stay what networks give: coefficients in
the rows, and prototypes that cover the canvas, padding included.

A `preprocess` module of your own is called with the graph's input and returns the network's, or a
pair of that and a state; where it has a method `restore(outputs, state)`, that is called with the
outputs, after the suppression where there is one. Both are traced without gradients.

Shape letters: H W the image, h w the canvas, C channels, n rows.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from yolo.data.letterbox import FILL
from yolo.nn.rotated import scale_boxes

WEIGHT = 2048
"""OpenCV's weights are whole multiples of one part in so many."""

State: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Gain, padding before, and size of the image, each (2,) float as (x, y)."""


class RawImage(nn.Module):
    """What both kinds share.

    Args:
        size: (h, w) of the canvas.
        rgb: the image is RGB, not BGR as OpenCV reads it.
    """

    def __init__(self, size: tuple[int, int], *, rgb: bool = False) -> None:
        super().__init__()
        self.size = size
        self.rgb = rgb

    def finish(self, canvas: Tensor) -> Tensor:
        """Turn (C, h, w) levels 0..255 into (1, C, h, w) RGB 0..1."""
        if canvas.shape[0] == 3 and not self.rgb:
            canvas = canvas.flip(0)
        return canvas[None].float() / 255


class RawLetterbox(RawImage):
    """Fits an image into the canvas as `predict` does, and brings rows back to its pixels.

    Args:
        size: (h, w) that the image is fitted into.
        rgb: the image is RGB, not BGR as OpenCV reads it.
        stride: given, the canvas is the smallest of whole strides that holds the image, as with
            `rect=True`; None gives every image the whole canvas.
        rotated: rows are of rotated boxes, the angle at the end.
        kpt_shape: (keypoints, numbers of each) at the end of the rows, or None.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        rgb: bool = False,
        stride: int | None = None,
        rotated: bool = False,
        kpt_shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(size, rgb=rgb)
        self.stride = stride
        self.rotated = rotated
        self.kpt_shape = kpt_shape

    def forward(self, image: Tensor) -> tuple[Tensor, State]:
        """Place an image.

        Args:
            image: (H, W, C) uint8.

        Returns:
            (1, C, h, w) RGB 0..1, and what `restore` needs.
        """
        height, width = lengths(image)
        longer = torch.maximum(height * self.size[1], width * self.size[0])  # x the other side
        rows = self._axis(height, longer, self.size)
        columns = self._axis(width, longer, self.size[::-1])
        y0, y1, above, below = rows.taps(clamped=False)
        x0, x1, left, right = columns.taps(clamped=True)

        def row(places: Tensor) -> Tensor:
            pixels = image.index_select(0, places)
            first, second = (pixels.index_select(1, x).int() for x in (x0, x1))
            return (first * left[:, None] + second * right[:, None]) // 16

        upper, lower = (row(y0) * above[:, None, None], row(y1) * below[:, None, None])
        level = (upper // 65536 + lower // 65536 + 2) // 4
        inside = rows.inside[:, None] & columns.inside
        canvas = torch.where(inside[..., None], level, FILL).permute(2, 0, 1)
        source = torch.stack((width, height)).float()
        gain = torch.stack((columns.inner, rows.inner)).float() / source
        return self.finish(canvas), (gain, torch.stack((columns.pad, rows.pad)).float(), source)

    def _axis(self, length: Tensor, longer: Tensor, sides: tuple[int, int]) -> Axis:
        """Place one side, see `_weights` of `RawCrop`; `longer` is the larger product."""
        size, other = sides
        inner = rounded(length * size * other, longer).clamp(min=1)
        if self.stride is None:
            places = torch.arange(size, device=length.device)
        else:
            strides = (inner + self.stride - 1) // self.stride
            places = counting(strides, self.stride, size // self.stride)
        pad = torch.div(places.shape[0] - inner, 2, rounding_mode="floor")
        return Axis(length, inner, pad, places - pad)

    def restore(self, outputs: tuple[Tensor, ...], state: State) -> tuple[Tensor, ...]:
        """Map the rows (1, n, 6 + E) of `yolo.export.nms` to the image's pixels.

        Upright boxes and keypoints are limited to the image, rotated boxes are not.
        """
        rows, *rest = outputs
        gain, pad, source = state

        def moved(points: Tensor) -> Tensor:
            return (points - pad) / gain

        def limited(points: Tensor) -> Tensor:
            return torch.minimum(moved(points).clamp(min=0), source)

        if self.rotated:
            shrink: Any = 1 / gain
            boxes = scale_boxes(rows[..., [0, 1, 2, 3, 6]], shrink[0], shrink[1])
            parts = [moved(rows[..., :2]), boxes[..., 2:4], rows[..., 4:6], boxes[..., 4:]]
        else:
            parts = [limited(rows[..., :2]), limited(rows[..., 2:4]), rows[..., 4:6]]
            if self.kpt_shape is None:
                parts.append(rows[..., 6:])
            else:
                kpts = rows[..., 6:].unflatten(-1, self.kpt_shape)
                points = torch.cat((limited(kpts[..., :2]), kpts[..., 2:]), -1)
                parts.append(points.flatten(-2))
        found = torch.cat(parts, -1)
        return torch.where(rows[..., 4:5] > 0, found, 0), *rest


class RawCrop(RawImage):
    """Resizes an image so that it covers the canvas, and cuts out the centre."""

    def forward(self, image: Tensor) -> Tensor:
        """Place an image: (H, W, C) uint8 to (1, C, h, w) RGB 0..1."""
        height, width = lengths(image)
        shorter = torch.minimum(height * self.size[1], width * self.size[0])
        rows = self._weights(image.shape[0], height, shorter, self.size)
        columns = self._weights(image.shape[1], width, shorter, self.size[::-1])
        pixels = image.permute(2, 0, 1).float()
        squeezed = torch.floor(pixels @ columns.T + 0.5)
        return self.finish(torch.floor(rows @ squeezed + 0.5))

    def _weights(
        self, count: int, length: Tensor, shorter: Tensor, sides: tuple[int, int]
    ) -> Tensor:
        """Return the share (size, count) of each pixel of a side in each of the result's.

        A triangle around a pixel's middle, as wide as two pixels of the coarser of both images.

        Args:
            count: the side's pixels, also as the tensor `length`.
            length: see above.
            shorter: the smaller of both sides times the other canvas side.
            sides: of the canvas, this one first.
        """
        size, other = sides
        inner = (length * size * other // shorter).clamp(min=size)
        cut = inner - size
        first = cut // 2 + (cut % 2) * (cut // 2 % 2)  # half of it, halves to the even number
        middles = 2 * (torch.arange(size, device=length.device) + first) + 1
        pixels = 2 * torch.arange(count, device=length.device) + 1
        apart = (pixels * inner - (middles * length)[:, None]).abs().float()
        weights = (1 - apart / (2 * torch.maximum(inner, length))).clamp(min=0)
        return weights / weights.sum(1, keepdim=True)


class Axis:
    """One side of an image on a canvas, all in whole numbers.

    Attributes:
        length: of the image's side, pixels.
        inner: of the resized image's.
        pad: padding before it.
        places: what number each pixel of the canvas has in the resized image.
    """

    def __init__(self, length: Tensor, inner: Tensor, pad: Tensor, places: Tensor) -> None:
        self.length, self.inner, self.pad, self.places = length, inner, pad, places

    @property
    def inside(self) -> Tensor:
        """Which of the canvas's pixels the image covers."""
        return (self.places >= 0) & (self.places < self.inner)

    def taps(self, clamped: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return for each pixel of the canvas two of the image, and their weights.

        OpenCV takes the position of a pixel in the image as a single-precision number, and splits
        it into whole and fraction afterwards.

        Args:
            clamped: beyond the middle of the outer pixels there is one weight, not two.
        """
        last = self.length - 1
        ahead = (2 * self.places + 1) * self.length - self.inner
        whole = torch.div(ahead, 2 * self.inner, rounding_mode="floor")
        part = (ahead - whole * 2 * self.inner).float() / (2 * self.inner).float()
        position = whole.float() + part
        start = position.floor()
        part, first = position - start, start.long()
        if clamped:
            part = torch.where((first < 0) | (first >= last), 0, part)
        near, far = (torch.minimum(place.clamp(min=0), last) for place in (first, first + 1))
        weights = [torch.round(share * WEIGHT).int() for share in (1 - part, part)]
        return near, far, weights[0], weights[1]


def lengths(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return H and W of an image (H, W, C) as whole numbers that a graph can compute with."""
    zero = torch.zeros((), dtype=torch.long, device=image.device)
    return zero + image.shape[0], zero + image.shape[1]


def rounded(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide whole numbers >= 0 and round, halves to the even number, as Python's `round`."""
    whole = numerator // denominator
    twice = 2 * (numerator - whole * denominator)
    up = (twice > denominator) | ((twice == denominator) & (whole % 2 == 1))
    return whole + up.long()


def counting(count: Tensor, step: int, most: int) -> Tensor:
    """Return 0, 1, 2 ..., `count` times `step` numbers; `count` is known when the graph runs.

    Args:
        count: from 1 to `most`.
        step: see above.
        most: see above.
    """
    if torch.jit.is_tracing():
        length: Any = count * step  # a number that the trace follows
        return torch.arange(length, device=count.device)
    number: Any = count.item()  # a symbol while exporting
    torch._check(number >= 1)
    torch._check(number <= most)
    return torch.arange(number * step, device=count.device)
