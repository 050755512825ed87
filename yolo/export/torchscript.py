# SPDX-License-Identifier: Apache-2.0
"""Write TorchScript files, by tracing."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from yolo.export.formats import Job
    from yolo.export.graph import ExportGraph


def write(graph: ExportGraph, example: Tensor, path: Path, job: Job) -> None:
    """Trace a graph, and write it with its metadata as `extra/config.txt`.

    A traced graph takes images of any size and number; the metadata say for which it was proved.
    """
    with torch.no_grad(), warnings.catch_warnings(record=True):  # of what a trace can't follow
        traced = torch.jit.trace(graph, (example,), check_trace=False)
        torch.jit.save(traced, str(path), _extra_files={"config.txt": json.dumps(job.metadata)})
