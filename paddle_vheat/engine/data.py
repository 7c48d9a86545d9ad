"""The order of the data and its augmentation, both functions of the seed and the position alone.

Every sample that training will ever see has a position 0, 1, 2 ... across epochs and processes. The seed and
the position decide which image it is and what its augmentation draws, so a run continued at any iteration, or
with another number of loader workers, sees exactly what it would have seen.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import itertools
import multiprocessing
import os
import random
import signal
import sys
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from paddle.io.dataloader.collate import default_collate_fn

from paddle_vheat._paddle import paddle
from paddle_vheat.data.image_file import check_header

MOST_WORKERS = 256


def derived_seed(*parts: int) -> int:
    """A 32-bit seed from several numbers, well mixed."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def sample_files(dataset: Any, index: int) -> list[str]:
    """Names of the files that a sample of a data set is read from; [] for a data set without ``file_list``."""
    files = getattr(dataset, "file_list", None)
    return [] if files is None else [str(name) for name in files[int(index)] if isinstance(name, (str, os.PathLike))]


def read_sample(dataset: Any, index: int) -> Any:
    """A sample of a data set; whatever goes wrong names its files.

    Raises:
        ValueError, OSError: as the data set raises them, and for an image whose header cannot be.
        RuntimeError: for its other errors.
    """
    files = sample_files(dataset, index)
    for name in files:
        if os.path.isfile(name):
            check_header(name)
    try:
        return dataset[index]
    except Exception as error:
        kind, text = _told(error)
        if not files or any(name in text for name in files):
            raise kind(text) from error
        raise kind(f"{files[0]}: {text}") from error


def load_batches(dataset: Any, batches: Iterable[Sequence[Any]], num_workers: int = 0) -> Generator[Any, None, None]:
    """Batches of a dataset as tensors, in order, read by ``num_workers`` processes or (0) by this one.

    In the place of ``paddle.io.DataLoader``, which on Paddle 3.2 waits for ever after an error in a dataset without
    workers, reports one in a worker as the worker's traceback, and starts threads: a worker that is forked while
    another thread holds a lock (of Paddle's allocator, of OpenCV) inherits it locked, and hangs. Here no thread is
    started, and workers need no more than NumPy and what the dataset itself uses.

    Args:
        dataset: gives an array, or a dict or tuple of arrays, per key.
        batches: the keys of each batch.
        num_workers: processes; each holds one batch ready. Where the system cannot fork, 0 is taken.

    Raises:
        ValueError, OSError: as the dataset raises them.
        RuntimeError: for its other errors, and if a worker was killed.
    """
    if num_workers and "fork" in multiprocessing.get_all_start_methods():
        yield from _by_workers(dataset, iter(batches), num_workers)
        return
    for keys in batches:
        try:
            batch = default_collate_fn([dataset[key] for key in keys])
        except Exception as error:
            kind, text = _told(error)
            raise kind(text) from error
        yield _tensors(batch)


def _by_workers(dataset: Any, batches: Iterator[Sequence[Any]], count: int) -> Generator[Any, None, None]:
    workers = _Workers(dataset, count)
    try:
        # Batch i is that of worker i modulo count, which has its next keys before it has delivered.
        waiting: deque[int] = deque()
        for number, keys in enumerate(itertools.islice(batches, 2 * count)):
            workers.ask(number % count, keys)
            waiting.append(number % count)
        while waiting:
            worker = waiting.popleft()
            batch = workers.answer(worker)
            for keys in itertools.islice(batches, 1):
                workers.ask(worker, keys)
                waiting.append(worker)
            yield _tensors(batch)
    finally:
        workers.close()


class _Workers:
    """Processes that read batches; they end when the pipe to them is closed."""

    alive: weakref.WeakSet[_Workers] = weakref.WeakSet()

    def __init__(self, dataset: Any, count: int) -> None:
        self.pipes: list[Any] = []
        self.processes: list[Any] = []
        self.alive.add(self)
        if "cv2" in sys.modules:
            sys.modules["cv2"].setNumThreads(0)  # its thread pool does not survive a fork
        context = multiprocessing.get_context("fork")
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=self._serve, args=(dataset, theirs, ours), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    @classmethod
    def _serve(cls, dataset: Any, pipe: Any, parents: Any) -> None:
        gc.freeze()  # what is inherited must not be freed here
        # A signal to the whole group (Ctrl-C, a job manager) is the parent's to act on.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        # A pipe is closed when nobody has it open any more.
        for inherited in [parents, *(other for workers in cls.alive for other in workers.pipes)]:
            inherited.close()
        with contextlib.suppress(EOFError, OSError):  # the parent has closed the pipe, or is gone
            while True:
                keys = pipe.recv()
                try:
                    answer: tuple[Any, Any] = (None, default_collate_fn([dataset[key] for key in keys]))
                except Exception as error:
                    answer = _told(error)
                pipe.send(answer)

    def ask(self, worker: int, keys: Sequence[Any]) -> None:
        with contextlib.suppress(OSError):  # a worker that is gone is missed when it should answer
            self.pipes[worker].send(keys)

    def answer(self, worker: int) -> Any:
        try:
            kind, content = self.pipes[worker].recv()
        except (EOFError, OSError) as error:
            self.processes[worker].join(timeout=5)
            code = self.processes[worker].exitcode
            raise RuntimeError(f"a process that reads the data has ended (code {code}): out of memory?") from error
        if kind is not None:
            raise kind(content)
        return content

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join()
        self.alive.discard(self)

    @classmethod
    def close_all(cls) -> None:
        for workers in list(cls.alive):
            workers.close()


# They do not hear the SIGTERM with which the interpreter ends its child processes, and it would wait for them.
atexit.register(_Workers.close_all)


def _told(error: Exception) -> tuple[type[Exception], str]:
    """An error's kind and text, as the commands report them."""
    for kind in (ValueError, OSError):
        if isinstance(error, kind):
            return kind, str(error)
    return RuntimeError, f"{type(error).__name__}: {error}"


def _tensors(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {name: _tensors(value) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [_tensors(value) for value in batch]
    return paddle.to_tensor(batch)


class IterationSampler:
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
            item = read_sample(self.dataset, index)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
        if self.check is not None:
            self.check(index, item)
        arrays = {name: value for name, value in item.items() if isinstance(value, np.ndarray)}
        return {**arrays, "index": np.asarray(index, np.int64)}
