# SPDX-License-Identifier: Apache-2.0
"""Write programs of torch.export (.pt2), or packages of AOTInductor compiled from them."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from yolo.errors import MissingPackageError
from yolo.export.metadata import as_json

if TYPE_CHECKING:
    from yolo.export.formats import Job
    from yolo.export.graph import ExportGraph


def write(graph: ExportGraph, example: Tensor, path: Path, job: Job) -> None:
    """Export a graph, and write it with its metadata as `extra/config.txt`.

    Raises:
        MissingPackageError: if it is to be compiled, and there is no C++ compiler.
    """
    if job.config.compile:
        check_compiler()
    free = {axis: torch.export.Dim.DYNAMIC for axis in job.axes.get(job.inputs[0], {})}
    with torch.no_grad(), warnings.catch_warnings(record=True):
        program = torch.export.export(graph, (example,), dynamic_shapes=(free,) if free else None)
        if not job.config.compile:
            extra: Any = {"config.txt": as_json(job.metadata)}
            torch.export.save(program, str(path), extra_files=extra)
            return
        from torch._inductor import aoti_compile_and_package

        aoti_compile_and_package(program, package_path=str(path))


def check_compiler() -> None:
    """Look for what AOTInductor compiles with.

    Raises:
        MissingPackageError: if there is none.
    """
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    if not any(shutil.which(name) for name in wanted):
        raise MissingPackageError(
            f"compile=True needs a C++ compiler (looked for {' and '.join(wanted)}): apt install "
            "g++, or name yours in the environment variable CXX"
        )


def compiled(path: Path, device: torch.device) -> Any:
    """Return what runs a package of AOTInductor on one NumPy array."""
    from torch._inductor import aoti_load_package

    network = aoti_load_package(str(path))

    def run(x: np.ndarray) -> list[np.ndarray]:
        outputs = network(torch.from_numpy(x).to(device))
        several = (outputs,) if isinstance(outputs, Tensor) else outputs
        return [output.cpu().numpy() for output in several]

    return run
