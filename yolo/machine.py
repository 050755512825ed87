# SPDX-License-Identifier: Apache-2.0
"""What this machine has: the versions and devices that a report of a fault should name."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torchvision", "opencv-python", "opencv-python-headless", "onnxruntime")


def machine_facts() -> dict[str, str]:
    """Return name -> version or description, in the order to print; imports torch."""
    import torch

    from yolo.engine.runtime import usable_cores, versions

    facts = dict(versions())
    facts |= {package: installed_version(package) for package in PACKAGES}
    facts["CPU"] = f"{usable_cores()} usable cores, {torch.get_num_threads()} torch threads"
    facts["CPU bf16"] = bf16_instructions()
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts["CUDA"] = ", ".join(devices) or "no device"
    return facts


def installed_version(package: str) -> str:
    """Return the version of a distribution, or "not installed"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def bf16_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name the CPU's bf16 instructions: with them `amp="bf16"` is faster than float32.

    Args:
        cpuinfo: the kernel's description of the processors; Linux alone has it.
    """
    try:
        flags = set(cpuinfo.read_text(encoding="utf-8").split())
    except OSError:
        return "unknown on this system"
    return ", ".join(sorted(flags & {"avx512_bf16", "amx_bf16", "bf16"})) or "none"
