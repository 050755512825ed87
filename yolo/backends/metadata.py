# SPDX-License-Identifier: Apache-2.0
"""What an exported file says of itself: read, checked, completed by the user. No torch.

Values are text in Python's notation (ONNX), or plain data (TorchScript's JSON, OpenVINO's YAML).
Unknown keys are ignored; nothing is evaluated but literals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Metadata:
    """A model's facts.

    Attributes:
        task: name of the task.
        names: class id -> name.
        imgsz: (h, w) the network was made for, pixels.
        stride: largest stride, pixels.
        batch: images a call, binding where the batch isn't free.
        channels: of the images.
        kpt_shape: (keypoints, numbers of each), or None.
        dynamic: False: all sizes are fixed; "batch": the batch is free; True: the image, too.
        nms: outputs are finished rows.
        raw: takes raw images (`preprocess="raw"`).
        info: `yolo_info`: input policy, own modules, digest of the weights.
    """

    task: str
    names: Mapping[int, str]
    imgsz: tuple[int, int] = (640, 640)
    stride: int = 32
    batch: int = 1
    channels: int = 3
    kpt_shape: tuple[int, int] | None = None
    dynamic: bool | str = False
    nms: bool = False
    raw: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)


def read_metadata(found: Mapping[str, Any], origin: str, **given: Any) -> Metadata:
    """Read what a file says of itself.

    Args:
        found: value by key, as the file has them.
        origin: the file, for messages.
        **given: what the user says: `task`, `names`, `imgsz`, `kpt_shape`; it fills what is absent.

    Raises:
        ModelError: if `task` or `names` are absent on both sides, contradict each other, or a
            value isn't what it must be.
    """
    raise NotImplementedError
