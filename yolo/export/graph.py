# SPDX-License-Identifier: Apache-2.0
"""What is exported: the fused network, with processing before and after it.

Shapes: B images, H W pixels.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


class ExportGraph(nn.Module):
    """A fused copy of a network in eval mode, between optional modules, which are copied too.

    The order is: preprocess, network, nms, what brings boxes back to the source (a method
    `restore(outputs, state)` of the preprocess module), postprocess.

    Args:
        network: gives raw predictions by `raw` and decodes them by `decode`.
        preprocess: called with the graph's input; gives the network's input (B, C, H, W) float RGB
            0..1, or a pair of it and a state (any tensors) for `restore`.
        nms: called with the tuple of the network's outputs, gives a tuple.
        postprocess: called with the tuple of outputs so far; gives a tensor or a tuple.
        half: the network's layers work in fp16; inputs, decoding and outputs stay float32, since
            coordinates of several hundred pixels don't fit into half precision.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocess: nn.Module | None = None,
        nms: nn.Module | None = None,
        postprocess: nn.Module | None = None,
        half: bool = False,
    ) -> None:
        super().__init__()
        twin: Any = copy.deepcopy(network).float().eval()
        if hasattr(twin, "fuse"):
            twin.fuse()
        self.network: Any = twin.half() if half else twin
        self.preprocess: Any = copy.deepcopy(preprocess)
        self.nms: Any = copy.deepcopy(nms)
        self.postprocess: Any = copy.deepcopy(postprocess)
        self.half_precision = half
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run the whole chain; give its outputs in order."""
        return self.finish(*self.predictions(x))

    def finish(self, outputs: tuple[Tensor, ...], state: Any) -> tuple[Tensor, ...]:
        """Run the rest of the graph on what `predictions` gives."""
        if self.nms is not None:
            outputs = as_tuple(self.nms(outputs))
        if hasattr(self.preprocess, "restore"):
            outputs = as_tuple(self.preprocess.restore(outputs, state))
        if self.postprocess is not None:
            outputs = as_tuple(self.postprocess(outputs))
        return outputs

    def predictions(self, x: Tensor) -> tuple[tuple[Tensor, ...], Any]:
        """Run the graph as far as the network; give its outputs, and the preprocessing's state."""
        state: Any = None
        if self.preprocess is not None:
            given = self.preprocess(x)
            x, state = given if isinstance(given, tuple) else (given, None)
        raw = self.network.raw(x.half() if self.half_precision else x)
        return as_tuple(self.network.decode(raw)), state


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """Return one tensor, or several, as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
