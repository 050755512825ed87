# SPDX-License-Identifier: Apache-2.0
"""The images that files are proved on: shapes, sizes and batches."""

from __future__ import annotations

import numpy as np
import pytest

from yolo.export.probes import IMAGES, drawn, probes, raw_probes


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_a_static_file_gets_its_batch_and_enough_images(batch):
    found = probes((64, 96), 3, 32, batch, False)
    assert {x.shape for x in found} == {(batch, 3, 64, 96)}
    assert sum(map(len, found)) >= IMAGES
    assert all(x.dtype == np.float32 and 0 <= x.min() < x.max() <= 1 for x in found)


def test_a_free_batch_and_a_free_size_are_used():
    assert {len(x) for x in probes((64, 64), 3, 32, 1, "batch")} == {1, 3, 4}
    shapes = {x.shape[2:] for x in probes((96, 96), 1, 32, 1, True)}
    assert shapes == {(96, 96), (64, 96), (96, 64)}


def test_images_differ_in_shape_and_size():
    images = raw_probes((160, 160), 3)
    assert len(images) >= IMAGES
    assert len({image.shape for image in images}) > 4
    assert all(image.dtype == np.uint8 and image.flags.c_contiguous for image in images)
    assert drawn(1, 80, 4).shape[2] == 4
