# SPDX-License-Identifier: Apache-2.0
"""The detector: a network whose last row is a `Detect` head, or one that words are given to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from yolo.engine.words import check_names, embed, embeddings_of, unit_rows
from yolo.errors import ModelError
from yolo.nn.model import BaseModel
from yolo.tasks.detect.world import WorldDetect


class DetectionModel(BaseModel):
    """A YOLOv8 detector."""

    @property
    def takes_words(self) -> bool:
        """Whether its classes are words that can be exchanged."""
        return isinstance(self.head, WorldDetect)

    def _init_head(self) -> None:
        super()._init_head()
        if isinstance(self.head, WorldDetect):
            self.yaml["class_width"] = self.head.class_width
            words = self.yaml.pop("words", None)
            rows = None if words is None else unit_rows(words)
            if rows is not None and len(rows) == self.nc:
                self.head.set_text(rows)
                self.yaml["words"] = rows

    def set_classes(
        self, names: Sequence[str] | Mapping[int, str], embeddings: Any = None
    ) -> DetectionModel:
        """Look for other things from now on.

        Args:
            names: the words, in the order of the classes.
            embeddings: what `yolo.engine.words.embed` understands; None: the network has them
                already, since these words are among its own.

        Raises:
            ModelError: if the classes are fixed, a name is empty or there twice, or embeddings are
                absent, too few, too many, or of another width.
            YoloError: if a file or an encoder can't be used.
        """
        if not isinstance(self.head, WorldDetect):
            raise ModelError(
                f"the classes of this network, which ends in {type(self.head).__name__}, are "
                "fixed; expected a network such as yolov8n-worldv2.yaml"
            )
        words = check_names(names)
        known = embeddings is None
        rows = embeddings_of(self.yaml, words) if known else embed(words, embeddings)
        self.head.set_text(rows)
        self.yaml |= {"nc": len(words), "names": dict(enumerate(words)), "words": rows}
        return self
