# SPDX-License-Identifier: Apache-2.0
"""The segmentation head: coefficients, prototypes, decoding, rows."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from golden_weights import fill
from yolo.errors import ModelError
from yolo.nn.layer import BuildContext
from yolo.tasks.segment.head import Segment
from yolo.tasks.segment.model import SegmentationModel


def head(stride=(8,)):
    made = Segment(nc=2, nm=8, npr=16, ch=(16, 32, 64)[: len(stride)])
    made.stride = stride
    return made


@pytest.mark.golden
def test_golden_head(golden):
    facts, arrays = golden("modules.json")["head_segment"], golden("modules.npz")
    made = Segment(**facts["kwargs"])
    assert {k: list(v.shape) for k, v in made.state_dict().items()} == facts["state"]
    fill(made).eval()
    made.stride = tuple(facts["strides"])
    with torch.no_grad():
        raw = made([torch.from_numpy(arrays[f"head_feats/in{i}"]) for i in range(3)])
        y, proto = made.decode(raw)
    for key in ("boxes", "scores", "mask_coefficient"):
        expected = torch.from_numpy(arrays[f"head_segment/raw_{key}"])
        torch.testing.assert_close(raw[key], expected, rtol=1e-4, atol=1e-4)
    expected = torch.from_numpy(arrays["head_segment/proto"])
    torch.testing.assert_close(proto, expected, rtol=1e-4, atol=1e-4)
    expected = torch.from_numpy(arrays["head_segment/eval_y"])
    torch.testing.assert_close(y[:, :4], expected[:, :4], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(y[:, 4:], expected[:, 4:], rtol=1e-4, atol=1e-4)


@pytest.mark.golden
def test_golden_initial_biases(golden):
    facts = golden("init.json")["yolov8n-seg_nc80"]
    made = SegmentationModel().head
    assert list(made.stride) == facts["stride"]
    for branch, (low, high) in zip(made.cv3, facts["cls_bias"], strict=True):
        bias = branch[-1].bias
        assert (bias.min().item(), bias.max().item()) == pytest.approx((low, high), abs=1e-5)
    assert {b for branch in made.cv2 for b in branch[-1].bias.tolist()} == {1.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decoding_is_float32(dtype):
    made = head()
    raw = made([torch.randn(1, 16, 4, 4)])
    assert raw["proto"].shape == (1, 8, 8, 8)
    raw = {k: v.to(dtype) if k not in {"points", "strides"} else v for k, v in raw.items()}
    with torch.autocast("cpu", dtype=dtype):
        found = made.decode(raw)
    expected = made.decode({k: v.float() for k, v in raw.items()})
    assert all(map(torch.equal, found, expected))
    assert {part.dtype for part in found} == {torch.float32}


def test_fake_tensors_pass():
    with FakeTensorMode():
        made = head((8, 16)).train()
        maps = [torch.zeros(2, c, s, s) for c, s in ((16, 4), (32, 2))]
        y, proto = made.decode(made(maps))
    assert y.shape == (2, 4 + 2 + 8, 20)
    assert proto.shape == (2, 8, 8, 8)


def plan(*args, width=0.25):
    return Segment.plan(args, BuildContext(Segment, (16, 32), num_classes=3, width=width)).kwargs


def test_the_row_says_how_many_prototypes_and_how_wide():
    assert plan(3, 16, 100) == {"nc": 3, "reg_max": 16, "nm": 16, "npr": 32, "ch": (16, 32)}
    assert plan(3, 16) == {"nc": 3, "reg_max": 16, "nm": 16, "ch": (16, 32)}
    assert "nm" not in plan(3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([2], "got 2; write nc"),
        ([3, 0], "nm as a whole number >= 1, got 0"),
        ([3, "32"], "nm as a whole number >= 1, got '32'"),
        ([3, True], "nm as a whole number >= 1, got True"),
        ([3, 32, -1], "a number of channels > 0, got -1"),
        ([3, 32, 256, 1], "at most 3 arguments"),
    ],
)
def test_bad_rows(args, message):
    with pytest.raises(ModelError, match=message):
        plan(*args)
