# SPDX-License-Identifier: Apache-2.0
"""The pose head: its keypoint branch and their decoding."""

from __future__ import annotations

import pytest
import torch

from golden_weights import fill
from yolo.errors import ModelError
from yolo.nn.layer import BuildContext
from yolo.tasks.pose.head import Pose
from yolo.tasks.pose.model import PoseModel


def head(kpt_shape=(4, 3), stride=(8,)):
    made = Pose(nc=2, kpt_shape=kpt_shape, ch=(16, 32, 64)[: len(stride)])
    made.stride = stride
    return made


@pytest.mark.golden
def test_golden_head(golden):
    facts, arrays = golden("modules.json")["head_pose"], golden("modules.npz")
    made = Pose(**facts["kwargs"])
    assert {k: list(v.shape) for k, v in made.state_dict().items()} == facts["state"]
    fill(made).eval()
    made.stride = tuple(facts["strides"])
    with torch.no_grad():
        raw = made([torch.from_numpy(arrays[f"head_feats/in{i}"]) for i in range(3)])
        y = made.decode(raw)
    for key in ("boxes", "scores", "kpts"):
        expected = torch.from_numpy(arrays[f"head_pose/raw_{key}"])
        torch.testing.assert_close(raw[key], expected, rtol=1e-4, atol=1e-4)
    expected = torch.from_numpy(arrays["head_pose/eval_y"])
    torch.testing.assert_close(y[:, :4], expected[:, :4], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(y[:, 4:], expected[:, 4:], rtol=1e-4, atol=1e-4)


@pytest.mark.golden
def test_golden_initial_biases(golden):
    facts = golden("init.json")["yolov8n-pose_nc1"]
    made = PoseModel().head
    assert list(made.stride) == facts["stride"]
    for branch, (low, high) in zip(made.cv3, facts["cls_bias"], strict=True):
        bias = branch[-1].bias
        assert (bias.min().item(), bias.max().item()) == pytest.approx((low, high), abs=1e-5)
    assert {b for branch in made.cv2 for b in branch[-1].bias.tolist()} == {1.0}


def test_known_keypoints():
    """Cell (1, 0) of stride 8: raw (0.25, -0.5) is grid (1.5, -1), pixels (12, -8)."""
    made = head(kpt_shape=(2, 3))
    raw = made([torch.zeros(1, 16, 1, 2)])
    raw["kpts"] = torch.zeros(1, 6, 2)
    raw["kpts"][0, :, 1] = torch.tensor([0.25, -0.5, 0.0, 0.0, 0.0, 50.0])
    y = made.decode(raw)
    assert y.shape == (1, 4 + 2 + 6, 2)
    assert y[0, 6:, 1].tolist() == [12.0, -8.0, 0.5, 8.0, 0.0, 1.0]


def test_two_numbers_have_no_visibility():
    made = head(kpt_shape=(5, 2))
    raw = made([torch.rand(1, 16, 2, 2)])
    assert raw["kpts"].shape == (1, 10, 4)
    y = made.decode(raw)
    torch.testing.assert_close(y[0, 6, :], (2 * raw["kpts"][0, 0] + raw["points"][:, 0] - 0.5) * 8)


@pytest.mark.parametrize(("channels", "numbers", "width"), [(16, 15, 15), (256, 15, 64)])
def test_width_of_the_branch(channels, numbers, width):
    made = Pose(nc=1, kpt_shape=(numbers // 3, 3), ch=(channels,))
    assert made.cv4[0][0].conv.out_channels == width


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decoding_is_float32(dtype):
    made = head()
    raw = made([torch.randn(1, 16, 4, 4)])
    raw = {k: v.to(dtype) if k in {"boxes", "scores", "kpts"} else v for k, v in raw.items()}
    with torch.autocast("cpu", dtype=dtype):
        found = made.decode(raw)
    assert torch.equal(found, made.decode({k: v.float() for k, v in raw.items()}))


def test_the_shape_is_the_network_s_key():
    context = BuildContext(Pose, (16,), num_classes=2, options={"kpt_shape": [5, 2]})
    plan = Pose.plan([2, [5, 2]], context)
    assert plan.kwargs["kpt_shape"] == (5, 2)
    assert plan.kwargs["nc"] == 2


@pytest.mark.parametrize("shape", [None, 17, [17], [0, 3], [17, 4], [17.0, 3], [True, 3]])
def test_bad_shapes(shape):
    context = BuildContext(Pose, (16,), options={"kpt_shape": shape})
    with pytest.raises(ModelError, match=r"network's key kpt_shape: \[keypoints, 2 or 3\], got"):
        Pose.plan([80, shape], context)


def test_a_shape_in_the_row_must_agree():
    """Else a dataset's own shape would not reach the head."""
    context = BuildContext(Pose, (16,), options={"kpt_shape": [5, 3]})
    with pytest.raises(ModelError, match="write kpt_shape"):
        Pose.plan([80, [17, 3]], context)
