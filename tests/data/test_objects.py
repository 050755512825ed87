# SPDX-License-Identifier: Apache-2.0
"""Images and labels as Python objects: what goes in comes out, and bad items are named."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from painted import painted
from yolo.data.cache import ImageStore
from yolo.data.class_folders import CLASSES
from yolo.data.datasets import read_dataset
from yolo.data.index import build_index
from yolo.data.labels import BoxLabels
from yolo.data.loader import TrainLoader, ValLoader
from yolo.data.recipe import Augment
from yolo.data.sample import Sample
from yolo.errors import ConfigError, DataError

IMAGE = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
BOXES = [[10, 5, 30, 25], [40.5, 8, 58, 38]]
RING = np.array([[10, 5], [30, 5], [30, 25.0]])
EVERY = frozenset({"polygons", "keypoints", "corners"})


def scan(*items: Any, kinds: frozenset[str] = frozenset(), split: str = "val", **options: Any):
    """Index items; the keys of a dataset's mapping are taken from the options."""
    keys = {name: options.pop(name) for name in ("kpt_shape", "channels") if name in options}
    spec = read_dataset({"train": items, "val": items, "names": ["a", "b"], **keys})
    return build_index(spec, split, BoxLabels(kinds=kinds), **options)[0]


def test_every_kind_of_label_comes_out() -> None:
    rng = np.random.default_rng(0)
    image, labels = painted(rng, (80, 200), [0, 1])
    item = {
        "image": image,
        "classes": labels.classes,
        "boxes": labels.boxes,
        "masks": [rings[0] for rings in labels.polygons],
        "keypoints": labels.keypoints,
        "corners": labels.corners,
    }

    @dataclass
    class Item:
        image: np.ndarray
        classes: Any = None
        boxes: Any = None
        corners: Any = None

    index = scan({"image": image}, item, kinds=EVERY, kpt_shape=(4, 3))
    assert len(index.instances(0)) == 0
    found = index.instances(1)
    for kind in ("classes", "boxes", "keypoints", "corners"):
        np.testing.assert_array_equal(getattr(found, kind), getattr(labels, kind))
    assert [[r.tolist() for r in p] for p in found.polygons] == [
        [r.tolist() for r in p] for p in labels.polygons
    ]
    assert [index.path(i) for i in range(2)] == ["val[0]", "val[1]"]
    other = scan(Item(image, labels.classes, corners=labels.corners), kinds=frozenset({"corners"}))
    around = np.concatenate([labels.corners.min(1), labels.corners.max(1)], axis=1)
    np.testing.assert_array_equal(other.instances(0).boxes, around)
    plain = scan(item, kpt_shape=(4, 3)).instances(0)
    assert (plain.polygons, plain.keypoints, plain.corners) == (None, None, None)


def test_an_area_is_the_mask_s_where_there_is_one() -> None:
    item = {"image": IMAGE, "classes": [0], "boxes": BOXES[:1], "masks": [[RING, RING + 1]]}
    assert scan(item).instances(0).area.tolist() == [40]  # where one covers the other is a hole
    assert scan({**item, "masks": None}).instances(0).area.tolist() == [400]


def test_the_class_of_a_whole_image() -> None:
    kinds = frozenset({CLASSES})
    index = scan(
        {"image": IMAGE, "image_class": 1}, {"image": IMAGE, "image_class": 0}, kinds=kinds
    )
    assert [index.instances(i).classes.tolist() for i in range(2)] == [[1], [0]]
    with pytest.raises(
        DataError, match=r"^val\[0\]: image_class: expected a class id, .* image, cl"
    ):
        scan(GOOD, kinds=kinds)
    for bad, reason in ((2, "ids from 0 to 1"), (0.5, "whole"), ([1], "one class id, found .1")):
        with pytest.raises(DataError, match=rf"^val\[0\]: image_class: expected {reason}"):
            scan({"image": IMAGE, "image_class": bad}, kinds=kinds)


def test_masks_in_all_their_forms() -> None:
    mask = np.zeros((40, 60), bool)
    mask[5:25, 10:30] = True
    mask[10:14, 12:20] = False
    mask[30:33, 50:55] = True
    square = [[10, 5], [30, 5], [30, 25], [10, 25]]
    hole = [[12, 10], [20, 10], [20, 14], [12, 14]]
    for masks, rings in (
        (mask[None], 3),
        (mask[None].astype(np.uint8), 3),
        ([mask], 3),
        ([square], 1),
        ([np.array(square)], 1),
        ([[square, hole]], 2),
        (np.array([[square, hole]]), 2),
        ([[np.array(square), np.array(hole[:3])]], 2),
    ):
        item = {"image": IMAGE, "classes": [0], "masks": masks}
        found = scan(item, kinds=frozenset({"polygons"})).instances(0)
        assert len(found.polygons[0]) == rings
        assert found.boxes.tolist() == [[10, 5, 55, 33] if rings == 3 else [10, 5, 30, 25]]


def test_keypoints_with_and_without_visibility() -> None:
    item = {"image": IMAGE, "classes": [1], "boxes": BOXES[:1]}
    kinds = frozenset({"keypoints"})

    def found(points: Any, numbers: int) -> Any:
        index = scan({**item, "keypoints": points}, kinds=kinds, kpt_shape=(2, numbers))
        return index.instances(0).keypoints.tolist()

    assert found([[[1, 2], [-1, 4]]], 2) == [[[1, 2, 2], [-1, 4, 0]]]
    assert found([[[1, 2], [3, 4]]], 3) == [[[1, 2, 2], [3, 4, 2]]]
    assert found([[[1, 2, 0], [3, 4, 1]]], 3) == [[[1, 2, 0], [3, 4, 1]]]


@pytest.mark.parametrize(
    ("image", "channels", "expected"),
    [
        (IMAGE, 3, IMAGE),
        (IMAGE[..., 0], 3, np.repeat(IMAGE[..., :1], 3, 2)),
        (IMAGE[..., :1], 3, np.repeat(IMAGE[..., :1], 3, 2)),
        (np.dstack([IMAGE, IMAGE[..., 0]]), 3, IMAGE),
        (IMAGE.astype(np.uint16) * 257, 3, IMAGE),
        (Image.fromarray(IMAGE), 3, IMAGE[..., ::-1]),
        (IMAGE[:, ::-1], 3, IMAGE[:, ::-1]),
        (IMAGE[..., :1], 1, IMAGE[..., :1]),
        (np.dstack([IMAGE, IMAGE]), 6, np.dstack([IMAGE, IMAGE])),
    ],
)
def test_images_as_they_are_accepted_elsewhere(image: Any, channels: int, expected: Any) -> None:
    index = scan({"image": image}, channels=channels)
    store = ImageStore(index, (40, 60), channels=channels)
    np.testing.assert_array_equal(store.load(0), expected)
    assert not store.load(0).flags.writeable
    if isinstance(image, np.ndarray):
        assert image.flags.writeable or image.base is not None  # the user's own array stays so


class Lazy:
    """Makes an item when it is asked for, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.height = 40

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> dict[str, Any]:
        self.asked.append(i)
        return {"image": np.full((self.height, 60, 3), i, np.uint8), "classes": [], "boxes": []}


def test_lazy_images_are_read_again_unless_cached() -> None:
    items = Lazy()
    spec = read_dataset({"val": items, "names": ["a"]})
    index, _ = build_index(spec, "val", BoxLabels(), fraction=0.5)
    assert items.asked == [0, 2, 4, 6, 8]
    assert [index.path(i) for i in range(2)] == ["val[0]", "val[2]"]
    for mode, again in ((False, 2), ("ram", 1)):
        items.asked.clear()
        store = ImageStore(index, (40, 60), mode=mode, recent_bytes=1)
        assert [int(store.load(i)[0, 0, 0]) for i in (1, 2, 1)] == [2, 4, 2]
        assert items.asked.count(2) == again
    with pytest.raises(ConfigError, match=r"cache='disk' needs image files, and val\[0\] is none"):
        ImageStore(index, (40, 60), mode="disk", cache_dir="never")
    items.height = 30
    with pytest.raises(DataError, match=r"val\[2\]: expected 40x60 pixels .* found 30x60"):
        ImageStore(index, (40, 60)).load(1)


def test_an_index_of_objects_survives_spawn() -> None:
    index = scan({"image": IMAGE, "classes": [0], "boxes": BOXES[:1]})
    again = pickle.loads(pickle.dumps(index))
    np.testing.assert_array_equal(again.image(0, 3), IMAGE)
    assert again.instances(0).boxes.tolist() == index.instances(0).boxes.tolist()


GOOD: dict[str, Any] = {"image": IMAGE, "classes": [0, 1], "boxes": BOXES}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": None}, "image: expected an array .* found nothing"),
        ({"image": "a.jpg"}, "image: expected an array .* found str"),
        ({"image": IMAGE / 255}, "image: expected an image array of type uint8"),
        ({"image": IMAGE[None]}, "image: expected an image array of shape"),
        ({"image": np.dstack([IMAGE, IMAGE])}, "image: expected an image with 3 channel"),
        ({"bboxes": BOXES}, "expected the fields image, .* found 'bboxes'. Similar: 'boxes'"),
        ({"classes": None}, "classes: expected 2, one for each of boxes, found none"),
        ({"classes": ["cat", "dog"]}, r"classes: expected numbers of shape \(N\)"),
        ({"classes": [0, 0.5]}, "classes: expected whole numbers"),
        ({"classes": [0, 2]}, r"classes: expected ids from 0 to 1, .* found \[0, 2\]"),
        ({"classes": [0]}, r"boxes: expected shape \(1, 4\), found \(2, 4\)"),
        ({"boxes": None}, "boxes: expected 2, one for each of classes, found none"),
        ({"boxes": [BOXES[0], [4, 4, 2, 9]]}, r"boxes\[1\]: expected xyxy with x0 < x1"),
        ({"boxes": [BOXES[0], [60, 4, 70, 9]]}, r"boxes\[1\]: expected a box in the image of 40x"),
        ({"boxes": [BOXES[0], [0, 0, np.nan, 1]]}, "boxes: expected finite numbers"),
        ({"boxes": [[0.1, 0.1, 0.2, 0.2]] * 2}, "boxes: expected pixels, found shares"),
        ({"classes": None, "boxes": 5}, "classes: expected 1, one for each of boxes"),
        ({"masks": 5}, "masks: expected 2, one for each of classes, found 1"),
        ({"masks": [RING]}, "masks: expected 2, one for each of classes, found 1"),
        ({"masks": [RING, RING[:2]]}, r"masks\[1\]: expected a bool mask .* at least 3 points"),
        ({"masks": [RING, [RING, [1, 2]]]}, r"masks\[1\]: expected a bool mask"),
        ({"masks": [RING, []]}, r"masks\[1\]: expected an object, found no outline"),
        ({"masks": [RING, np.zeros((40, 60), bool)]}, r"masks\[1\]: .* found an empty mask"),
        ({"masks": np.ones((2, 20, 30), bool)}, r"masks\[0\]: .* shape \(40, 60\), found \(20, 30"),
        ({"corners": np.zeros((2, 4, 2))}, r"corners\[0\]: expected a box with an area"),
        ({"corners": np.zeros((2, 5))}, r"corners: expected shape \(2, 4, 2\), found \(2, 5\)"),
        ({"keypoints": np.zeros((2, 3, 3))}, r"keypoints: expected shape \(2, 2, 2 or 3\)"),
        ({"keypoints": np.zeros((2, 2, 4))}, "keypoints: expected x, y and perhaps visibility"),
        ({"keypoints": np.full((2, 2, 3), 0.5)}, "keypoints: expected visibility 0, 1 or 2"),
    ],
)
def test_bad_items_are_named(change: dict[str, Any], reason: str) -> None:
    item = {**GOOD, **change}
    kinds = frozenset({"keypoints"} & change.keys())
    with pytest.raises(DataError, match=rf"^val\[1\](: |\[\d\]: )?{reason}"):
        scan({"image": IMAGE}, item, kinds=kinds, kpt_shape=(2, 3))


@pytest.mark.parametrize(
    ("kind", "field"), [("polygons", "masks"), ("keypoints", "keypoints"), ("corners", "corners")]
)
def test_labels_that_the_task_needs(kind: str, field: str) -> None:
    with pytest.raises(
        DataError, match=rf"^val\[0\]: {field}: expected {field} of its 2 .* found image, classes"
    ):
        scan(GOOD, kinds=frozenset({kind}), kpt_shape=(2, 3))


def test_other_mistakes() -> None:
    with pytest.raises(DataError, match=r"^val\[0\]: expected a dict or a dataclass .* found tup"):
        scan((IMAGE, 0))
    with pytest.raises(DataError, match="train: no object to train on in its items"):
        scan({"image": IMAGE}, split="train")
    with pytest.raises(DataError, match="expected the key 'kpt_shape', which labels with keypoi"):
        scan({**GOOD, "keypoints": np.zeros((2, 1, 3))}, kinds=frozenset({"keypoints"}))
    single = scan({**GOOD, "classes": [7, 0]}, single_cls=True)
    assert single.class_counts().tolist() == [2]


def test_objects_go_through_the_loaders_with_every_kind_of_label() -> None:
    rng = np.random.default_rng(0)
    made = [painted(rng, (90 + 10 * i, 120), [i % 6]) for i in range(8)]
    items = [
        {
            "image": image,
            "classes": labels.classes % 2,
            "boxes": labels.boxes,
            "masks": labels.polygons,
            "keypoints": labels.keypoints,
            "corners": labels.corners,
        }
        for image, labels in made
    ]
    index = scan(*items, kinds=EVERY, kpt_shape=(4, 3))
    store = ImageStore(index, (96, 96))

    def extras(samples: Sequence[Sample], size: Any) -> dict[str, torch.Tensor]:
        kept = [[getattr(s.instances, kind) is not None for kind in EVERY] for s in samples]
        images = [len(s.instances) == 0 or all(k) for s, k in zip(samples, kept, strict=True)]
        return {"whole": torch.tensor(images)}

    gains = Augment(mixup=0.3, cutmix=0.3, copy_paste=0.5, flip_idx=(1, 0, 3, 2))
    options: dict[str, Any] = {"batch": 3, "size": (96, 96), "extras": extras}
    loader = TrainLoader(index, store, gains, workers=2, **options)
    batches = list(loader.epoch(0))
    loader.close()
    alone = list(TrainLoader(index, store, gains, **options).epoch(0))
    for one, two in zip(batches, alone, strict=True):
        assert torch.equal(one.images, two.images)
        assert bool(one.targets.extras["whole"].all())
    assert sorted(i for batch in batches for i in batch.indices) == list(range(8))
    seen: list[int] = []
    for batch in ValLoader(index, store, **options):
        for row, i in enumerate(batch.indices):
            seen.append(i)
            boxes = batch.targets.boxes[row][batch.targets.mask[row]].numpy()
            original = batch.placements[row].to_original(boxes)
            np.testing.assert_allclose(original, made[i][1].boxes, atol=1e-3)
    assert sorted(seen) == list(range(8))
