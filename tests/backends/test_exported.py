# SPDX-License-Identifier: Apache-2.0
"""What all runtimes share: pixels to input, batches cut to size, outputs held against classes."""

from __future__ import annotations

import numpy as np
import pytest

from yolo.backends.exported import ExportedModel, as_input, sound
from yolo.backends.metadata import Metadata
from yolo.errors import ConfigError, ModelError
from yolo.tasks.spec import Outputs


class Echo(ExportedModel):
    """Gives each image's mean as six numbers of four predictions; notes the batches."""

    def __init__(self, **facts):
        super().__init__("x.onnx", Metadata("detect", {0: "a", 1: "b"}, **facts))
        self.batches = []

    def run(self, inputs):
        self.batches.append(inputs.shape)
        assert inputs.flags.c_contiguous
        if inputs.ndim == 3:
            return [inputs.astype(np.float32).mean((0, 1))[None]]
        return [np.broadcast_to(inputs.mean((1, 2, 3))[:, None, None], (len(inputs), 6, 4))]


def test_pixels_become_planes_of_rgb():
    image = np.zeros((1, 2, 3, 3), np.uint8)
    image[0, 1, 2] = 10, 20, 255
    found = as_input(image, 3)
    assert (found.shape, found.dtype, found.flags.c_contiguous) == ((1, 3, 2, 3), np.float32, True)
    assert found[0, :, 1, 2] == pytest.approx([1, 20 / 255, 10 / 255])
    assert as_input(np.full((1, 1, 1, 1), 65535, np.uint16), 1).item() == 1


@pytest.mark.parametrize(
    ("facts", "batches"),
    [
        ({"batch": 2}, [2, 2, 2]),
        ({"batch": 8}, [8]),
        ({"dynamic": "batch"}, [5]),
        ({"dynamic": True}, [5]),
    ],
)
def test_a_batch_is_cut_and_filled_up(facts, batches):
    echo = Echo(**facts)
    levels = np.arange(5, dtype=np.uint8)
    (found,) = echo(np.broadcast_to(levels[:, None, None, None], (5, 32, 32, 3)).copy())
    assert [shape[0] for shape in echo.batches] == batches
    assert found.shape == (5, 6, 4)
    np.testing.assert_allclose(found[:, 0, 0] * 255, levels, rtol=1e-5)


def test_raw_files_get_images_one_by_one():
    echo = Echo(preprocess="raw_rgb")
    images = np.zeros((2, 40, 50, 3), np.uint8)
    images[..., 0] = 7  # blue
    (found,) = echo(images)
    assert echo.batches == [(40, 50, 3)] * 2
    assert found.tolist() == [[0, 0, 7]] * 2
    (found,) = Echo(preprocess="raw")(np.full((1, 4, 4, 3), 65535, np.uint16))
    assert found.tolist() == [[255, 255, 255]]


def test_names_that_do_not_fit_the_outputs_are_refused():
    echo = Echo(dynamic=True)
    echo.layout = Outputs()
    echo.infer(np.zeros((1, 3, 32, 32), np.float32))
    echo.names = {0: "a"}
    with pytest.raises(ModelError, match=r"x\.onnx: expected 5 numbers.*1 classes, found 6"):
        echo.infer(np.zeros((1, 3, 32, 32), np.float32))
    echo.layout = Outputs(boxes=False)
    with pytest.raises(ModelError, match="expected 1 numbers"):
        echo.infer(np.zeros((1, 3, 32, 32), np.float32))


def test_outputs_of_a_module_of_ones_own_are_no_predictions():
    with pytest.raises(ModelError, match="your own module 'Blur'"):
        Echo(dynamic=True, postprocess="Blur").infer(np.zeros((1, 3, 32, 32), np.float32))


def test_what_a_runtime_raises_is_told_in_one_line():
    text = r"^m\.x: no sound X file; copy or export it again \(ZeroDivisionError: first second\)$"
    with pytest.raises(ModelError, match=text), sound("m.x", "X file"):
        raise ZeroDivisionError("first\n  second")
    with pytest.raises(ConfigError), sound("m.x", "X file"):
        raise ConfigError("device")
