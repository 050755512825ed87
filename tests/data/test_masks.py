# SPDX-License-Identifier: Apache-2.0
"""Rings, pixels and run lengths: every way there and back, to the pixel."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from faster_coco_eval import mask as coco
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from yolo.data.cache import ImageStore
from yolo.data.datasets import read_dataset
from yolo.data.index import LabelIndex, build_index
from yolo.data.labels import BoxLabels
from yolo.data.loader import TrainLoader
from yolo.data.masks import (
    coco_polygon,
    decode_rle,
    encode_rle,
    fill_polygons,
    joined_ring,
    mask_rings,
    polygon_rle,
    run_lengths,
)
from yolo.data.recipe import Augment
from yolo.data.report import ScanReport

SQUARE = np.array([[2, 1], [6, 1], [6, 4], [2, 4.0]])


def filled(polygon, size, ratio=1.0):
    ((top, left, window),) = fill_polygons([polygon], size, ratio)
    whole = np.zeros(size, np.uint8)
    whole[top : top + window.shape[0], left : left + window.shape[1]] = window
    return whole


def random_mask(seed, most=22):
    """Speckles, or blots with holes and parts that touch at corners and at the border."""
    rng = np.random.default_rng(seed)
    mask = (rng.random(rng.integers(1, most, 2)) < rng.random()).astype(np.uint8)
    return np.kron(mask, np.ones(rng.integers(1, 4, 2), np.uint8))


def random_rings(rng, count, low=-5, high=45):
    return [rng.uniform(low, high, (rng.integers(3, 9), 2)) for _ in range(count)]


masks = st.integers(0, 2**32 - 1).map(random_mask)


@settings(max_examples=150, deadline=None)
@given(mask=masks)
def test_tracing_and_filling_give_the_pixels_back(mask):
    rings = mask_rings(mask)
    assert np.array_equal(filled(rings, mask.shape), mask)
    assert all((ring == np.round(ring)).all() for ring in rings)
    if rings:
        assert np.array_equal(filled([joined_ring(rings)], mask.shape), mask)
        assert np.array_equal(coco.decode(polygon_rle(rings, mask.shape)), mask)


@settings(max_examples=100, deadline=None)
@given(mask=masks, top=st.integers(0, 5), left=st.integers(0, 5))
def test_run_lengths_are_those_of_the_coco_api(mask, top, left):
    whole = np.pad(mask, ((top, 3), (left, 2)))
    packed = coco.encode(np.asfortranarray(whole))
    assert encode_rle(mask.astype(bool), top, left, whole.shape) == packed
    assert np.array_equal(decode_rle(packed), whole)
    assert np.array_equal(decode_rle({**packed, "counts": packed["counts"].decode()}), whole)
    plain = {"size": list(whole.shape), "counts": run_lengths(packed).tolist()}
    assert np.array_equal(decode_rle(plain), whole)


def test_a_pixel_belongs_to_what_holds_its_middle():
    expected = np.zeros((6, 8), np.uint8)
    expected[1:4, 2:6] = 1
    for shift in (-0.4, 0.0, 0.4):
        assert np.array_equal(filled([SQUARE + shift], (6, 8)), expected)
    assert np.array_equal(filled([SQUARE[::-1]], (6, 8)), expected)
    hole = np.array([[3, 2], [5, 2], [5, 3], [3, 3.0]])
    expected[2, 3:5] = 0
    assert np.array_equal(filled([SQUARE, hole], (6, 8)), expected)
    assert np.array_equal(filled([np.concatenate([SQUARE, SQUARE[:1], hole, hole[:1]])], (6, 8)),
                          expected)  # fmt: skip


def test_filling_at_a_ratio_takes_the_middles_of_blocks():
    rng = np.random.default_rng(0)
    for _ in range(20):
        rings = random_rings(rng, 2)
        fine = filled(rings, (120, 120), 1 / 3)  # each pixel has a 3 x 3 of its own
        assert np.array_equal(filled(rings, (40, 40)), fine[1::3, 1::3])


def test_filling_cuts_at_the_canvas_and_takes_many_at_once():
    rng = np.random.default_rng(1)
    polygons = [random_rings(rng, n) for n in (1, 0, 3, 2)] + [[SQUARE - 99]]
    for polygon, (top, left, window) in zip(
        polygons, fill_polygons(polygons, (30, 41)), strict=True
    ):
        large = filled([ring + 10 for ring in polygon], (60, 60))[10:40, 10:51]
        whole = np.zeros((30, 41), np.uint8)
        whole[top : top + window.shape[0], left : left + window.shape[1]] = window
        assert np.array_equal(whole, large)
    assert list(fill_polygons([], (4, 4))) == []


def test_joining_is_the_even_odd_rule_for_the_coco_api_too():
    rng = np.random.default_rng(2)
    for _ in range(60):
        rings = random_rings(rng, int(rng.integers(1, 5)))
        each = [coco.decode(coco.frPyObjects([r.ravel().tolist()], 40, 41)[0]) for r in rings]
        joined = coco.decode(polygon_rle(rings, (40, 41)))
        assert np.array_equal(joined, np.bitwise_xor.reduce(each))
    assert coco.area(polygon_rle([], (5, 6))) == 0


def test_parts_of_a_coco_annotation_are_a_union():
    rng = np.random.default_rng(3)
    kept = traced = 0
    for _ in range(60):
        parts = [ring.ravel().tolist() for ring in random_rings(rng, 2, 0, 30)]
        parts[1] = (np.array(parts[1]) + rng.choice([0, 40])).tolist()
        union = coco.merge(coco.frPyObjects(parts, 80, 80))
        rings = coco_polygon(parts, (80, 80))
        assert polygon_rle(rings, (80, 80)) == union
        if [r.ravel().tolist() for r in rings] == parts:
            kept += 1
        else:  # the pixels that COCO scores with are those to learn, too
            assert np.array_equal(filled(rings, (80, 80)), coco.decode(union))
            traced += 1
    assert kept > 10
    assert traced > 10


def test_run_lengths_of_coco_become_rings():
    mask = random_mask(5)
    packed = coco.encode(np.asfortranarray(mask))
    rings = coco_polygon({**packed, "counts": packed["counts"].decode()}, mask.shape)
    assert np.array_equal(filled(rings, mask.shape), mask)
    assert mask_rings(np.zeros((3, 4))) == []


@pytest.mark.parametrize(
    "counts", ["", "x", "\x00", "ooo", "é", [1], [-1, 13], [2**62, 2**62, 2**63 - 1], "P" * 99]
)
def test_run_lengths_that_do_not_fit_are_refused(counts):
    with pytest.raises(ValueError, match="add up to 3 x 4 = 12 pixels"):
        decode_rle({"size": [3, 4], "counts": counts})


SHAPE = (160, 240)
KINDS = frozenset({"polygons", "corners"})


def blobs(seed: int, count: int = 3) -> np.ndarray:
    """Return (count, h, w) masks side by side, each with a hole and an island."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    masks = []
    for i in range(count):
        cx, cy = SHAPE[1] / count * (i + 0.5), SHAPE[0] * 0.45 + rng.uniform(-9, 9)
        away = np.hypot((x - cx) / rng.uniform(0.7, 1.0), y - cy)
        island = (abs(x - cx) < 20) & (abs(y - SHAPE[0] + 14) < 8)
        masks.append(((away < 34) & (away > 12)) | island)
    return np.array(masks)


def write(root: Path, name: str, masks: Any, shape: tuple[int, int] = SHAPE) -> Path:
    """Write an image that shows its masks, and these as a PNG of label values."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    values, shown = np.zeros(shape, np.uint16), np.zeros(shape, bool)
    for value, mask in masks:
        values[mask], shown = value, shown | mask
    image = np.where(shown, 255, 0).astype(np.uint8)
    cv2.imwrite(str(root / f"images/{name}.png"), image)
    cv2.imwrite(str(root / f"labels/{name}.png"), values)
    return root / f"labels/{name}.png"


def scan(root: Path, kinds: frozenset[str] = KINDS, **keys: Any) -> tuple[LabelIndex, ScanReport]:
    entries = {"path": str(root), "train": "images", "val": "images", "names": ["a", "b"], **keys}
    return build_index(read_dataset(entries), "val", BoxLabels(kinds=kinds), root / "cache")


def test_objects_are_their_pixels(tmp_path: Path) -> None:
    masks = blobs(0)
    file = write(tmp_path, "x", [(1001, masks[0]), (7, masks[1]), (1500, masks[2])])
    index, report = scan(tmp_path)
    found = index.instances(0)
    assert found.classes.tolist() == [0, 1, 1]
    assert report.total == 0
    order = [1, 0, 2]  # of rising values
    assert found.polygons is not None
    for i, (top, left, window) in enumerate(fill_polygons(found.polygons, SHAPE)):
        drawn = np.zeros(SHAPE, bool)
        drawn[top : top + window.shape[0], left : left + window.shape[1]] = window
        np.testing.assert_array_equal(drawn, masks[order[i]])
        rows, columns = np.nonzero(drawn)
        around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert found.boxes[i].tolist() == around
        assert found.area[i] == drawn.sum()
    assert found.corners is not None
    assert found.corners.shape == (3, 4, 2)
    boxes, _ = scan(tmp_path, frozenset())
    assert (boxes.instances(0).polygons, len(boxes.instances(0))) == (None, 3)
    assert scan(tmp_path)[1].cached
    os.utime(file, ns=(5, 5))
    assert not scan(tmp_path)[1].cached


def test_a_palette_and_a_text_file(tmp_path: Path) -> None:
    mask = blobs(1)[0]
    file = write(tmp_path, "x", [(3, mask)])
    colours = Image.fromarray(np.where(mask, 9, 0).astype(np.uint8)).convert("P")
    colours.putpalette([200] * 768)
    colours.save(file)
    assert scan(tmp_path)[0].instances(0).area.tolist() == [mask.sum()]
    (tmp_path / "labels/x.txt").write_text("1 .5 .5 .5 .5")  # where there is one, it counts
    assert scan(tmp_path, frozenset())[0].instances(0).classes.tolist() == [1]


def test_a_picture_beside_the_image_is_no_label(tmp_path: Path) -> None:
    write(tmp_path, "x", [(1, blobs(1)[0])])
    (tmp_path / "images").rename(tmp_path / "plain")
    entries = {"path": str(tmp_path), "train": "plain", "val": "plain", "names": ["a"]}
    assert len(build_index(read_dataset(entries), "val", BoxLabels())[0].instances(0)) == 0


@pytest.mark.parametrize(
    ("pixels", "kinds", "reason"),
    [
        (np.ones((8, 8), np.uint8), KINDS, "160x240 pixels .* like the image, found uint8 of sh"),
        (np.ones((*SHAPE, 3), np.uint8), KINDS, r"like the image, found uint8 of shape \(160, 240"),
        (np.full(SHAPE, 2000, np.uint16), KINDS, r"expected values below 2 \* 1000 .*, found 2000"),
        (np.ones(SHAPE, np.uint8), frozenset({"keypoints"}), "expected a text file with keypoints"),
        (None, KINDS, "the mask can't be read: cannot identify"),
    ],
)
def test_bad_masks_are_named(tmp_path: Path, pixels: Any, kinds: Any, reason: str) -> None:
    file = write(tmp_path, "x", [])
    if pixels is None:
        file.write_bytes(b"\x89PNG junk")
    else:
        cv2.imwrite(str(file), pixels)
    index, report = scan(tmp_path, kinds, **({"kpt_shape": [1, 3]} if "keypoints" in kinds else {}))
    assert len(index.instances(0)) == 0
    assert report.problems[0].file == str(file)
    assert re.search(reason, report.problems[0].reason)


def as_rows(root: Path, seeds: range) -> Any:
    for seed in seeds:
        rings = [joined_ring(mask_rings(mask)) / SHAPE[::-1] for mask in blobs(seed)]
        text = "".join(f"0 {' '.join(f'{x:.6f}' for x in ring.ravel())}\n" for ring in rings)
        (root / f"labels/{seed}.png").unlink()
        (root / f"labels/{seed}.txt").write_text(text)
    return {"path": str(root), "train": "images", "val": "images", "names": ["a"]}


def as_coco(root: Path, seeds: range) -> Any:
    import json

    images = [{"id": seed, "file_name": f"{seed}.png"} for seed in seeds]
    rows = []
    for seed in seeds:
        for mask in blobs(seed):
            rle = encode_rle(mask, 0, 0, SHAPE)
            rle = {"size": [*SHAPE], "counts": rle["counts"]}
            if isinstance(rle["counts"], bytes):
                rle["counts"] = rle["counts"].decode()
            y, x = np.nonzero(mask)
            box = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            rows.append({"id": len(rows), "image_id": seed, "category_id": 1, "segmentation": rle,
                         "bbox": list(map(float, box))})  # fmt: skip
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "a"}]}
    (root / "set.json").write_text(json.dumps(content))
    return root / "set.json"


def as_masks(root: Path, seeds: range) -> Any:
    return {"path": str(root), "train": "images", "val": "images", "names": ["a"]}


@pytest.mark.parametrize("form", [as_masks, as_rows, as_coco])
@pytest.mark.parametrize("gains", [Augment.off(), Augment(hsv_h=0, hsv_s=0, hsv_v=0)])
def test_masks_and_pixels_stay_together(tmp_path: Path, form: Any, gains: Augment) -> None:
    """Also after mosaic: what the labels fill is what the image shows, to 99 % of the union."""
    seeds = range(6)
    for seed in seeds:
        write(tmp_path, str(seed), [(i + 1, mask) for i, mask in enumerate(blobs(seed))])
    from yolo.tasks.segment.data import PolygonLabels

    spec = read_dataset(form(tmp_path, seeds))
    index, report = build_index(spec, "train", PolygonLabels)
    assert (report.objects, report.found.get("row", 0)) == (18, 0)
    size = (320, 480)
    store = ImageStore(index, size)
    both, either = 0, 0
    seen: list[Any] = []

    def keep(samples: Any, size: Any) -> dict[str, Any]:
        seen.extend(sample.instances for sample in samples)
        return {}

    loader = TrainLoader(index, store, gains, batch=6, size=size, extras=keep)
    (batch,) = loader.epoch(0)
    for image, instances in zip(batch.images.numpy(), seen, strict=True):
        drawn = np.zeros(size, bool)
        for top, left, window in fill_polygons(instances.polygons or [], size):
            drawn[top : top + window.shape[0], left : left + window.shape[1]] |= window.view(bool)
        shown = image[..., 0] > 127  # half of what an edge's pixel mixes
        both, either = both + (drawn & shown).sum(), either + (drawn | shown).sum()
    assert either > 20_000
    assert both / either >= 0.99
