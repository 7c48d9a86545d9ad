"""The order of the data and its augmentation, both functions of the seed and the position alone; and their reading.

Every sample that training will ever see has a position 0, 1, 2 ... across epochs and processes. The seed and
the position decide which image it is and what its augmentation draws, so a run continued at any iteration, or
with another number of loader workers, sees exactly what it would have seen.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_vheat._paddle import paddle
from paddle_vheat.cpu import count_cores
from paddle_vheat.data.image_file import check_header
from paddle_vheat.errors import DataError, UserError

BATCHES_PER_WORKER = 2  # one being read, one ready


def max_workers() -> int:
    """More loader processes than this only take memory."""
    return max(8, 4 * count_cores())


def check_workers(count: int, where: str) -> None:
    if not 0 <= count <= max_workers():
        raise UserError(
            f"{where} must be from 0 to {max_workers()} on this machine of {count_cores()} cores, got {count}"
        )


def derived_seed(*parts: int) -> int:
    """A 32-bit seed from several numbers, well mixed."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


# --- samples and batches ----------------------------------------------------------------------------


def sample_files(dataset: Any, index: int) -> list[str]:
    """Names of the files that a sample is read from; [] for a data set that names none."""
    if hasattr(dataset, "files"):
        return [str(name) for name in dataset.files(int(index))]
    files = getattr(dataset, "file_list", None)
    return [] if files is None else [str(name) for name in files[int(index)] if isinstance(name, (str, os.PathLike))]


def read_sample(dataset: Any, index: int) -> Any:
    """A sample of a data set; whatever goes wrong names its files.

    Raises:
        DataError: for what a data set or an image library says of a file.
        RuntimeError: for other errors, with their traceback: faults of a transform.
    """
    files = sample_files(dataset, index)
    for name in files:
        if os.path.isfile(name):
            check_header(name)
    try:
        return dataset[index]
    except UserError:
        raise
    except Exception as error:
        text = str(error)
        named = text if not files or any(name in text for name in files) else f"{files[0]}: {text}"
        if isinstance(error, (ValueError, OSError, AssertionError)) or type(error).__module__ == "cv2":
            raise DataError(named) from error
        raise RuntimeError(f"{named} ({type(error).__name__})") from error


def stack(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples of one size as a batch: arrays stacked by name, "meta" as a list; what is no array is dropped."""
    names = [name for name, value in samples[0].items() if isinstance(value, (np.ndarray, np.generic, int, float))]
    batch: dict[str, Any] = {name: np.stack([np.asarray(sample[name]) for sample in samples]) for name in names}
    batch["meta"] = [sample.get("meta", {}) for sample in samples]
    return batch


def to_tensors(batch: Any) -> Any:
    """The batch with its arrays as tensors, also in lists; "meta" stays as it is."""
    if isinstance(batch, dict):
        return {name: value if name == "meta" else to_tensors(value) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [to_tensors(value) for value in batch]
    return paddle.to_tensor(batch) if isinstance(batch, (np.ndarray, np.generic)) else batch


class SeededDataset:
    """A dataset whose random augmentation is decided by (seed, position); items are asked by (position, index)."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        position, index = key
        states = random.getstate(), np.random.get_state()
        seed = derived_seed(self.seed, position)
        random.seed(seed)
        np.random.seed(seed)
        try:
            return IndexedDataset(self.dataset)[index]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class IndexedDataset:
    """A dataset for evaluation: its items, each with its index in "meta"."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = read_sample(self.dataset, index)
        return {**item, "meta": {**item.get("meta", {}), "index": int(index)}}


@dataclass
class IterationSampler:
    """Batches of (position, index) from ``start`` to ``iters`` iterations, for one process of several.

    Epochs are shuffled by (seed, epoch) and follow each other without a gap: a batch may span two, and none is
    cut short. In each iteration, process ``rank`` takes the ``rank``-th of ``world_size`` slices of ``batch_size``
    samples. With ``drop_last`` an epoch ends before the batch that would span two.

    With ``groups``, the group of every sample, no batch has samples of two: they follow in the order in which they fill
    up. What is left of a group at the end of an epoch is filled up with its first samples of that epoch.
    """

    length: int
    batch_size: int
    iters: int
    seed: int
    start: int = 0
    rank: int = 0
    world_size: int = 1
    shuffle: bool = True
    drop_last: bool = False
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.length < 1:
            raise DataError("the training set is empty")
        total = self.batch_size * self.world_size
        self.epoch_length = self.length // total * total if self.drop_last and self.length >= total else self.length
        if self.groups is not None:
            _, counts = np.unique(self.groups, return_counts=True)
            self.epoch_length = int((-(-counts // self.batch_size) * self.batch_size).sum())

    def __len__(self) -> int:
        return self.iters - self.start

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the samples in the order of an epoch."""
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
        return order if self.groups is None else self._by_groups(order, self.groups[order])

    def _by_groups(self, order: np.ndarray, groups: np.ndarray) -> np.ndarray:
        batches = []
        for group in np.unique(groups):
            places = np.flatnonzero(groups == group)
            filled = np.resize(order[places], -(-len(places) // self.batch_size) * self.batch_size)
            last = places[np.minimum(np.arange(self.batch_size - 1, len(filled), self.batch_size), len(places) - 1)]
            batches += list(zip(last, filled.reshape(-1, self.batch_size)))
        return np.concatenate([batch for _, batch in sorted(batches, key=lambda pair: pair[0])])

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, int)
        for iteration in range(self.start, self.iters):
            first = (iteration * self.world_size + self.rank) * self.batch_size
            batch = []
            for position in range(first, first + self.batch_size):
                if position // self.epoch_length != epoch:
                    epoch = position // self.epoch_length
                    order = self.order(epoch)
                batch.append((position, int(order[position % self.epoch_length])))
            yield batch


# --- reading ----------------------------------------------------------------------------------------

_job: tuple[Any, Callable[[Any], Any]] | None = None  # in a worker: its data set and collate


def _start_worker(dataset: Any, collate: Any, parent: int) -> None:
    global _job
    gc.freeze()  # what is inherited must not be freed here
    # A signal to the whole group (Ctrl-C, a job manager) is the parent's to act on.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _job = dataset, collate


def _end_with(parent: int) -> None:
    """A killed parent closes nothing: without this its workers would wait for ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _read(keys: Sequence[Any]) -> Any:
    assert _job is not None
    dataset, collate = _job
    return collate([dataset[key] for key in keys])


def load_batches(
    dataset: Any, batches: Iterable[Sequence[Any]], num_workers: int = 0, collate: Callable[[Any], Any] = stack
) -> Generator[Any, None, None]:
    """Batches of a dataset as tensors, in order, read by ``num_workers`` processes or (0) by this one.

    In the place of ``paddle.io.DataLoader``, which on Paddle 3.2 waits for ever after an error in a dataset without
    workers and reports one in a worker as the worker's traceback. The processes read ahead, and a thread of the pool
    takes their batches in, while the model trains. They are forked before that thread is started, and use no more
    than NumPy and what the dataset itself uses, no Paddle.

    Args:
        dataset: gives a sample per key.
        batches: the keys of each batch.
        num_workers: processes; each holds two batches ready. Where the system cannot fork, 0 is taken.
        collate: samples to a batch of arrays.

    Raises:
        UserError, RuntimeError: as the dataset raises them; RuntimeError too if a worker was killed.
    """
    if not num_workers or "fork" not in multiprocessing.get_all_start_methods():
        for keys in batches:
            yield to_tensors(collate([dataset[key] for key in keys]))
        return
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)  # its thread pool does not survive a fork
    remaining = iter(batches)
    context = multiprocessing.get_context("fork")
    start = dataset, collate, os.getpid()
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=start)
    try:
        ahead = itertools.islice(remaining, BATCHES_PER_WORKER * num_workers)
        waiting = deque(pool.submit(_read, keys) for keys in ahead)
        while waiting:
            batch = waiting.popleft().result()
            waiting.extend(pool.submit(_read, keys) for keys in itertools.islice(remaining, 1))
            yield to_tensors(batch)
    except BrokenProcessPool as error:
        raise RuntimeError("a process that reads the data has ended: out of memory?") from error
    finally:
        with contextlib.suppress(Exception):
            pool.shutdown(wait=True, cancel_futures=True)
