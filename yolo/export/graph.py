# SPDX-License-Identifier: Apache-2.0
"""What is exported: the fused network, with processing before and after it.

Shapes: B images, H W pixels.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


class ExportGraph(nn.Module):
    """A fused float32 copy of a network in eval mode, between optional modules.

    The order is: preprocess, network, nms, what brings boxes back to the source (a method
    `restore(outputs, state)` of the preprocess module), postprocess.

    Args:
        network: not altered.
        preprocess: called with the graph's input; gives the network's input (B, 3, H, W) float RGB
            0..1, or a pair of it and a state (any tensors) for `restore`.
        nms: called with the tuple of the network's outputs, gives a tuple.
        postprocess: called with the tuple of outputs so far; gives a tensor or a tuple.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocess: nn.Module | None = None,
        nms: nn.Module | None = None,
        postprocess: nn.Module | None = None,
    ) -> None:
        super().__init__()
        twin: Any = copy.deepcopy(network).cpu().float().eval()
        self.network = twin.fuse() if hasattr(twin, "fuse") else twin
        self.preprocess = preprocess
        self.nms = nms
        self.postprocess = postprocess
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run the whole chain; give its outputs in order."""
        state: Any = None
        if self.preprocess is not None:
            given = self.preprocess(x)
            x, state = given if isinstance(given, tuple) else (given, None)
        outputs = as_tuple(self.network(x))
        if self.nms is not None:
            outputs = as_tuple(self.nms(outputs))
        if self.preprocess is not None and hasattr(self.preprocess, "restore"):
            outputs = as_tuple(self.preprocess.restore(outputs, state))
        if self.postprocess is not None:
            outputs = as_tuple(self.postprocess(outputs))
        return outputs


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """Return one tensor, or several, as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
