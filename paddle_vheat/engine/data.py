"""The order of the data and its augmentation, both functions of the seed and the position alone.

Every sample that training will ever see has a position 0, 1, 2 ... across epochs and processes. The seed and
the position decide which image it is and what its augmentation draws, so a run continued at any iteration, or
with another number of loader workers, sees exactly what it would have seen.
"""

from __future__ import annotations

import atexit
import random
import signal
import sys
import weakref
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
from paddle.io.dataloader.collate import default_collate_fn

from paddle_vheat._paddle import paddle


def derived_seed(*parts: int) -> int:
    """A 32-bit seed from several numbers, well mixed."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class _Caught(paddle.io.Dataset):
    """A dataset whose sample is the error where there is one: it is to be raised by the process that trains."""

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self.dataset = dataset
        self.error: Exception | None = None  # of this process

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except Exception as error:
            self.error = error
            return error


def _collate(samples: list[Any]) -> Any:
    for sample in samples:
        if isinstance(sample, Exception):
            kind = next(k for k in (ValueError, OSError, Exception) if isinstance(sample, k))
            text = str(sample) if kind is not Exception else f"{type(sample).__name__}: {sample}"
            return {_ERRORS[kind]: np.frombuffer(f" {text}".encode(), np.uint8)}
    return default_collate_fn(samples)


_ERRORS: dict[type[Exception], str] = {ValueError: "a ValueError", OSError: "an OSError", Exception: "an error"}
_RAISED = {"a ValueError": ValueError, "an OSError": OSError, "an error": RuntimeError}


def _leave_signals_to_the_parent(worker: int) -> None:
    """A signal to the whole group (Ctrl-C, a job manager) must not end a worker: that would break off the parent."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


_loading: weakref.WeakSet[Any] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    """Workers that do not hear SIGTERM must be told to end, or the interpreter would wait for them."""
    for iterator in list(_loading):
        iterator._try_shutdown_all()


def load_batches(dataset: Any, num_workers: int, **how: Any) -> Generator[Any, None, None]:
    """Batches of a dataset by ``paddle.io.DataLoader(..., **how)``, whose handling of errors is made good.

    Left to itself, it waits for ever after an error in the dataset if it has no workers, hides it in a worker's
    traceback if it has, and leaves threads and workers behind when the caller stops early.

    Raises:
        ValueError, OSError: as the dataset raises them.
        RuntimeError: for its other errors, and if a worker was killed.
    """
    # A worker is forked, and inherits as locked what any other thread of ours has locked at that moment: then it
    # waits for ever. So it must not need OpenCV's thread pool, nor Paddle's allocator (which shared memory does).
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)
    caught = _Caught(dataset)
    fixed = {"collate_fn": _collate, "worker_init_fn": _leave_signals_to_the_parent, "use_shared_memory": False}
    iterator = iter(paddle.io.DataLoader(caught, num_workers=num_workers, **fixed, **how))
    _loading.add(iterator)
    try:
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except SystemError as error:  # Paddle's own words are of a blocking queue
                raise RuntimeError("a process that reads the data has ended: killed, or out of memory?") from error
            kind = next(iter(batch)) if isinstance(batch, dict) else None
            if kind in _RAISED:
                message = batch[kind].numpy().astype(np.uint8).tobytes().decode()[1:]
                raise _RAISED[kind](message) from caught.error
            yield batch
    finally:
        iterator._try_shutdown_all()


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
