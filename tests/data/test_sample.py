# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np

from yolo.data.sample import Instances, Sample

BOXES = [[0, 0, 10, 20], [5, 5, 8, 9], [1, 2, 3, 4]]


def instances(**kinds):
    ring = np.array([[0.0, 0], [1, 0], [1, 1]])
    kinds = {
        "polygons": [[ring + i] for i in range(3)],
        "keypoints": np.arange(18.0).reshape(3, 2, 3),
        "corners": np.arange(24.0).reshape(3, 4, 2),
        **kinds,
    }
    return Instances.from_boxes([2, 0, 1], BOXES, **kinds)


def test_from_boxes_fills_in_what_is_not_said():
    found = Instances.from_boxes([1, 0, 2], BOXES)
    assert found.classes.dtype == np.int64
    assert found.area.tolist() == [200, 12, 4]
    assert not found.ignore.any()
    assert found.polygons is found.keypoints is found.corners is None
    assert Instances.from_boxes([1], [BOXES[0]], area=np.array([7.0])).area.tolist() == [7]


def test_select_keeps_every_kind_in_step():
    whole = instances()
    by_mask, by_index = whole.select(np.array([False, True, True])), whole.select(np.array([2, 1]))
    assert len(by_mask) == 2
    assert by_mask.classes.tolist() == [0, 1]
    assert by_index.classes.tolist() == [1, 0]
    assert by_index.boxes.tolist() == [BOXES[2], BOXES[1]]
    assert by_index.polygons[0][0][0].tolist() == [2, 2]
    assert np.array_equal(by_index.keypoints, whole.keypoints[[2, 1]])
    assert np.array_equal(by_index.corners, whole.corners[[2, 1]])
    assert len(whole.select(np.zeros(3, bool))) == 0


def test_concatenate_and_select_are_inverse():
    whole = instances()
    joined = Instances.concatenate([whole.select(np.array([0])), whole.select(np.array([1, 2]))])
    assert np.array_equal(joined.boxes, whole.boxes)
    assert np.array_equal(joined.keypoints, whole.keypoints)
    assert [p[0].tolist() for p in joined.polygons] == [p[0].tolist() for p in whole.polygons]


def test_a_kind_that_one_part_lacks_is_dropped_but_empty_parts_do_not_count():
    joined = Instances.concatenate([instances(), instances(keypoints=None)])
    assert len(joined) == 6
    assert joined.keypoints is None
    assert len(joined.polygons) == 6
    joined = Instances.concatenate([Instances.empty(), instances(), Instances.empty()])
    assert joined.keypoints is not None
    assert len(Instances.concatenate([Instances.empty(), Instances.empty()])) == 0
    assert len(Instances.concatenate([])) == 0


def test_a_sample_alone():
    sample = Sample(np.zeros((4, 6, 3), np.uint8))
    assert sample.shape == (4, 6)
    assert len(sample.instances) == 0
    assert np.array_equal(sample.matrix, np.eye(3))
