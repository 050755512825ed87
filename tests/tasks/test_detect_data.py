# SPDX-License-Identifier: Apache-2.0
"""Labels beyond boxes: those of real objects, padded, and missed where they are lost."""

from __future__ import annotations

import numpy as np
import pytest

from yolo.data.sample import Instances, Sample
from yolo.errors import DataError
from yolo.tasks.detect.data import labels_of, padded
from yolo.tasks.spec import TASKS

KINDS = {
    "polygons": [[np.zeros((3, 2))], [np.ones((4, 2))]],
    "keypoints": np.ones((2, 5, 3)),
    "corners": np.ones((2, 4, 2)),
}


def sample(**kinds):
    boxes = np.array([[0, 0, 8, 8], [4, 4, 9, 9.0]])
    return Sample(
        np.zeros((16, 16, 3), np.uint8), Instances.from_boxes([0, 1], boxes, **kinds), path="a"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_regions_are_left_out(kind):
    shape = np.shape(KINDS[kind])[1:] if kind != "polygons" else ()
    given = sample(**{kind: KINDS[kind]}, ignore=np.array([True, False]))
    found = labels_of(given, kind, *shape)
    assert len(found) == 1
    np.testing.assert_array_equal(found[0], KINDS[kind][1])
    assert len(labels_of(Sample(given.image), kind, *shape)) == 0


def test_padding():
    rows = padded([np.ones((2, 3)), np.zeros((0, 3)), np.full((1, 3), 7)], 3).numpy()
    assert (rows.shape, rows.dtype) == ((3, 2, 3), np.float32)
    assert rows.sum(axis=(1, 2)).tolist() == [6, 0, 21]
    assert padded([np.zeros((0, 4, 2))], 4, 2).shape == (1, 0, 4, 2)
    assert padded([], 5).shape == (0, 0, 5)


class Data:
    def keypoint_shape(self):
        return (5, 3)


@pytest.mark.parametrize("name", [name for name, spec in TASKS.items() if spec.extras])
def test_labels_lost_on_the_way_are_missed(name):
    spec = TASKS[name]
    make = spec.extras(spec.train_config(), Data())
    (kind,) = spec.label_format().kinds
    with pytest.raises(DataError, match=rf"a: expected {kind} of .* keep `instances.{kind}`"):
        make([sample()], (16, 16))
    make([sample(**KINDS)], (16, 16))
