# SPDX-License-Identifier: Apache-2.0
"""Packed masks give back what was packed; outlines cost memory by their points alone."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest
import torch

from yolo.engine.containers import Masks
from yolo.engine.masks import PackedMasks, trace_outline


def packed(count=5, size=(30, 40), tensors=False, seed=0):
    """Random windows, the last of them without a pixel."""
    rng = np.random.default_rng(seed)
    whole = np.zeros((count, *size), np.uint8)
    parts = []
    for canvas in whole:
        top, left = rng.integers(0, 20, 2)
        window = canvas[top : top + rng.integers(1, 15), left : left + rng.integers(1, 20)]
        window[:] = rng.random(window.shape) < 0.5
        parts.append((int(top), int(left), window.astype(bool)))
    parts[-1] = (0, 0, np.zeros((0, 7), bool))
    whole[-1] = 0
    return PackedMasks.pack(parts, size, tensors), whole


def test_packing_loses_nothing():
    masks, whole = packed()
    assert (len(masks), masks.shape) == (5, (5, 30, 40))
    assert np.array_equal(masks.dense(), whole)
    assert all(np.array_equal(masks[i], whole[i]) for i in range(5))
    assert np.array_equal(masks.select(np.array([3, 1])).dense(), whole[[3, 1]])
    assert masks.select(np.array([], int)).dense().shape == (0, 30, 40)
    assert sum(bits.nbytes for bits in masks.bits) < whole.size / 8


@pytest.mark.parametrize("tensors", [False, True])
def test_a_container_unpacks_only_what_is_looked_at(tensors):
    source, whole = packed(tensors=tensors)
    masks = Masks(source, (30, 40))
    assert (len(masks), masks.shape, masks.orig_shape) == (5, (5, 30, 40), (30, 40))
    picked, last = masks[[True, False, True, False, False]], masks[-2]
    assert np.array_equal(masks.full(1), whole[1].astype(bool))
    assert len(masks.xy) == 5
    assert len(masks.xy[4]) == 0
    assert [m.shape for m in masks] == [(1, 30, 40)] * 5
    moved = [masks.cpu(), masks.to("cpu"), masks.numpy(), picked, last]
    assert not any("data" in vars(m) for m in [masks, *moved])
    assert isinstance(masks.data, torch.Tensor if tensors else np.ndarray)
    assert str(masks.data.dtype).endswith("uint8")
    assert np.array_equal(np.asarray(masks.data), whole)
    assert type(moved[0].data) is type(masks.data)
    assert isinstance(moved[2].data, np.ndarray)
    assert np.array_equal(np.asarray(picked.data), whole[[0, 2]])
    assert np.array_equal(np.asarray(last.data), whole[3:4])
    with pytest.raises(IndexError, match="5 rows"):
        masks[5]


def test_what_was_written_to_the_data_counts():
    masks = Masks(packed()[0], (30, 40))
    masks.data[:] = 0
    masks.data[0, 2:9, 3:7] = 1
    assert masks.full(0).sum() == 28
    assert masks[0].data.sum() == 28
    assert masks.numpy().data.sum() == 28
    assert masks.xy[0].max(0).tolist() == [6, 8]


def test_many_parts_make_one_outline_of_the_same_area():
    rng = np.random.default_rng(0)
    mask = np.zeros((200, 200), np.uint8)
    area = 0.0
    for x, y in np.argwhere(rng.random((9, 9)) < 0.6) * 20:
        w, h = rng.integers(3, 14, 2)
        mask[y : y + h, x : x + w] = 1
        area += (w - 1) * (h - 1)
    outline = trace_outline(mask)
    # The signs of the parts agree, and bridges are walked there and back.
    assert abs(float(cv2.contourArea(outline, oriented=True))) == pytest.approx(area)
    found = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[-2]
    corners = {tuple(p) for contour in found for p in contour.reshape(-1, 2).tolist()}
    assert corners == {tuple(p) for p in outline.tolist()}
    assert len(outline) <= len(corners) + 2 * len(found)


def test_long_outlines_need_little_memory():
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.standard_normal((120, 120)).astype(np.float32), (480, 480))
    mask = (noise > 0).astype(np.uint8)
    tracemalloc.start()
    outline = trace_outline(mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(outline) > 10_000
    assert peak < 5_000_000  # all pairs of two parts would take hundreds
