# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import cv2
import numpy as np
import pytest
import yaml

from yolo.data.datasets import GENERATORS
from yolo.data.figures import NAMES
from yolo.data.sample import Instances
from yolo.data.scene import scene
from yolo.data.shapes import KINDS, label_rows, shapes, single_ring, write_shapes
from yolo.errors import ConfigError, DataError

TINY = {"train": 3, "val": 2, "size": 96}


def rows(path):
    return [[float(word) for word in line.split()] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "classes"])
def test_label_files_hold_the_scenes_labels(tmp_path, kind):
    file = write_shapes(tmp_path / "set", **TINY, test=1, seed=4, kind=kind)
    assert file == tmp_path / "set" / "data.yaml"
    described = yaml.safe_load(file.read_text())
    assert described["names"] == NAMES
    assert ("kpt_shape" in described) == (kind == "keypoints")
    for split, count in {"train": 3, "val": 2, "test": 1}.items():
        folder = file.parent / described[split]
        images = sorted(folder.iterdir())
        assert len(images) == count
        for index, image in enumerate(images):
            drawn = scene(4, split, index, 96)
            h, w = drawn.image.shape[:2]
            stored = cv2.imread(str(image))
            assert stored.shape == drawn.image.shape
            assert np.abs(stored.astype(int) - drawn.image).mean() < 12  # JPEG
            found = rows(file.parent / "labels" / split / f"{image.stem}.txt")
            assert [row[0] for row in found] == drawn.instances.classes.tolist()
            for row, *expected in zip(found, *wanted(drawn.instances, kind), strict=True):
                scale = (w, h, 1) if kind == "keypoints" else (w, h)
                values = np.array(row[1:])
                if kind in ("boxes", "keypoints"):
                    centre, sides = values[:2] * (w, h), values[2:4] * (w, h)
                    box = np.concatenate([centre - sides / 2, centre + sides / 2])
                    np.testing.assert_allclose(box, expected.pop(0), atol=1e-3)
                    values = values[4:]
                if expected:
                    points = values.reshape(-1, len(scale)) * scale
                    np.testing.assert_allclose(points, expected[0], atol=1e-3)
                assert min(row) >= 0
                assert max(values, default=0) <= (2 if kind == "keypoints" else 1)


def wanted(instances, kind):
    return {
        "boxes": [instances.boxes],
        "polygons": [[single_ring(rings) for rings in instances.polygons]],
        "keypoints": [instances.boxes, instances.keypoints],
        "corners": [instances.corners],
    }[kind]


def test_class_folders(tmp_path):
    folder = write_shapes(tmp_path / "set", **TINY, kind="classes")
    for split, count in {"train": 3, "val": 2}.items():
        assert sorted(p.name for p in (folder / split).iterdir()) == list(NAMES.values())
        for index in range(count):
            name = NAMES[scene(0, split, index, 96).image_class]
            assert (folder / split / name / f"{index:06d}.jpg").is_file()
    assert not (folder / "labels").exists()


def test_a_ring_with_holes_and_parts_fills_the_same_pixels():
    for index in range(10):
        drawn = scene(2, "train", index)
        for rings in drawn.instances.polygons:
            ring = single_ring(rings)
            several, one = np.zeros((2, *drawn.image.shape[:2]), dtype=np.uint8)
            cv2.fillPoly(several, [np.rint(r * 256).astype(np.int32) for r in rings], 1, shift=8)
            cv2.fillPoly(one, [np.rint(ring * 256).astype(np.int32)], 1, shift=8)
            outside = one & (1 - cv2.dilate(several, np.ones((3, 3), np.uint8)))
            # OpenCV draws the bridge over a gap as a line one pixel wide.
            assert outside.sum() <= 0.02 * several.sum() + 5
            assert (several & (1 - one)).sum() == 0


def test_single_ring_bridges_the_nearest_points():
    square = np.array([(0, 0), (10, 0), (10, 10), (0, 10.0)])
    other = square / 5 + (11, 9)
    joined = single_ring([square, other])
    assert joined.tolist() == [
        *[[0, 0], [10, 0], [10, 10]],
        *[[11, 9], [13, 9], [13, 11], [11, 11], [11, 9]],
        *[[10, 10], [0, 10]],
    ]


def test_the_same_set_is_found_again_and_another_refused(tmp_path):
    file = write_shapes(tmp_path / "set", **TINY)
    before = file.stat().st_mtime_ns
    assert write_shapes(tmp_path / "set", **TINY).stat().st_mtime_ns == before
    with pytest.raises(DataError, match="Choose another folder"):
        write_shapes(tmp_path / "set", **TINY, seed=1)
    (tmp_path / "mine").mkdir()
    assert write_shapes(tmp_path / "mine", **TINY).is_file()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(DataError, match="something else"):
        write_shapes(tmp_path / "notes", **TINY)


def test_a_failed_writer_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_args):
        raise OSError("disk full")

    monkeypatch.setattr("yolo.data.shapes._save_image", fail)
    with pytest.raises(OSError, match="disk full"):
        write_shapes(tmp_path / "set", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_quicker_writer_wins(tmp_path, monkeypatch):
    import yolo.data.shapes as module

    write = module._write

    def overtaken(folder, spec):
        monkeypatch.setattr(module, "_write", write)
        write_shapes(tmp_path / "set", **TINY)
        write(folder, spec)

    monkeypatch.setattr(module, "_write", overtaken)
    assert write_shapes(tmp_path / "set", **TINY).is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_unknown_kind_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="boxes"):
        write_shapes(tmp_path / "set", **TINY, kind="box")


def test_rows_need_labels_of_their_kind():
    with pytest.raises(ValueError, match="carry no labels"):
        label_rows(Instances.from_boxes([0], [[0, 0, 4, 4]]), (8, 8), "corners")


def test_the_embedded_name(tmp_path, monkeypatch):
    monkeypatch.setattr("yolo.data.shapes.TRAIN", 2)
    monkeypatch.setattr("yolo.data.shapes.VAL", 1)
    assert GENERATORS["shapes"] is shapes
    boxes = shapes(tmp_path)
    assert boxes == shapes(tmp_path, 0)
    assert boxes.parent.parent == tmp_path
    others = {
        shapes(tmp_path, 1),
        shapes(tmp_path, kinds=frozenset({"corners"})),
        shapes(tmp_path, kinds=frozenset({"classes"})),
    }
    assert len(others | {boxes}) == 4
