# SPDX-License-Identifier: Apache-2.0
"""The places of images in an epoch: every image once, or objects of all classes equally often."""

from __future__ import annotations

import numpy as np
import pytest

from yolo.data.order import BalancedOrder, EpochOrder


def test_every_image_once_in_an_order_of_the_epoch_s_own():
    order = EpochOrder(100, 5)
    a, b = order.places(0).copy(), order.places(1).copy()
    assert sorted(a) == sorted(b) == list(range(100))
    assert (a != b).any()
    np.testing.assert_array_equal(EpochOrder(100, 5).places(1), b)


def test_blocks_stay_together():
    sequence = np.arange(23)[::-1].copy()
    order = EpochOrder(23, 0, (5, sequence))
    places = order.places(4)
    assert sorted(places) == list(range(23))
    blocks = {tuple(places[i : i + 5]) for i in range(0, 20, 5)}
    assert blocks == {tuple(sequence[i : i + 5]) for i in range(0, 20, 5)}
    assert places[20:].tolist() == sequence[20:].tolist()


def balanced(labels, seed=0):
    """Return the order of images with these classes of objects."""
    images = np.repeat(np.arange(len(labels)), [len(found) for found in labels])
    classes = np.array([c for found in labels for c in found], dtype=np.int64)
    return BalancedOrder(len(labels), seed, images, classes)


def test_one_object_an_image():
    classes = np.array([0] * 60 + [1] * 3 + [2] * 17)
    order = balanced(classes[:, None])
    epochs = [order.places(e) for e in range(6)]
    for places in epochs:
        assert len(places) == 80
        shares = np.bincount(classes[places])
        assert np.ptp(shares) <= 1
        for c in range(3):
            times = np.bincount(places, minlength=80)[classes == c]
            assert np.ptp(times) <= 1  # none a second time before all came once
    assert len(np.unique(np.concatenate(epochs))) > 75  # large classes take turns
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(balanced(classes[:, None]).places(4), epochs[4])
    assert (balanced(classes[:, None], seed=1).places(0) != epochs[0]).any()
    assert np.abs(np.diff(classes[epochs[0]])).astype(bool).mean() > 0.4  # and mixed
    extra = sum(np.bincount(classes[places]) for places in epochs)
    assert np.ptp(extra) < 6  # the odd places aren't always the same class's


@pytest.mark.parametrize("rare", [[1], [1, 1, 1, 0]], ids=["alone", "in company"])
def test_a_hundred_to_one(rare):
    """Drawn objects are within 5 % of equal shares, also where classes share images."""
    rng = np.random.default_rng(0)
    labels = [[0] * int(rng.integers(1, 4)) for _ in range(1500)]
    labels += [rare] * (30 // rare.count(1)) + [[2, 2, 0]] * 40
    before = np.bincount([c for found in labels for c in found])
    assert before[0] > 99 * before[1]
    places = balanced(labels).places(3)
    drawn = np.bincount([c for place in places for c in labels[place]])
    np.testing.assert_allclose(drawn / drawn.sum(), 1 / 3, rtol=0.05)
    assert len(places) == len(labels)


def test_images_without_objects_come_once():
    labels = [[], [0], [0], [], [1]]
    places = balanced(labels).places(0)
    assert np.bincount(places, minlength=5)[[0, 3]].tolist() == [1, 1]
    assert len(places) == 5
    assert sorted(balanced([[], []]).places(0)) == [0, 1]
