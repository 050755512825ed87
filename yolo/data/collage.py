# SPDX-License-Identifier: Apache-2.0
"""Augmented images put together where they are used: workers send pieces, the device paints them.

What is drawn and what becomes of the labels is the same as in `transforms`; only the pixels are
made elsewhere. A worker copies the rectangles that a batch shows out of its (cached) images, says
with a matrix where each goes, and is done. The device finds for every pixel the piece that shows
there, samples that, and shifts the colours.

Pieces have any size, so nothing is padded: their pixels stand in one row and are looked up by
number. No shape depends on values, so the host never waits for the device.

The pixels differ from those of OpenCV by its roundings alone: of weights and sums, which is 1
level, and, where a build of it rounds the places of a warp to 1/32 of a pixel, up to a 64th of the
step between two neighbours along each axis. At the rim of a piece that is warped, OpenCV also
paints pixels whose middle lies up to a pixel outside of it.

Shape letters: B images, K most pieces of one, N pixels of all pieces, h w of an image, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from yolo.data.cache import ImageStore
from yolo.data.letterbox import FILL
from yolo.data.pixels import HUE_STEPS, colour_tables
from yolo.data.recipe import Augment, Recipe
from yolo.data.transforms import require_kind
from yolo.errors import ConfigError

Size = tuple[int, int]

AT_ONCE = 16
"""Images painted at once, which bounds the memory: some 150 bytes a pixel while they are."""

_BITS = 12  # of the fractions in OpenCV's 8-bit conversion to HSV


@dataclass(slots=True)
class Collage:
    """How B images are made of pieces.

    Attributes:
        size: (h, w) of the images.
        maps: (B, K, 3, 3) float32 map from the images' points to each piece's; 0 for no piece.
            Where several pieces have a point, the last one shows.
        pieces: (B, K, 3) int64 number of a piece's first pixel, its width and its height.
        colours: (B, 256, 3) uint8 tables of hue, saturation and value, or None.
        swapped: (B,) bool, images with their colours in the other order.
    """

    size: Size
    maps: Tensor
    pieces: Tensor
    colours: Tensor | None
    swapped: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Collage:
        """Return a copy with `change` applied to every tensor."""
        colours = None if self.colours is None else change(self.colours)
        pieces, swapped = change(self.pieces), change(self.swapped)
        return Collage(self.size, change(self.maps), pieces, colours, swapped)

    def paint(self, pixels: Tensor) -> Tensor:
        """Put the pieces together.

        Args:
            pixels: (N, C) uint8 of all pieces, three channels as BGR, where the other tensors are.

        Returns:
            (B, h, w, C) uint8, three channels as RGB.
        """
        images = pixels.new_empty((len(self.maps), *self.size, pixels.shape[1]))
        for start in range(0, len(images), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            painted = _painted(pixels, self.maps[some], self.pieces[some], self.size)
            if painted.shape[-1] == 3:
                if self.colours is None:
                    painted = painted.flip(-1)
                else:
                    painted = shift_colours(painted, self.colours[some])
                swapped = self.swapped[some, None, None, None]
                painted = torch.where(swapped, painted.flip(-1), painted)
            images[some] = painted
        return images


def require_paintable(augment: Augment, dtype: np.dtype) -> None:
    """Refuse what isn't made of pieces.

    Raises:
        ConfigError: naming the option, or the images.
    """
    for name in ("mixup", "cutmix", "copy_paste", "custom"):
        if value := getattr(augment, name):
            option = "augmentations" if name == "custom" else name
            raise ConfigError(
                f"augment_on='device': expected no {option}, found {value!r:.60}; leave it out, or "
                "use augment_on='cpu'"
            )
    if dtype != np.uint8:
        text = f"augment_on='device': expected images of 8 bits, found {dtype}"
        raise ConfigError(f"{text}; use augment_on='cpu'")


def pack(recipes: Sequence[Recipe], store: ImageStore, size: Size) -> tuple[np.ndarray, Collage]:
    """Cut out what the images of some recipes show.

    Args:
        recipes: of one scene each.
        store: loads the images.
        size: (h, w) of the images to be made.

    Returns:
        The pixels of the pieces, (N, C) uint8, and how to put them together.

    Raises:
        DataError: if an image can't be read, or is of another kind than the others.
    """
    tiles = [recipe.scene.tiles for recipe in recipes]
    most = max(map(len, tiles), default=0) or 1
    maps = np.zeros((len(recipes), most, 3, 3), np.float32)
    pieces = np.tile([0, 1, 1], (len(recipes), most, 1))
    crops = [tile.crop for some in tiles for tile in some]
    count = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in crops)
    pixels = np.empty((max(count, 1), store.channels), np.uint8)
    first = 0
    for i, some in enumerate(tiles):
        for k, tile in enumerate(some):
            x0, y0, x1, y1 = tile.crop
            width, height = x1 - x0, y1 - y0
            piece = pixels[first : first + width * height].reshape(height, width, -1)
            image = store.load(tile.index)
            require_kind(store.path, tile.index, image, piece)
            piece[...] = image[y0:y1, x0:x1]
            from_piece = tile.matrix @ np.array([[1, 0, x0], [0, 1, y0], [0, 0, 1.0]])
            maps[i, k] = np.linalg.inv(from_piece)
            pieces[i, k] = first, width, height
            first += width * height
    tables = [colour_tables(recipe.hsv) for recipe in recipes if recipe.hsv is not None]
    colours = torch.from_numpy(np.concatenate(tables)) if tables else None
    swapped = torch.tensor([recipe.swap_channels for recipe in recipes], dtype=torch.bool)
    placed = torch.from_numpy(maps), torch.from_numpy(pieces)
    return pixels, Collage(size, *placed, colours, swapped)


def _painted(pixels: Tensor, maps: Tensor, pieces: Tensor, size: Size) -> Tensor:
    """Return the images of some maps and pieces, (B, h, w, C) uint8, grey where no piece is."""
    x, y, number = _located(maps, pieces, size)
    shown = number.clamp_min(0).flatten(1)[..., None].expand(-1, -1, 3)
    first, width, height = pieces.gather(1, shown).unflatten(1, size).unbind(-1)
    # A piece's own border goes on beyond the middles of its outer pixels.
    x = torch.minimum((x - 0.5).clamp_min(0), width - 1)
    y = torch.minimum((y - 0.5).clamp_min(0), height - 1)
    left, top = x.long(), y.long()
    right, bottom = torch.minimum(left + 1, width - 1), torch.minimum(top + 1, height - 1)
    across, down = (x - left)[..., None], (y - top)[..., None]

    def row_of(line: Tensor) -> Tensor:
        start = first + line * width
        return torch.lerp(pixels[start + left].float(), pixels[start + right].float(), across)

    colours = torch.lerp(row_of(top), row_of(bottom), down) + 0.5  # what follows rounds down
    return colours.masked_fill_(number[..., None] < 0, FILL).to(torch.uint8)


def _located(maps: Tensor, pieces: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Find what shows at the middle of each pixel.

    Returns:
        x and y in the piece, (B, h, w) float32, and the piece's number, -1 where there is none.
    """
    x = torch.arange(size[1], device=maps.device) + 0.5
    y = torch.arange(size[0], device=maps.device)[:, None] + 0.5
    number = torch.full((len(maps), *size), -1, device=maps.device)
    at_x = at_y = torch.zeros(number.shape, device=maps.device)
    for k in range(maps.shape[1]):
        rows = maps[:, k, :, :, None, None].unbind(1)
        u, v, depth = (row[:, 0] * x + row[:, 1] * y + row[:, 2] for row in rows)
        u, v = u / depth, v / depth
        width, height = (pieces[:, k, side, None, None] for side in (1, 2))
        # Behind the viewer, the depth is negative; it is 0 where there is no piece.
        shows = (depth > 0) & (u >= 0) & (v >= 0) & (u < width) & (v < height)
        at_x, at_y = torch.where(shows, u, at_x), torch.where(shows, v, at_y)
        number.masked_fill_(shows, k)
    return at_x, at_y, number


def shift_colours(bgr: Tensor, tables: Tensor) -> Tensor:
    """Shift colours as `pixels.finish_colour` does, with the same 8 bits in between.

    Args:
        bgr: (B, h, w, 3) uint8.
        tables: (B, 256, 3) uint8, see `pixels.colour_tables`.

    Returns:
        (B, h, w, 3) uint8 RGB.

    Source: OpenCV's documentation of cvtColor, RGB <-> HSV; the fractions are those of its 8-bit
        code, so that hue and saturation are the same whole numbers, and it rounds down at the end.
    """
    blue, green, red = bgr.long().unbind(-1)
    value = torch.maximum(torch.maximum(blue, green), red)
    spread = value - torch.minimum(torch.minimum(blue, green), red)
    levels = torch.arange(256, device=bgr.device).clamp_min(1)
    per_value = ((255 << _BITS) / levels).round().long()
    per_spread = ((HUE_STEPS << _BITS) / (6 * levels)).round().long()
    half = 1 << (_BITS - 1)
    saturation = (spread * per_value[value] + half) >> _BITS
    hue = torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    hue = torch.where(value == red, green - blue, hue)
    hue = (hue * per_spread[spread] + half) >> _BITS
    hue += HUE_STEPS * (hue < 0)
    planes = enumerate((hue, saturation, value))
    h, s, v = (
        tables[..., i].gather(1, plane.flatten(1)).view(plane.shape).float() for i, plane in planes
    )
    sixth, colourful = h * (6 / HUE_STEPS), v * s / 255

    def channel(turn: int) -> Tensor:
        along = (sixth + turn) % 6
        return v - colourful * torch.minimum(along, 4 - along).clamp(0, 1)

    return torch.stack([channel(turn) for turn in (5, 3, 1)], -1).to(torch.uint8)
