# SPDX-License-Identifier: Apache-2.0
"""Which image has which place in an epoch: functions of (seed, epoch) alone.

n images; an object is a pair (image, class).

Source: drawing images by class, Shen et al., Relay Backpropagation, arXiv:1512.05830; here an image
counts with all its objects.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Last words of the generator's key; data/recipe and engine/inputs have others.
_SHUFFLE, _BALANCE = 2, 7


class EpochOrder:
    """Every image once, shuffled anew each epoch.

    Args:
        count: n.
        seed: of the run, >= 0.
        blocks: (block size, permutation) keeps this order inside blocks and shuffles the full
            blocks; used to keep images of like shape in one batch.
    """

    def __init__(self, count: int, seed: int, blocks: tuple[int, np.ndarray] | None = None) -> None:
        self.count = count
        self.seed = seed
        self.blocks = blocks
        self._current: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def places(self, epoch: int) -> np.ndarray:
        """Return (n,) dataset positions in the order of `epoch`."""
        if self._current[0] != epoch:
            self._current = (epoch, self._draw(epoch))
        return self._current[1]

    def _draw(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch, 0, _SHUFFLE])
        if self.blocks is None:
            return rng.permutation(self.count)
        size, sequence = self.blocks
        full = self.count // size
        head = sequence[: full * size].reshape(full, size)[rng.permutation(full)]
        return np.concatenate([head.reshape(-1), sequence[full * size :]])


class BalancedOrder(EpochOrder):
    """As many places as images, given so that objects of all classes come about equally often.

    Images without objects come once. Each other place goes to an image of the class of which the
    fewest objects were drawn so far; the images of a class take turns, in an order that is drawn
    anew each time round. So classes differ by a few objects at most, unless one hardly comes
    without another.

    Args:
        count: n.
        seed: of the run, >= 0.
        images: image of each object.
        classes: class id of each object.
    """

    def __init__(self, count: int, seed: int, images: np.ndarray, classes: np.ndarray) -> None:
        super().__init__(count, seed)
        ids, classes = np.unique(classes, return_inverse=True)
        pairs, times = np.unique(images * max(len(ids), 1) + classes, return_counts=True)
        owners, kinds = np.divmod(pairs, max(len(ids), 1))
        self.members = [owners[kinds == c] for c in range(len(ids))]
        self.background = np.setdiff1d(np.arange(count), owners)
        self.edges = np.searchsorted(owners, np.arange(count + 1))
        self.kinds, self.times = kinds, times

    def _draw(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch, 0, _BALANCE])

        def turns(members: np.ndarray) -> Iterator[int]:
            while True:
                yield from rng.permutation(members).tolist()

        queues = [turns(members) for members in self.members]
        seen = rng.random(len(queues))  # who comes first is drawn, too
        drawn = self.background.tolist()
        while len(drawn) < self.count:
            image = next(queues[int(seen.argmin())])
            objects = slice(self.edges[image], self.edges[image + 1])
            seen[self.kinds[objects]] += self.times[objects]
            drawn.append(image)
        return rng.permutation(drawn)
