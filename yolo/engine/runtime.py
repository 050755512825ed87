# SPDX-License-Identifier: Apache-2.0
"""Where and how a run takes place: device, precision, seeds, versions."""

from __future__ import annotations

import contextlib
import os
import platform
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import yolo
from yolo.errors import ConfigError


def listed_devices(device: Any) -> list[str]:
    """Return what a `device` option names, one entry a device; [] for None.

    Args:
        device: as users write it: [0, 1], "0,1", "cuda:1", "cpu".
    """
    if device is None or isinstance(device, torch.device):
        return [] if device is None else [str(device)]
    parts = device if isinstance(device, (list, tuple)) else str(device).split(",")
    return [str(part).strip() for part in parts if str(part).strip()]


def select_device(device: Any = None) -> torch.device:
    """Turn what users write into a torch device.

    Args:
        device: None or "" (the first CUDA device if there is one, else the CPU), "cpu", "mps",
            "cuda", "cuda:1", 0, "0", [0], or a torch.device.

    Raises:
        ConfigError: if the device doesn't exist here, or several are asked for.
    """
    if isinstance(device, torch.device):
        return device
    text = ",".join(map(str, device)) if isinstance(device, (list, tuple)) else str(device or "")
    if device == 0 and not isinstance(device, bool):
        text = "0"
    text = text.strip().lower().removeprefix("cuda:")
    if text in {"", "none"}:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if text == "cpu":
        return torch.device("cpu")
    if text == "mps":
        if torch.backends.mps.is_available():
            return torch.device("mps")
        raise ConfigError("device='mps': this machine has no MPS device; use device='cpu'")
    if text == "cuda":
        text = "0"
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ConfigError(
            f"device={device!r}: expected 'cpu', 'mps', 'cuda', or a CUDA index such as 0"
        )
    wanted = [int(i) for i in text.split(",")]
    if max(wanted) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={device!r}: this machine has {torch.cuda.device_count()} CUDA device(s); "
            "use device='cpu' or a smaller index"
        )
    if len(wanted) > 1:
        raise ConfigError(f"device={device!r}: only train uses several devices; name one")
    return torch.device("cuda", wanted[0])


def autocast_dtype(amp: bool | str, device: torch.device) -> torch.dtype | None:
    """Return the dtype that autocast shall use, or None for plain float32.

    `amp=True` means bf16 where a CUDA device supports it, else fp16; on the CPU it means float32,
    because only some CPUs gain from bf16: ask for it with `amp="bf16"`.

    Raises:
        ConfigError: if the precision can't be used on the device.
    """
    if amp in {False, "fp32"}:
        return None
    if device.type == "cuda":
        if amp == "fp16":
            return torch.float16
        if amp == "bf16" or torch.cuda.is_bf16_supported():
            return torch.bfloat16
        return torch.float16
    if amp == "fp16":
        raise ConfigError(f"amp='fp16' needs a CUDA device, found {device}; use amp='bf16'")
    return torch.bfloat16 if amp == "bf16" else None


@contextlib.contextmanager
def reproducible(seed: int, deterministic: bool) -> Iterator[None]:
    """Seed every generator for a run, and put all of them back as they were afterwards.

    Args:
        seed: for Python's, NumPy's and torch's generators.
        deterministic: ask torch for deterministic kernels (a warning where there is none).
    """
    before = generator_states()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    was = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        # A pass over the memory of every result, before it is written: nothing reads it there.
        memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(was, warn_only=warn)
        restore_generators(before)


def generator_states() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators as plain data and tensors."""
    drawn: Any = np.random.get_state()
    name, keys, position, has_gauss, gauss = drawn
    version, internal, gauss_next = random.getstate()
    return {
        "python": [version, torch.tensor(internal), gauss_next],  # quicker to store than numbers
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_generators(states: dict[str, Any]) -> None:
    """Undo what happened since `generator_states` returned `states`."""
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(torch.as_tensor(internal).tolist()), gauss_next))
    name, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(states["torch"].cpu())
    for index, state in enumerate(states["cuda"]):
        if index < torch.cuda.device_count():
            torch.cuda.set_rng_state(state.cpu(), index)


def usable_cores() -> int:
    """Return how many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {
        "yolo": yolo.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        # platform.platform() would run a program, `uname -p`.
        "platform": f"{platform.system()}-{platform.release()}-{platform.machine()}",
    }
