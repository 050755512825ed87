# SPDX-License-Identifier: Apache-2.0
"""Images that show their labels: what a transform did to the pixels can be read back from them.

Each object is a rectangle in a colour of its own, whole, with a hole, or in two parts, labelled by
its outline, box, oriented box and four keypoints (just within its corners). A grey background is
far from every object's colour.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from yolo.data.letterbox import fit_shape, resize
from yolo.data.sample import Instances

BACKGROUND = 60
FIGURES = ("whole", "hole", "parts")


@dataclass
class Index:
    """A list of images on disk, or in memory where `paths` is empty."""

    labels: list[Instances]
    shapes: np.ndarray
    paths: list[str] = field(default_factory=list)
    kpt_shape: tuple[int, int] | None = None
    num_classes: int = 6

    def __len__(self):
        return len(self.labels)

    def path(self, i):
        return self.paths[i] if self.paths else f"made/{i}.png"

    def image(self, i, channels):
        return None

    def shape(self, i):
        return tuple(self.shapes[i].tolist())

    def instances(self, i):
        return self.labels[i].select(np.arange(len(self.labels[i])))


class MemoryStore:
    """Serves images from memory, as `ImageStore` does from files."""

    def __init__(self, images, labels, size):
        self.images = images
        self.index = Index(labels, np.array([im.shape[:2] for im in images]))
        self.size = size
        self.channels = images[0].shape[2]

    def load(self, i):
        image = self.images[i]
        return resize(image, fit_shape(image.shape[:2], self.size))

    def original_shape(self, i):
        return self.images[i].shape[:2]

    def loaded_shape(self, i):
        return fit_shape(self.images[i].shape[:2], self.size)

    def instances(self, i):
        return self.index.instances(i)

    def path(self, i):
        return self.index.path(i)


def colour(number):
    """Return a strong BGR colour for object `number`, from 0 to 5."""
    levels = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)]
    return np.array(levels[number], dtype=np.uint8)


def quadrilateral(rng, cx, cy, radius, upright=False):
    """Return (4, 2) corners of a rectangle around a centre, rotated unless `upright`."""
    angle, share = rng.uniform(0, np.pi), rng.uniform(0.6, 1.0)
    angle *= not upright
    along = np.array([np.cos(angle), np.sin(angle)]) * radius
    across = np.array([-np.sin(angle), np.cos(angle)]) * radius * share
    return np.array([cx, cy]) + np.stack(
        [-along - across, along - across, along + across, -along + across]
    )


def within(ring, shape):
    """Return the pixels (h, w) bool whose middles lie in a ring."""
    height, width = shape
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), dtype=bool)
    for (ax, ay), (bx, by) in zip(ring, np.roll(ring, -1, 0), strict=True):
        crosses = (ay > y) != (by > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            at = ax + (y - ay) / (by - ay) * (bx - ax)
        inside ^= crosses & (x < at)
    return inside


def fill(image, ring, value):
    """Fill a ring without antialiasing."""
    image[within(ring, image.shape[:2])] = value


def rings_of(ring, figure):
    """Return the rings of a figure that fills a rectangle (4, 2) to its sides."""
    if figure == "hole":
        return [ring, ring.mean(0) + 0.45 * (ring - ring.mean(0))]
    if figure == "parts":
        start, end = ring[[0, 3]], ring[[1, 2]]
        low, high = start + 0.35 * (end - start), start + 0.65 * (end - start)
        return [np.stack([start[0], low[0], low[1], start[1]]),
                np.stack([high[0], end[0], end[1], high[1]])]  # fmt: skip
    return [ring]


def painted(
    rng, shape, numbers, kinds=("polygons", "keypoints", "corners"), upright=False, figure="whole"
):
    """Draw one image with one object a number; return it with its labels."""
    image = np.full((*shape, 3), BACKGROUND, dtype=np.uint8)
    rings = []
    cells = len(numbers)
    for place, number in enumerate(numbers):
        width = shape[1] / cells
        radius = min(width, shape[0]) * rng.uniform(0.2, 0.32)
        cx = (place + 0.5) * width
        cy = rng.uniform(radius * 1.5, shape[0] - radius * 1.5)
        ring = quadrilateral(rng, cx, cy, radius, upright)
        filled = np.zeros(shape, dtype=bool)
        for part in rings_of(ring, figure):
            filled ^= within(part, shape)
        image[filled] = colour(number)
        rings.append(ring)
    rings = np.array(rings)
    labels = Instances.from_boxes(numbers, np.concatenate([rings.min(1), rings.max(1)], axis=1))
    if "polygons" in kinds:
        labels.polygons = [[part.copy() for part in rings_of(ring, figure)] for ring in rings]
    if "keypoints" in kinds:
        middles = rings.mean(1, keepdims=True)
        inside = middles + 0.8 * (rings - middles)
        labels.keypoints = np.concatenate([inside, np.full((cells, 4, 1), 2.0)], axis=2)
    if "corners" in kinds:
        labels.corners = rings.copy()
    return image, labels


def seen(image, number, tolerance=90):
    """Return the mask of pixels that show object `number` (BGR image)."""
    distance = np.abs(image.astype(int) - colour(number)).max(-1)
    return distance < tolerance


def bounds(mask):
    """Return the box (4,) around the true pixels of a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=float)


def write(folder, images):
    """Store images as PNG files; return their names."""
    paths = []
    for i, image in enumerate(images):
        paths.append(str(folder / f"{i}.png"))
        cv2.imwrite(paths[-1], image)
    return paths
