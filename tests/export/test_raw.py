# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from yolo.backends.quiet import import_onnxruntime
from yolo.data.crop import center_crop
from yolo.data.letterbox import letterbox, rect_shape
from yolo.export.raw import RawCrop, RawLetterbox
from yolo.tasks.obb.predict import to_original

SIZE, STRIDE = (64, 96), 32
SHAPES = [(50, 75), (31, 200), (200, 31), (64, 96), (128, 192), (1, 300), (77, 2), (333, 421)]


class Canvas(nn.Module):
    """The preprocessing alone, as a graph of one input and one output."""

    def __init__(self, raw):
        super().__init__()
        self.raw = raw

    def forward(self, image):
        given = self.raw(image)
        return given[0] if isinstance(given, tuple) else given


def picture(shape, channels=3):
    return np.random.default_rng(sum(shape)).integers(0, 256, (*shape, channels), np.uint8)


def as_input(canvas, rgb=False):
    planes = canvas if rgb else canvas[..., ::-1]
    return np.divide(planes.transpose(2, 0, 1)[None], np.float32(255), dtype=np.float32)


def canvas_of(image, stride=None):
    shape = rect_shape(*image.shape[:2], SIZE, stride) if stride else SIZE
    return letterbox(image, shape)


def traced(raw):
    return torch.jit.trace(Canvas(raw), torch.from_numpy(picture((40, 53))), check_trace=False)


def exported(raw):
    image, free = torch.from_numpy(picture((40, 53))), torch.export.Dim.DYNAMIC
    return torch.export.export(Canvas(raw), (image,), dynamic_shapes=({0: free, 1: free},)).module()


@pytest.mark.parametrize("rgb", [False, True])
@pytest.mark.parametrize("stride", [None, STRIDE])
def test_letterbox_is_opencvs_to_the_bit(stride, rgb):
    raw = RawLetterbox(SIZE, stride=stride, rgb=rgb)
    for shape in SHAPES:
        image = picture(shape)
        canvas, _ = raw(torch.from_numpy(image))
        wanted = as_input(canvas_of(image, stride)[0], rgb)
        np.testing.assert_array_equal(canvas.numpy(), wanted, err_msg=str(shape))


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_keep_their_order(channels):
    image = picture((50, 75), channels)
    canvas, _ = RawLetterbox(SIZE)(torch.from_numpy(image))
    np.testing.assert_array_equal(canvas.numpy(), as_input(letterbox(image, SIZE)[0], rgb=True))


def test_crop_is_pillows_but_for_halves_of_a_level():
    for shape in SHAPES:
        image = picture(shape)
        found = RawCrop(SIZE)(torch.from_numpy(image)).numpy()
        apart = np.abs(found - as_input(center_crop(image, SIZE)[0])) * 255
        assert apart.max() < 1.001, shape
        assert (apart > 0.5).mean() < 0.05, shape


@pytest.mark.parametrize("make", [traced, exported])
@pytest.mark.parametrize(
    "raw", [RawLetterbox(SIZE), RawLetterbox(SIZE, stride=STRIDE), RawCrop(SIZE)]
)
def test_graphs_take_images_of_any_size(raw, make):
    graph = make(raw)
    for shape in ((40, 53), (31, 200), (333, 421)):
        image = torch.from_numpy(picture(shape))
        torch.testing.assert_close(graph(image), Canvas(raw)(image), rtol=0, atol=1.01 / 255)


@pytest.mark.slow
def test_onnxruntime_makes_the_same_canvas():
    onnxruntime = import_onnxruntime()
    free = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        Canvas(RawLetterbox(SIZE, stride=STRIDE)),
        (torch.from_numpy(picture((40, 53))),),
        dynamo=True,
        opset_version=18,
        dynamic_shapes=({0: free, 1: free},),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (name,) = (given.name for given in session.get_inputs())
    for shape in SHAPES:
        image = picture(shape)
        (canvas,) = session.run(None, {name: image})
        np.testing.assert_array_equal(canvas, as_input(canvas_of(image, STRIDE)[0]))


def rows_with(further, count=9):
    rng = np.random.default_rng(0)
    rows = rng.uniform(-20, 120, (1, count, 6 + further)).astype(np.float32)
    rows[..., 4] = rng.uniform(0.1, 1, count)
    rows[:, -3:] = 0  # padding
    return torch.from_numpy(rows)


@pytest.mark.parametrize("stride", [None, STRIDE])
@pytest.mark.parametrize("shape", [(50, 75), (31, 200), (333, 421)])
def test_rows_return_to_the_image_as_predictions_do(shape, stride):
    image = picture(shape)
    _, placement = canvas_of(image, stride)

    upright = RawLetterbox(SIZE, stride=stride)
    _, state = upright(torch.from_numpy(image))
    rows, proto = rows_with(4), torch.rand(1, 2, 3, 3)
    found, same = upright.restore((rows, proto), state)
    assert same is proto
    torch.testing.assert_close(found[0, :6, :4], placement.to_original(rows[0, :6, :4]))
    assert torch.equal(found[0, :6, 4:], rows[0, :6, 4:])
    assert not found[0, 6:].any()

    pose = RawLetterbox(SIZE, stride=stride, kpt_shape=(2, 3))
    rows = rows_with(6)
    (found,) = pose.restore((rows,), state)
    wanted = placement.points_to_original(rows[0, :6, 6:].reshape(6, 2, 3))
    torch.testing.assert_close(found[0, :6, 6:], wanted.reshape(6, 6))

    rotated = RawLetterbox(SIZE, stride=stride, rotated=True)
    rows = rows_with(1)
    rows[..., 2:4] = rows[..., 2:4].abs()
    (found,) = rotated.restore((rows,), state)
    boxes = [0, 1, 2, 3, 6]
    wanted = to_original(placement, rows[0, :6][:, boxes])
    torch.testing.assert_close(found[0, :6][:, boxes], wanted, rtol=1e-5, atol=1e-4)
    assert not found[0, 6:].any()
