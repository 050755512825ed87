# SPDX-License-Identifier: Apache-2.0
"""Labels beyond boxes on their way into a batch. B images, n objects of the image with the most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolo.data.sample import Sample
from yolo.errors import DataError


def labels_of(sample: Sample, kind: str, *shape: int) -> Any:
    """Return the labels of one kind of a sample's objects, ignored regions left out.

    Args:
        sample: the sample.
        kind: a field of `Instances`.
        shape: of an object's labels, for kinds that are arrays.

    Returns:
        A list, or an array (objects, *shape).

    Raises:
        DataError: if the objects have lost them on the way.
    """
    rows = np.flatnonzero(~sample.instances.ignore)
    found = getattr(sample.instances, kind)
    if isinstance(found, list):
        return [found[row] for row in rows]
    if not len(rows):
        return np.zeros((0, *shape))
    if found is None or found.shape[1:] != shape:
        wanted = (
            f"{kind} of shape {(len(rows), *shape)}" if shape else f"{kind} of {len(rows)} objects"
        )
        raise DataError(
            f"{sample.path}: expected {wanted}, found {getattr(found, 'shape', None)}; a "
            f"transform of your own has to keep `instances.{kind}`"
        )
    return found[rows]


def padded(found: Sequence[np.ndarray], *shape: int) -> Tensor:
    """Join what B images have, each (objects, *shape), to (B, n, *shape) float32; 0 is padding."""
    joined = np.zeros((len(found), max(map(len, found), default=0), *shape), dtype=np.float32)
    for row, values in zip(joined, found, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(joined)
