# SPDX-License-Identifier: Apache-2.0
"""An exported file in the shape of a network, for the validator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from yolo.backends.exported import ExportedModel
from yolo.errors import ConfigError


class ExportedNetwork(nn.Module):
    """A module without weights that asks a backend.

    Args:
        backend: of a file that takes prepared images.

    Attributes:
        names, stride, num_channels, kpt_shape: as a network has them.
        nms: outputs are finished rows.

    Raises:
        ConfigError: if the file takes other images than the validator prepares.
    """

    def __init__(self, backend: ExportedModel) -> None:
        super().__init__()
        if backend.metadata.preprocess is not None:
            raise ConfigError(
                f"{backend.path}: prepares images itself (preprocess="
                f"{backend.metadata.preprocess!r}), while val prepares them as in training; "
                "validate an export without preprocess"
            )
        self.backend = backend
        self.names = dict(backend.names)
        self.stride = (backend.stride,)
        self.num_channels = backend.channels
        self.kpt_shape = backend.kpt_shape
        self.nms = backend.nms

    def raw(self, x: Tensor) -> dict[str, Tensor]:
        """Run (B, C, H, W) RGB 0..1; give the outputs by their place."""
        outputs = self.backend.infer(x.detach().cpu().numpy())
        return {str(i): torch.from_numpy(output) for i, output in enumerate(outputs)}

    def decode(self, raw: dict[str, Tensor]) -> Any:
        """Return the outputs as the network's head would: one tensor, or a tuple."""
        outputs = tuple(raw.values())
        return outputs if len(outputs) > 1 else outputs[0]
