# SPDX-License-Identifier: Apache-2.0
"""Make the convolutions of an ONNX model compute in 8 bits.

What a runtime needs for that stands in the graph: a QuantizeLinear and a DequantizeLinear before
each convolution, with a scale measured on images. OpenVINO and TensorRT read it, so one quantiser
serves both. It is onnxruntime's, on the inputs and weights of convolutions alone (their sums stay
in float, and with them what becomes boxes and scores), since

- it can be kept silent (`yolo.backends.quiet`). So could NNCF, OpenVINO's own, but that also adds a
  handler that writes to stdout to the logging, and brings scikit-learn, SciPy and networkx along;
- it came closer. Two small trained detectors on 24 and 60 images that weren't calibrated on, in
  OpenVINO 2026.4, on a CPU without VNNI: mean difference from fp32 of boxes (pixels) and scores, at
  anchors with a score above 0.1:

      this, 7-bit weights               0.24  0.013    0.21  0.004
      this, 8-bit weights               0.28  0.063    0.26  0.003
      with the sums in 8 bits           0.50  0.019    0.26  0.005
      NNCF with its overflow fix        1.13  0.072    1.00  0.027
      NNCF as it comes                  0.84  0.179    1.02  0.030

Weights have 7 bits where the file is for CPUs: sums of 8-bit products overflow on those without
VNNI (onnxruntime's documentation on quantization, "reduce_range").
"""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolo.backends.metadata import RAW
from yolo.backends.quiet import import_onnxruntime
from yolo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from yolo.export.formats import Job


def quantize(model: Any, inputs: Iterable[np.ndarray], *, symmetric: bool = False) -> Any:
    """Return an ONNX model whose convolutions compute in 8 bits.

    Args:
        model: onnx.ModelProto in float32 with one input; not altered.
        inputs: what to measure the ranges of the maps on, as the model takes it.
        symmetric: zero is in the middle of every range, and weights have all 8 bits and stand
            in the graph as floats, as TensorRT wants it; else as is best for CPUs.

    Raises:
        MissingPackageError: if onnxruntime isn't installed.
        DataError: if there are no inputs.
    """
    feed = _Feed(model.graph.input[0].name, inputs)
    import_onnxruntime()
    ort: Any = importlib.import_module("onnxruntime.quantization")
    onnx: Any = importlib.import_module("onnx")
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    # It asks for a preparation that torch's exporter has done, and says so at length.
    onnx.helper.set_model_props(marked, {"onnx.quant.pre_process": "onnxruntime.quant"})
    signed = ort.QuantType.QInt8
    with tempfile.TemporaryDirectory() as folder, _root_logger_as_it_is():
        path = Path(folder) / "quantized.onnx"
        ort.quantize_static(
            marked,
            path,
            feed,
            quant_format=ort.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            reduce_range=not symmetric,
            activation_type=signed if symmetric else ort.QuantType.QUInt8,
            weight_type=signed,
            extra_options={
                "ActivationSymmetric": symmetric,
                "AddQDQPairToWeight": symmetric,
                "OpTypesToExcludeOutputQuantization": ["Conv"],
                "QuantizeBias": False,
            },
        )
        result = onnx.load_model(str(path))
    del result.metadata_props[:]
    return result


def graph_inputs(job: Job, size: int) -> Iterator[np.ndarray]:
    """Yield the job's images for calibration as its graph takes them.

    Args:
        job: with `calibration`.
        size: images a call of the graph.

    Raises:
        ConfigError: if a module of the user's own stands before the network, since what that takes
            can't be made of what the network takes.
    """
    own = job.config.preprocess
    if own is not None and not isinstance(own, str):
        raise ConfigError(
            "int8=True: expected no preprocess= module of your own, since images to measure 8-bit "
            f"scales on can't be made for it, found {type(own).__name__}; export without it"
        )
    return _graph_inputs(job, size)


def _graph_inputs(job: Job, size: int) -> Iterator[np.ndarray]:
    found = job.calibration() if job.calibration else ()
    images = (image for batch in found for image in batch)
    if job.config.preprocess is None:
        while part := list(islice(images, size)):
            yield np.stack([*part, *part[-1:] * (size - len(part))])
        return
    for image in images:  # a whole canvas, which the preprocessing leaves as it is
        pixels = np.rint(image.transpose(1, 2, 0) * 255).astype(np.uint8)
        yield np.ascontiguousarray(pixels if RAW[job.config.preprocess] else pixels[..., ::-1])


class _Feed:
    """Inputs, one by one, as onnxruntime's quantiser asks for them.

    Raises:
        DataError: if there are none.
    """

    def __init__(self, name: str, inputs: Iterable[np.ndarray]) -> None:
        self.name = name
        self.inputs = iter(inputs)
        self.first = next(self.inputs, None)
        if self.first is None:
            raise DataError("int8=True: data= has no images to measure 8-bit scales on")

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next input by its name, None at the end."""
        found, self.first = self.first, None
        found = next(self.inputs, None) if found is None else found
        return None if found is None else {self.name: found}


@contextmanager
def _root_logger_as_it_is() -> Iterator[None]:
    """Keep a bare `logging.info(...)`, of which the quantiser has some, from adding a handler."""
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
