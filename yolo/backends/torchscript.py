# SPDX-License-Identifier: Apache-2.0
"""Run TorchScript files with torch.

Torch reads nothing pickled from them that could run. But the file is a program: some of the
operators it may call read or write files, so run what you trust.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolo.backends.exported import ExportedModel, sound
from yolo.backends.metadata import MAX_TEXT, Metadata, read_metadata
from yolo.engine.runtime import select_device

ENTRY = "config.txt"
"""The file inside of the archive that holds the metadata, as JSON."""


class TorchModel(ExportedModel):
    """A file that becomes a torch callable; TorchScript and torch.export share this.

    Attributes:
        device: where it runs.
        network: (B, C, H, W) -> a tensor or a tuple.
    """

    device: torch.device
    network: Any

    def __init__(self, path: str | Path, metadata: Metadata, device: Any) -> None:
        super().__init__(path, metadata)
        # Traced constants stay on the device of the export, which is the CPU unless said otherwise.
        self.device = select_device("cpu" if device is None else device)
        if metadata.nms:
            import torchvision  # noqa: F401 - the file calls one of its operators

    def run(self, inputs: np.ndarray) -> list[np.ndarray]:
        """Run the file on exactly the input it takes; give its outputs in order, float32."""
        with torch.inference_mode():
            outputs = self.network(torch.from_numpy(inputs).to(self.device))
        several = [outputs] if isinstance(outputs, Tensor) else outputs
        return [
            (output.float() if output.is_floating_point() else output).cpu().numpy()
            for output in several
        ]


class TorchScriptModel(TorchModel):
    """A TorchScript file.

    Args:
        path: the file.
        device: as in `yolo.engine.runtime.select_device`.
        **given: `task`, `names`, `kpt_shape` where the file doesn't say them.

    Raises:
        ModelError: if the file isn't sound, or doesn't say enough of itself.
    """

    def __init__(self, path: str | Path, device: Any = None, **given: Any) -> None:
        found = archive_metadata(path)
        super().__init__(path, read_metadata(found, path, **given), device)
        with sound(path, "TorchScript file"), warnings.catch_warnings(record=True):
            self.network = torch.jit.load(str(path), map_location=self.device).eval()


def archive_metadata(path: str | Path) -> dict[str, Any]:
    """Return the metadata of a torch archive: JSON in `.../extra/config.txt` or `metadata.json`.

    Raises:
        ModelError: if the file is no archive.
    """
    with sound(path, "torch archive"), zipfile.ZipFile(path) as archive:
        for ending in ("metadata.json", f"extra/{ENTRY}"):
            for entry in archive.infolist():
                if entry.filename.endswith(ending) and entry.file_size <= MAX_TEXT:
                    found = json.loads(archive.read(entry))
                    if isinstance(found, dict):
                        return found
    return {}
