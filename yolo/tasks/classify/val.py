# SPDX-License-Identifier: Apache-2.0
"""Validation of classifiers: the first five classes of each centre crop. B images, C classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from yolo.engine import inputs
from yolo.engine.coco_eval import Objects
from yolo.engine.draw import Marks
from yolo.engine.metrics import ImageRecord
from yolo.engine.validator import Validator
from yolo.errors import DataError
from yolo.tasks.classify.data import CenterLoader
from yolo.tasks.classify.metrics import FIRST, ClassifyMetrics

if TYPE_CHECKING:
    from yolo.cfg.schema import ValConfig
    from yolo.data.cache import ImageStore
    from yolo.data.datasets import DatasetSpec
    from yolo.data.index import LabelIndex
    from yolo.data.loader import Batch
    from yolo.engine.ranks import Ranks
    from yolo.nn.model import BaseModel


class ClassificationValidator(Validator):
    """Scores a classifier."""

    def build_loader(self, net: BaseModel) -> CenterLoader:
        """Build the loader of the images that `data` and `split` name, for a model by itself."""
        config = self.args
        data = inputs.dataset(config, self.spec, None)
        if not config.single_cls:
            data = number_as(data, net.names)
        cache = inputs.cache_folder(config, None)
        index = inputs.scan(config, self.spec, data, config.split, cache, config.fraction)
        size = inputs.input_size(config.imgsz, net.stride)
        return center_loader(
            config, index, inputs.image_store(config, index, size, data, fit=False)
        )

    def make_metrics(self) -> ClassifyMetrics:
        """Return empty accuracies."""
        return ClassifyMetrics(self.names, self.save_dir)

    def postprocess(self, decoded: Tensor) -> list[np.ndarray]:
        """Keep the most probable classes.

        Args:
            decoded: (B, C) probabilities.

        Returns:
            B arrays (k, 2), k at most `FIRST`: class and probability, best first.
        """
        probs = decoded.float().cpu().numpy()
        order = np.argsort(-probs, axis=1, kind="stable")[:, :FIRST]
        return [np.stack([o, p[o]], axis=1) for o, p in zip(order, probs, strict=True)]

    def to_objects(self, batch: Batch, i: int, output: np.ndarray) -> Objects:
        """Return the classes with their probabilities; their boxes mean nothing."""
        return Objects.found(output[:, 0], np.zeros((len(output), 4)), output[:, 1])

    def json_rows(self, record: ImageRecord) -> list[dict[str, Any]]:
        """Return a row for each of the first five classes; `category_id` is class id + 1."""
        return [
            {
                "image_id": record.image_id,
                "file_name": Path(record.path).name,
                "category_id": class_id + 1,
                "score": score,
            }
            for class_id, score in _pairs(record)
        ]

    def text_rows(self, record: ImageRecord) -> list[str]:
        """Return `probability name`, as predictions are saved."""
        return [f"{score:.2f} {self.names[class_id]}" for class_id, score in _pairs(record)]

    def output_marks(self, output: np.ndarray) -> Marks:
        """Return a frame around the image, with the most probable class."""
        assert self.dataloader is not None
        height, width = self.dataloader.store.size
        box = np.array([[0, 0, width, height]], dtype=np.float32)
        return Marks(box, output[:1, 0].astype(np.int64), output[:1, 1])


def _pairs(record: ImageRecord) -> list[tuple[int, float]]:
    assert record.found.scores is not None
    return list(zip(record.found.classes.tolist(), record.found.scores.tolist(), strict=True))


def center_loader(
    config: ValConfig, index: LabelIndex, store: ImageStore, ranks: Ranks | None = None
) -> CenterLoader:
    """Build the loader of validation batches, of this rank's share of them."""
    return CenterLoader(
        index,
        store,
        batch=int(config.batch),
        size=store.size,
        workers=inputs.worker_count(config),
        rank=ranks.rank if ranks else 0,
        world=ranks.world if ranks else 1,
    )


def number_as(data: DatasetSpec, names: dict[int, str]) -> DatasetSpec:
    """Give classes the ids that a model has for their names, however many folders there are.

    A model that knows none of the names (its own are numbers, say) takes the ids as they are.

    Raises:
        DataError: if the model knows some of the names, but not all.
    """
    unknown = sorted(set(data.names.values()) - set(names.values()))
    if len(unknown) == len(data.names):
        return data
    if unknown:
        raise DataError(
            f"{data.where}: expected classes that the model knows ({len(names)}: "
            f"{', '.join(list(names.values())[:10])}...), found {', '.join(unknown[:10])}; "
            "validate on other data, or train the model on these"
        )
    return replace(data, names=dict(names))
