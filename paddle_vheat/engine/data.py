"""The order of the data and its augmentation, both functions of the seed and the position alone.

Every sample that training will ever see has a position 0, 1, 2 ... across epochs and processes. The seed and
the position decide which image it is and what its augmentation draws, so a run continued at any iteration, or
with another number of loader workers, sees exactly what it would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from paddle_vheat._paddle import paddle


def derived_seed(*parts: int) -> int:
    """A 32-bit seed from several numbers, well mixed."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class IterationSampler(paddle.io.BatchSampler):
    """Batches of (position, index) from ``start`` to ``iters`` iterations, for one process of several.

    Epochs are shuffled by (seed, epoch) and follow each other without a gap: a batch may span two, and none is
    cut short. In each iteration, process ``rank`` takes the ``rank``-th of ``ranks`` slices of
    ``batch_size`` samples.
    """

    def __init__(
        self, length: int, batch_size: int, iters: int, seed: int, start: int = 0, rank: int = 0, ranks: int = 1
    ) -> None:
        if length < 1:
            raise ValueError("the training set is empty")
        self.length = length
        self.batch_size = batch_size
        self.iters = iters
        self.seed = seed
        self.start = start
        self.rank = rank
        self.ranks = ranks

    def __len__(self) -> int:
        return self.iters - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, int)
        for iteration in range(self.start, self.iters):
            first = (iteration * self.ranks + self.rank) * self.batch_size
            batch = []
            for position in range(first, first + self.batch_size):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
                batch.append((position, int(order[position % self.length])))
            yield batch


class SeededDataset(paddle.io.Dataset):
    """A dataset whose random augmentation is decided by (seed, position); items are asked by (position, index).

    Args:
        dataset: gives a dict per index; entries that are no arrays are dropped.
        seed: of the run.
        check: called with (index, item) to raise on a sample that cannot be trained on.
    """

    def __init__(self, dataset: Any, seed: int, check: Any = None) -> None:
        super().__init__()
        self.dataset = dataset
        self.seed = seed
        self.check = check

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        position, index = key
        states = random.getstate(), np.random.get_state()
        seed = derived_seed(self.seed, position)
        random.seed(seed)
        np.random.seed(seed)
        try:
            item = self.dataset[index]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
        if self.check is not None:
            self.check(index, item)
        arrays = {name: value for name, value in item.items() if isinstance(value, np.ndarray)}
        return {**arrays, "index": np.asarray(index, np.int64)}
