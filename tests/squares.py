# SPDX-License-Identifier: Apache-2.0
"""Moving squares, and "networks" of four tasks that find them by their colours."""

from __future__ import annotations

import cv2
import numpy as np
import torch

NAMES = {0: "red", 1: "green", 2: "blue"}
SIDE = 64


def frame(*squares, shape=(SIDE, SIDE)):
    """Draw squares (class id, x, y of the corner, side, score) on black; BGR."""
    image = np.zeros((*shape, 3), np.uint8)
    for class_id, x, y, side, score in squares:
        image[y : y + side, x : x + side, 2 - class_id] = round(score * 255)
    return image


def crossing(count=8):
    """Two squares of one colour that move against each other, in rows of their own."""
    return [frame((0, 2 + 5 * i, 6, 16, 0.9), (0, 44 - 5 * i, 40, 16, 0.8)) for i in range(count)]


def write_video(path, frames):
    """Write frames as a video."""
    height, width = frames[0].shape[:2]
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (width, height))
    for image in frames:
        video.write(image)
    video.release()
    return path


FRAMES = crossing()


class Finder:
    """A backend that sees squares; a square's brightness is its score.

    Keypoints are the box's corners, masks the square, angles nought.
    """

    names = NAMES
    stride, imgsz, channels, dynamic, kpt_shape = 32, (SIDE, SIDE), 3, True, (4, 3)
    model = None

    def __init__(self, task, tensors=True):
        self.task, self.tensors = task, tensors

    def __call__(self, images):
        images = images - images.min(-1, keepdims=True)  # no grey: padding isn't a square
        found = [self._rows(image) for image in images]
        out = np.zeros((len(images), self._rows(images[0] * 0).shape[1], 8), np.float32)
        for i, rows in enumerate(found):
            out[i, :, : len(rows)] = rows.T
        protos = np.where(images[:, 2::4, 2::4, ::-1] > 20, 1.0, -1.0).transpose(0, 3, 1, 2)
        outputs = (out, protos.astype(np.float32)) if self.task == "segment" else (out,)
        outputs = tuple(map(torch.from_numpy, outputs)) if self.tensors else outputs
        return outputs if self.task == "segment" else outputs[0]

    def _rows(self, image):
        rows = [np.zeros((0, 7 + {"segment": 3, "pose": 12, "obb": 1}.get(self.task, 0)))]
        for class_id in range(3):
            plane = image[..., 2 - class_id]
            _, _, stats, _ = cv2.connectedComponentsWithStats((plane > 20).astype(np.uint8))
            for x, y, w, h, area in stats[1:].tolist():
                if area < 20:
                    continue
                one = np.eye(3)[class_id]
                corners = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
                extra = {
                    "segment": one,
                    "pose": np.ravel([[*corner, 0.9] for corner in corners]),
                    "obb": [0.0],
                }.get(self.task, [])
                score = plane[y + h // 2, x + w // 2] / 255
                rows.append([[x + w / 2, y + h / 2, w, h, *(one * score), *extra]])
        return np.concatenate(rows)


def found_by(monkeypatch, model, tensors=True):
    """Let a facade find squares, whatever its weights."""
    from yolo.backends.torch import TorchBackend

    backend = Finder(model.task, tensors)
    monkeypatch.setattr(TorchBackend, "reuse", lambda *args, **kwargs: backend)
    model.overrides["imgsz"] = SIDE
    return model
