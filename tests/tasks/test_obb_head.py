# SPDX-License-Identifier: Apache-2.0
"""The head of oriented boxes: raw output and decoding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from golden_weights import fill
from yolo.errors import ModelError
from yolo.nn.layer import BuildContext
from yolo.nn.rotated import xywhr_to_corners
from yolo.tasks.obb.head import OBB

SIZES = ((4, 6), (2, 3), (1, 2))


def head(nc=4, **given):
    made = OBB(nc, (16, 32, 64), **given)
    made.stride = (8, 16, 32)
    return made


def maps():
    pairs = zip((16, 32, 64), SIZES, strict=True)
    return [torch.randn(2, c, *size) for c, size in pairs]


@pytest.mark.golden
def test_golden_head(golden):
    facts, arrays = golden("modules.json")["head_obb"], golden("modules.npz")
    made = OBB(**facts["kwargs"])
    assert {k: list(v.shape) for k, v in made.state_dict().items()} == facts["state"]
    fill(made).eval()
    made.stride = tuple(facts["strides"])
    feats = [torch.from_numpy(arrays[f"head_feats/in{i}"]) for i in range(3)]
    with torch.no_grad():
        raw = made(feats)
        y = made.decode(raw)
    for key in ("boxes", "scores", "angle"):
        expected = torch.from_numpy(arrays[f"head_obb/raw_{key}"])
        torch.testing.assert_close(raw[key], expected, rtol=1e-4, atol=1e-4)
    expected = torch.from_numpy(arrays["head_obb/eval_y"])
    torch.testing.assert_close(y[:, :4], expected[:, :4], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(y[:, 4:], expected[:, 4:], rtol=1e-4, atol=1e-4)


def test_a_box_turns_about_its_anchor_point():
    """Anchor (4, 4) px, 3 strides to the right and 1 down, turned by 90 degrees: down and left."""
    made = head()
    raw = made.eval()([torch.zeros(1, c, 1, 1) for c in (16, 32, 64)])
    boxes = torch.full((1, 4, 16, 3), -1e4)
    for side, distance in enumerate((0, 0, 3, 1)):
        boxes[0, side, distance] = 0
    raw |= {"boxes": boxes.view(1, 64, 3), "angle": torch.full((1, 1, 3), math.pi / 2)}
    found = made.decode(raw)[0, [0, 1, 2, 3, -1], 0]
    corners = xywhr_to_corners(found)
    assert corners.amin(0).tolist() == pytest.approx([4 - 8, 4], abs=1e-4)
    assert corners.amax(0).tolist() == pytest.approx([4, 4 + 24], abs=1e-4)


def test_angles_cover_the_documented_range():
    made = head()
    feats = maps()
    for branch in made.cv4:
        branch[2].weight.data.mul_(1e3)
    raw = made(feats)
    assert raw["angle"].shape == (2, 1, 32)
    assert raw["angle"].min() < -0.7
    assert raw["angle"].max() > 2.2
    assert (raw["angle"] >= -math.pi / 4).all()
    assert (raw["angle"] <= 3 * math.pi / 4).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decoding_is_float32(dtype):
    made = head()
    raw = made(maps())
    half = {k: v.to(dtype) if k in {"boxes", "scores"} else v for k, v in raw.items()}
    with torch.autocast("cpu", dtype=dtype):
        found = made.decode(half)
    assert found.dtype == torch.float32
    assert torch.equal(found, made.decode({k: v.float() for k, v in half.items()}))


def test_fake_tensors_and_plain_distances_pass():
    with FakeTensorMode():
        made = head().train()
        assert made.decode(made(maps())).shape == (2, 4 + 4 + 1, 32)
    assert head(reg_max=1).decode(head(reg_max=1)(maps())).shape == (2, 9, 32)


def test_rows_of_a_network():
    context = BuildContext(OBB, (16, 32), options={"reg_max": 8})
    for args in ([80, 1], [80]):
        assert dict(OBB.plan(args, context).kwargs) == {
            "nc": 80, "reg_max": 8, "ne": 1, "ch": (16, 32),
        }  # fmt: skip
    with pytest.raises(ModelError, match=r"one angle a box, OBB: \[nc, 1\], got 2"):
        OBB.plan([80, 2], context)
    with pytest.raises(ModelError, match="write nc"):
        OBB.plan([3, 1], context)


def test_biases_start_as_in_detection():
    made = head()
    made.init_bias()
    assert {float(b[2].bias.detach()[0]) for b in made.cv2} == {1.0}
    assert np.ptp([float(b[2].bias.detach()[0]) for b in made.cv3]) > 2
