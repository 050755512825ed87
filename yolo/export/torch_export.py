# SPDX-License-Identifier: Apache-2.0
"""Write programs of torch.export (.pt2), or packages of AOTInductor compiled from them."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from yolo.errors import ExportError, MissingPackageError

if TYPE_CHECKING:
    from yolo.export.formats import Job
    from yolo.export.graph import ExportGraph


def write(graph: ExportGraph, example: Tensor, path: Path, job: Job) -> None:
    """Export a graph, and write it with its metadata as `extra/config.txt`.

    Raises:
        MissingPackageError: if it is to be compiled, and there is no C++ compiler.
        ExportError: if the compiler fails.
    """
    if job.config.compile:
        check_compiler()
    free = {axis: torch.export.Dim.DYNAMIC for axis in job.axes.get(job.inputs[0], {})}
    with torch.no_grad(), warnings.catch_warnings(record=True), _sides_of_one():
        program = torch.export.export(graph, (example,), dynamic_shapes=(free,) if free else None)
        if not job.config.compile:
            extra: Any = {"config.txt": json.dumps(job.metadata)}
            torch.export.save(program, str(path), extra_files=extra)
            return
        from torch._inductor import aoti_compile_and_package

        try:
            aoti_compile_and_package(program, package_path=str(path))
        except RuntimeError as error:
            faults = [line.strip() for line in str(error).splitlines() if "error:" in line]
            raise ExportError(
                f"compile=True: {(faults or [str(error)])[0][:300]}; AOTInductor compiles C++ "
                "with the headers of Python (apt install python3-dev) and OpenMP"
            ) from error


def _sides_of_one() -> AbstractContextManager[Any]:
    """Let torch not take it for granted that free sizes of maps are larger than 1.

    The switch is where `torch.onnx` uses it; torch 2.6 has none.
    """
    config: Any = importlib.import_module("torch.fx.experimental._config")
    known = hasattr(config, "backed_size_oblivious")
    return config.patch(backed_size_oblivious=True) if known else nullcontext()


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
