# SPDX-License-Identifier: Apache-2.0
"""The detection head: raw output, decoding, initial biases."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from golden_weights import fill
from yolo.errors import ModelError
from yolo.nn.layer import BuildContext
from yolo.tasks.detect.head import Detect, join_levels
from yolo.tasks.detect.model import DetectionModel


def maps(*sizes, channels=(16, 32, 64)):
    generator = torch.Generator().manual_seed(0)
    pairs = zip(channels, sizes, strict=False)
    return [torch.randn(2, c, *hw, generator=generator) for c, hw in pairs]


def head(nc=4, stride=(8, 16, 32), **given):
    made = Detect(nc, (16, 32, 64)[: len(stride)], **given)
    made.stride = stride
    return made


@pytest.mark.golden
def test_golden_head(golden):
    facts, arrays = golden("modules.json")["head_detect"], golden("modules.npz")
    made = Detect(**facts["kwargs"])
    assert {k: list(v.shape) for k, v in made.state_dict().items()} == facts["state"]
    fill(made).eval()
    made.stride = tuple(facts["strides"])
    feats = [torch.from_numpy(arrays[f"head_feats/in{i}"]) for i in range(3)]
    with torch.no_grad():
        raw = made(feats)
        y = made.decode(raw)
    for key in ("boxes", "scores"):
        expected = torch.from_numpy(arrays[f"head_detect/raw_{key}"])
        torch.testing.assert_close(raw[key], expected, rtol=1e-4, atol=1e-4)
    expected = torch.from_numpy(arrays["head_detect/eval_y"])
    torch.testing.assert_close(y[:, :4], expected[:, :4], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(y[:, 4:], expected[:, 4:], rtol=1e-4, atol=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "nc", "key"),
    [
        ("yolov8n", 80, "yolov8n_nc80"),
        ("yolov8n", 3, "yolov8n_nc3"),
        ("yolov8n-p2", 80, "yolov8n-p2_nc80"),
        ("yolov8n-p6", 80, "yolov8n-p6_nc80"),
    ],
)
def test_golden_initial_biases(golden, name, nc, key):
    facts = golden("init.json")[key]
    made = DetectionModel(f"{name}.yaml", nc=nc).head
    assert list(made.stride) == facts["stride"]
    for branch, (low, high) in zip(made.cv3, facts["cls_bias"], strict=True):
        bias = branch[-1].bias
        assert (bias.min().item(), bias.max().item()) == pytest.approx((low, high), abs=1e-5)
    for branch, expected in zip(made.cv2, facts["box_bias@v8.2"], strict=True):
        assert set(branch[-1].bias.tolist()) == set(expected)
    assert not made.dfl.conv.weight.requires_grad
    assert made.dfl.conv.weight.flatten().tolist() == list(range(16))


def test_known_distances_decode_to_known_boxes():
    """Anchor (1.5, 0.5) of stride 8, distances 1, 0, 2, 3: corners (4, 4) and (28, 28) px."""
    made = head(nc=2, stride=(8,))
    boxes = torch.full((1, 4, 16, 2), -1e4)
    for side, distance in enumerate((1, 0, 2, 3)):
        boxes[0, side, distance] = 0
    raw = made([torch.zeros(1, 16, 1, 2)])
    raw |= {"boxes": boxes.view(1, 64, 2), "scores": torch.zeros(1, 2, 2)}
    y = made.decode(raw)
    assert y[0, :, 1].tolist() == [16.0, 16.0, 24.0, 24.0, 0.5, 0.5]


def test_levels_follow_each_other_row_major():
    raw = head()(maps((4, 6), (2, 3), (1, 2)))
    assert raw["boxes"].shape == (2, 64, 32)
    assert raw["strides"].flatten().tolist() == [8.0] * 24 + [16.0] * 6 + [32.0] * 2
    assert raw["points"][:7].tolist() == [[x + 0.5, 0.5] for x in range(6)] + [[0.5, 1.5]]


def test_channels_last_maps_give_the_same_and_need_no_transposition():
    feats = maps((4, 6), (2, 3))
    expected = torch.cat([f.flatten(2) for f in [f[:, :16] for f in feats]], 2)
    last = [f[:, :16].contiguous(memory_format=torch.channels_last) for f in feats]
    joined = join_levels(last)
    assert torch.equal(joined, expected)
    assert joined.mT.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decoding_is_float32(dtype):
    made = head()
    raw = made(maps((4, 6), (2, 3), (1, 2)))
    raw = {k: v.to(dtype) if k in {"boxes", "scores"} else v for k, v in raw.items()}
    expected = made.decode({k: v.float() for k, v in raw.items()})
    with torch.autocast("cpu", dtype=dtype):
        found = made.decode(raw)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_one_bin_is_a_plain_distance():
    made = head(reg_max=1)
    raw = made(maps((2, 2), (1, 1), (1, 1)))
    assert raw["boxes"].shape == (2, 4, 6)
    assert made.decode(raw).shape == (2, 8, 6)
    assert "dfl.conv.weight" not in made.state_dict()


def test_fake_tensors_pass():
    with FakeTensorMode():
        made = head().train()
        y = made.decode(made(maps_like_fakes()))
    assert y.shape == (2, 8, 32)


def maps_like_fakes():
    sizes = zip((16, 32, 64), ((4, 6), (2, 3), (1, 2)), strict=True)
    return [torch.zeros(2, c, *hw) for c, hw in sizes]


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (["many"], {}, "nc as the network has it, 80, got 'many'"),
        ([3], {}, "got 3; write nc"),  # else names and outputs would differ in number
        ([80], {"reg_max": 0}, "reg_max as"),
    ],
)
def test_bad_rows(args, options, message):
    context = BuildContext(Detect, (16, 32), options=options)
    with pytest.raises(ModelError, match=message):
        Detect.plan(args, context)


def test_reg_max_comes_from_the_network():
    plan = Detect.plan([80], BuildContext(Detect, (16, 32), options={"reg_max": 8}))
    assert dict(plan.kwargs) == {"nc": 80, "reg_max": 8, "ch": (16, 32)}
