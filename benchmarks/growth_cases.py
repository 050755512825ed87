# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks.growth` measures: for each axis, work that grows with it.

A case takes a folder for files and the size on its axis, gets everything ready, and returns the
work to be measured, which can be done again and again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from yolo import TASKS, YOLO
from yolo.data.cache import ImageStore
from yolo.data.datasets import read_dataset
from yolo.data.folder import FileSource, written_whole
from yolo.data.index import LabelIndex, build_index
from yolo.data.labels import LabelledImage
from yolo.data.loader import TrainLoader, ValLoader
from yolo.data.order import BalancedOrder, EpochOrder
from yolo.data.recent import RECENT_BYTES
from yolo.data.recipe import Augment
from yolo.data.report import ScanReport
from yolo.data.shapes import write_shapes
from yolo.engine.coco_eval import Objects
from yolo.engine.image_ids import unique_image_ids
from yolo.engine.metrics import ImageRecord
from yolo.engine.nms import non_max_suppression
from yolo.nn.anchors import anchor_points
from yolo.nn.losses import Targets
from yolo.tasks.detect.metrics import DetMetrics

Work = Callable[[], Any]
Case = Callable[[Path, int], Work]

SIDE, STRIDES = 640, (8, 16, 32)
CLASSES, OBJECTS = 80, 20
"""Where an axis isn't about them."""
FOUND = 300
"""Most detections an image, as validation has it."""
SHARD = 1000
"""Images in one folder."""
DRAWN = 50
"""Different files among the images: a file system limits the links to one."""
SCAN = FileSource.scan

RECENT_MIB = RECENT_BYTES >> 20
"""Most that a loader keeps, for each of its processes, of the images that were decoded last."""

DETECT = TASKS["detect"]


# ---------------------------------------------------------------------- images


def linked_set(folder: Path, count: int) -> Path:
    """Make a dataset of many images, which are hard links to a few drawn ones; return its YAML."""
    drawn = write_shapes(folder / "drawn", train=DRAWN, val=8).parent
    kinds = {
        kind: sorted((drawn / kind / "train").iterdir()) for kind in ("labels", "images")
    }  # labels first: a shard whose images are there is whole
    shards = [f"{number:04d}" for number in range(-(-count // SHARD))]
    for shard in shards:
        for kind, files in kinds.items():
            target = folder / kind / "train" / shard
            if not target.is_dir():
                with written_whole(target) as waiting:
                    for i in range(SHARD):
                        file = files[i % DRAWN]
                        os.link(file, waiting / f"{shard}{i:04d}{file.suffix}")
    yaml = folder / f"{count}.yaml"
    listed = "".join(f"\n- images/train/{shard}" for shard in shards)
    names = (drawn / "data.yaml").read_text().partition("names:")[2]
    yaml.write_text(f"train:{listed}\nval: drawn/images/val\nnames:{names}")
    return yaml


def drawn_scan(source: FileSource, report: ScanReport, workers: int) -> Iterator[LabelledImage]:
    """Stand for the first scan of a linked set: what is drawn is read once, not at each link."""
    seen: dict[str, LabelledImage] = {}
    kept = FileSource(source.paths[:DRAWN], source.stats[:DRAWN], [], source.label)
    for image in SCAN(kept, report, workers):
        seen[Path(image.path).stem[4:]] = image
    for path in source.paths:
        image = seen[f"{int(path[-8:-4]) % DRAWN:04d}"]
        yield LabelledImage(path, image.shape, image.instances)


def cache_of(folder: Path, count: int) -> Path:
    """Return the folder of a linked set's label cache."""
    return folder / f"cache-{count}"


def opened(folder: Path, count: int) -> LabelIndex:
    """Return the index of a linked set as it lies in the cache."""
    found = sorted(cache_of(folder, count).glob("labels-*"))
    return LabelIndex.open(found[0]) if found else compared(folder, count)


def compared(folder: Path, count: int) -> LabelIndex:
    """Return the index of a linked set, from the cache if that fits the files."""
    data = read_dataset(linked_set(folder, count))
    with patch.object(FileSource, "scan", drawn_scan):
        return build_index(data, "train", DETECT.label_format, cache_of(folder, count))[0]


def warm_cache(folder: Path, count: int) -> Work:
    """List the files, compare them with the cache, and open it."""
    opened(folder, count)
    return partial(compared, folder, count)


class Begun(Exception):  # noqa: N818 - a training that has begun is no error
    """The first step is about to be taken."""


def train_start(folder: Path, count: int) -> Work:
    """From `train()` to the first step, network, batch and pictures of the labels included."""
    opened(folder, count)

    def stop(_: Any) -> None:
        raise Begun

    def work() -> None:
        model = YOLO("yolov8n.yaml")
        model.add_callback("on_train_batch_start", stop)
        try:
            model.train(
                data=str(linked_set(folder, count)), cache_dir=cache_of(folder, count), imgsz=320,
                project=folder / "runs", exist_ok=True, device="cpu", workers=0, verbose=False,
            )  # fmt: skip
        except Begun:
            return

    return work


def train_loader(index: LabelIndex, side: int, batch: int = 16, workers: int = 0) -> TrainLoader:
    """Return a loader with the usual augmentation."""
    size = (side, side)
    store = ImageStore(index, size)
    return TrainLoader(index, store, Augment(), batch=batch, size=size, workers=workers)


def first_batch(folder: Path, count: int) -> Work:
    """Make a loader, draw the order of its first epoch, and make the first batch."""
    index = opened(folder, count)
    return lambda: next(iter(train_loader(index, 320).epoch(0)))


def epoch_order(folder: Path, count: int) -> Work:
    """Draw the order of an epoch."""
    return lambda: EpochOrder(count, 0).places(0)


def balanced_order(folder: Path, count: int) -> Work:
    """Draw the order of an epoch in which all classes come equally often."""
    index = opened(folder, count)
    return lambda: BalancedOrder(count, 0, *index.objects()).places(0)


def validation_start(folder: Path, count: int) -> Work:
    """Make a validation's loader, and the ids of its images."""
    index = opened(folder, count)

    def work() -> None:
        ValLoader(index, ImageStore(index, (320, 320)), batch=16, size=(320, 320))
        index.class_counts()
        every = range(count)
        unique_image_ids([index.image_id(i) for i in every], [index.path(i) for i in every])

    return work


# ---------------------------------------------------------------------- objects and classes


def random_boxes(count: int, seed: int = 0) -> np.ndarray:
    """Return (count, 4) boxes_xyxy within a canvas of SIDE pixels."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.9 * SIDE, (count, 2))
    high = low + rng.uniform(0.02 * SIDE, 0.1 * SIDE, (count, 2))
    return np.concatenate([low, high.clip(0, SIDE)], 1)


def loss(objects: int, classes: int, **options: Any) -> Work:
    """Assign, compare, and go backward to a head's outputs, for two images."""
    cells = [(SIDE // stride, SIDE // stride) for stride in STRIDES]
    points, strides = anchor_points(cells, STRIDES)
    noise = torch.Generator().manual_seed(0)
    boxes = torch.randn(2, 64, len(points), generator=noise).requires_grad_()
    scores = (torch.randn(2, classes, len(points), generator=noise) - 4).requires_grad_()
    raw = {"boxes": boxes, "scores": scores, "points": points, "strides": strides}
    labels = torch.randint(classes, (2, objects), generator=noise)
    truth = np.stack([random_boxes(objects, seed) for seed in (0, 1)]).astype(np.float32)
    mask = torch.ones_like(labels, dtype=torch.bool)
    targets = Targets(labels, torch.from_numpy(truth), mask, size=(SIDE, SIDE))
    criterion = DETECT.criterion(classes, STRIDES, **options)
    return lambda: torch.autograd.grad(criterion(raw, targets).total, [boxes, scores])


def suppression(objects: int, classes: int) -> Work:
    """Suppress four candidates an object, as validation does."""
    rng = np.random.default_rng(0)
    anchors = sum((SIDE // stride) ** 2 for stride in STRIDES)
    places = rng.permutation(anchors)[: 4 * objects]
    xyxy = np.tile(random_boxes(objects), (4, 1))[: len(places)]
    xyxy = xyxy + rng.normal(0, 3, xyxy.shape)
    pred = np.zeros((1, 4 + classes, anchors), np.float32)
    pred[0, :2, places] = (xyxy[:, :2] + xyxy[:, 2:]) / 2
    pred[0, 2:4, places] = np.abs(xyxy[:, 2:] - xyxy[:, :2])
    labels = np.tile(rng.integers(0, classes, objects), 4)[: len(places)]
    pred[0, 4 + labels, places] = rng.uniform(0.01, 1, len(places))
    options = {"conf": 0.001, "iou": 0.7, "nc": classes, "max_det": FOUND, "multi_label": True}
    return lambda: non_max_suppression(pred, **options)


def scores(objects: int, classes: int, images: int = 20) -> Work:
    """Score images, of which as many objects were found as validation lets through."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(images):
        boxes, labels = random_boxes(objects, number), rng.integers(0, classes, objects)
        most = min(objects, FOUND)
        found = boxes[:most] + rng.normal(0, 3, (most, 4))
        sides = boxes[:, 2:] - boxes[:, :2]
        truth = Objects(labels, boxes, ignore=np.zeros(objects, bool), area=sides.prod(1))
        guess = Objects.found(labels[:most], found, rng.uniform(0, 1, most))
        records.append(ImageRecord(number, number, f"{number}", (SIDE, SIDE), guess, truth))

    def work() -> None:
        metrics = DetMetrics({i: str(i) for i in range(classes)})
        metrics.records = list(records)
        metrics.process()

    return work


def head(classes: int) -> Work:
    """Run a head on given maps, and decode what it says."""
    network = DETECT.model("yolov8n.yaml", nc=classes).eval()
    noise = torch.Generator().manual_seed(0)
    sides = zip((64, 128, 256), STRIDES, strict=True)
    maps = [torch.randn(1, c, SIDE // s, SIDE // s, generator=noise) for c, s in sides]

    @torch.no_grad()
    def work() -> None:
        network.head.decode(network.head(maps))

    return work


# ---------------------------------------------------------------------- image size


def augmentation(side: int, objects: int) -> Work:
    """Make eight mosaics of images that are decoded already."""
    rng = np.random.default_rng(0)
    shape = (720, 720, 3)  # no side that is measured: an image that fits is used as it is
    items = [
        {"image": rng.integers(0, 256, shape, np.uint8), "boxes": random_boxes(objects, seed),
         "classes": rng.integers(0, CLASSES, objects)} for seed in range(8)
    ]  # fmt: skip
    names = [str(i) for i in range(CLASSES)]
    data = read_dataset({"train": items, "val": items, "names": names})
    loader = train_loader(build_index(data, "train", DETECT.label_format)[0], side, 8)
    return lambda: list(loader.epoch(0))


def forward(side: int) -> Work:
    """Run a network on one image, and decode what it says."""
    network = DETECT.model("yolov8n.yaml").eval()
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def work() -> None:
        network(image)

    return work


CASES: dict[str, dict[str, Case]] = {
    "images": {
        "warm cache": warm_cache,
        "train() to the first step": train_start,
        "loader and first batch": first_batch,
        "order of an epoch": epoch_order,
        "order, balanced classes": balanced_order,
        "validation's loader and ids": validation_start,
    },
    "objects": {
        **{
            f"loss, {name}": lambda _, n, name=name: loss(n, CLASSES, assigner=name)
            for name in DETECT.criterion.assigners
        },
        "NMS": lambda _, n: suppression(n, CLASSES),
        "metrics, 20 images": lambda _, n: scores(n, CLASSES),
        "augmentation, 8 images": lambda _, n: augmentation(320, n),
    },
    "classes": {
        "head": lambda _, n: head(n),
        "loss": lambda _, n: loss(OBJECTS, n),
        "NMS": lambda _, n: suppression(FOUND, n),
        "metrics, 20 images": lambda _, n: scores(FOUND, n),
    },
    "sides": {
        "forward": lambda _, n: forward(n),
        "augmentation, 8 images": lambda _, n: augmentation(n, OBJECTS),
    },
}
"""Axis -> what is measured -> how it is made ready."""
