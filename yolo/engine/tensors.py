# SPDX-License-Identifier: Apache-2.0
"""NumPy arrays and torch tensors, handled alike.

Torch is never imported unless the data is a tensor already, so that exported models run without it;
`Array` lets readers of tensors (`boxes.xyxy.cpu().numpy()`) read NumPy arrays, too.
"""

from __future__ import annotations

import builtins
from typing import Any, cast

import numpy as np

from yolo.nn.rotated import array_module


class Array(np.ndarray):
    """A NumPy array that also answers to what scripts call on a predicted tensor."""

    def cpu(self) -> Array:
        """Return the array."""
        return self

    def numpy(self) -> np.ndarray:
        """Return the same numbers as a plain array."""
        return self.view(np.ndarray)

    def int(self) -> Array:
        """Return whole numbers, int32."""
        return cast(Array, self.astype(np.int32))

    def float(self) -> Array:
        """Return float32 numbers."""
        return cast(Array, self.astype(np.float32))

    def numel(self) -> builtins.int:
        """Return the number of elements."""
        return self.size


def as_array(data: Any) -> Any:
    """Return tensors as they are, anything else as an Array (float32 unless it has a type)."""
    if isinstance(data, Array) or hasattr(data, "detach"):
        return data
    typed = data if isinstance(data, np.ndarray) else np.asarray(data, dtype=np.float32)
    return typed.view(Array)


def to_numpy(data: Any) -> np.ndarray:
    """Return `data` as a NumPy array on the CPU."""
    return data if isinstance(data, np.ndarray) else data.detach().cpu().numpy()


def on_cpu(data: Any) -> Any:
    """Return a float32 copy on the CPU, of the same library."""
    if isinstance(data, np.ndarray):
        return np.array(data, dtype=np.float32, order="C")
    return data.detach().float().cpu().clone().contiguous()


def pick(data: Any, index: Any) -> Any:
    """Index the first axis with an int, slice, list, mask or array; an int keeps the axis.

    Raises:
        IndexError: if the index doesn't fit the axis.
    """
    places = np.arange(len(data))
    if not isinstance(index, slice):
        index = np.asarray(to_numpy(index) if hasattr(index, "detach") else index)
        index = index if index.size else np.zeros(0, np.int64)  # an empty list has no type
    try:
        rows = np.atleast_1d(places[index])
    except IndexError:
        rows = places[None]
    if rows.ndim != 1:
        raise IndexError(
            f"index {index} is out of range or no index for {len(data)} rows; "
            "expected an int, a slice, or a list, mask or array of one dimension"
        )
    if isinstance(data, np.ndarray):
        return data[rows]
    return data[array_module(data).from_numpy(rows.copy()).to(data.device)]


def move(data: Any, how: str, *args: Any, **kwargs: Any) -> Any:
    """Apply `cpu`, `numpy`, `cuda` or `to` to an array.

    Raises:
        TypeError: if a NumPy array is to be moved to a device other than the CPU.
    """
    if not isinstance(data, np.ndarray):
        return to_numpy(data) if how == "numpy" else getattr(data, how)(*args, **kwargs)
    if stays(how, *args, **kwargs):
        return data
    raise TypeError(
        f"expected a torch tensor to move with {how}(), got a NumPy array; "
        "convert it with torch.from_numpy first"
    )


def stays(how: str, *args: Any, **kwargs: Any) -> bool:
    """Tell whether a move of `move` ends on the CPU and changes no numbers."""
    targets = [str(target) for target in (*args, *kwargs.values())]
    return how in {"cpu", "numpy"} or targets == ["cpu"]
