"""What a command is given, checked before it starts: all mistakes are reported together."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from paddle_vheat._files import cache_home, write_atomically
from paddle_vheat._paddle import paddle
from paddle_vheat.cpu import count_cores
from paddle_vheat.data.image_file import has_orientation
from paddle_vheat.engine.checkpoint import read_resumed
from paddle_vheat.engine.evaluate import gathered
from paddle_vheat.engine.hooks import restore_tensors, untrained_state
from paddle_vheat.engine.loader import load_batches, sample_files, to_tensors
from paddle_vheat.engine.task import Task
from paddle_vheat.errors import ConfigError, DataError, UserError
from paddle_vheat.weights.loading import fitted_values

MAX_REPORTED = 20
CHECKED_WHOLE = 3000
"""A data set of up to so many samples is checked whole by default (Cityscapes), of a larger one a sample."""

SAMPLE = 1000
WORKERS_FROM = 100  # samples; below, starting processes takes longer than they save
BATCH = 8


class Report:
    """Mistakes that were found so far.

    Attributes:
        problems: their texts, each once.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._first: Exception | None = None

    def add(self, problems: list[str]) -> None:
        self.problems += [problem for problem in dict.fromkeys(problems) if problem not in self.problems]

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Inside, a mistake of the user's ends the block and is noted."""
        try:
            yield
        except (UserError, OSError) as error:
            before = len(self.problems)
            self.add(getattr(error, "problems", [str(error)]))
            if len(self.problems) > before:
                self._first = self._first or error

    def close(self) -> None:
        """Raise what was noted: a single error as it was, several as one :class:`UserError`.

        In a distributed run, all processes raise what any of them found.
        """
        for problems in gathered(self.problems):
            self.add(problems)
        count, first = len(self.problems), self._first
        if first is not None and len(getattr(first, "problems", [first])) == count <= MAX_REPORTED:
            raise first
        if count:
            raise UserError(shortened(self.problems)) from first


def shortened(problems: list[str]) -> str:
    """Problems below each other, the first of them if there are many; a single one as it is."""
    if len(problems) == 1:
        return problems[0]
    more = [f"... and {len(problems) - MAX_REPORTED} more"] if len(problems) > MAX_REPORTED else []
    return "\n  ".join([f"{len(problems)} mistakes, found before the start:", *problems[:MAX_REPORTED], *more])


# --- data -------------------------------------------------------------------------------------------


def which_samples(length: int, which: str | int) -> np.ndarray:
    """Indices of the samples to check, spread evenly: "all", "none", so many, or "auto" (see ``CHECKED_WHOLE``)."""
    if which == "auto":
        which = length if length <= CHECKED_WHOLE else SAMPLE
    count = {"all": length, "none": 0}[which] if isinstance(which, str) else min(int(which), length)
    return np.unique(np.linspace(0, length - 1, count).astype(int)) if count else np.empty(0, int)


class _Verdicts:
    """Of each sample: what is wrong (or ""), the first file that EXIF would turn (or ""), what ``check`` returned."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[str, str, Any]:
        try:
            value = self.dataset.check(index)
            turned = next((name for name in sample_files(self.dataset, index) if has_orientation(name)), "")
        except (UserError, OSError) as error:
            return str(error), "", None
        return "", turned, value


def scan(dataset: Any, name: str, which: str | int = "auto", num_workers: int = 0) -> list[str]:
    """Read samples of a data set as they are stored, with a progress bar, and report what is wrong with them.

    What is checked is the data set's (``check``, ``check_all``). That all is well is remembered in the user's cache
    folder until a file's size or time changes. The samples are sharded between the processes of a distributed run.

    Args:
        name: of the data, for the bar.
        which: see :func:`which_samples`.
        num_workers: processes; 0 takes as many as there are processors if there is much to do.
    """
    rank, world_size = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
    indices = which_samples(len(dataset), which)
    if not len(indices) or not hasattr(dataset, "check"):
        return []
    remembered = _cache_file(dataset, indices)
    if remembered is not None and remembered.is_file():
        return []
    own = indices[rank::world_size]
    if not num_workers and len(own) >= WORKERS_FROM:
        num_workers = max(count_cores() // world_size, 1)
    batches = [own[i : i + BATCH].tolist() for i in range(0, len(own), BATCH)]
    verdicts: list[Any] = []
    with tqdm(total=len(own), desc=f"checking {name}", unit="img", dynamic_ncols=True, disable=rank > 0 or None) as bar:
        for found in load_batches(_Verdicts(dataset), batches, num_workers, collate=list):
            verdicts += found
            bar.update(len(found))
    verdicts = [verdict for share in gathered(verdicts) for verdict in share]
    problems = [text for text, _, _ in verdicts if text]
    turned = next((file for _, file, _ in verdicts if file), "")
    if turned and rank == 0:
        print(f"note: {turned} has an EXIF orientation, which is ignored everywhere, as PaddleSeg and PaddleClas do")
    if not problems and len(indices) == len(dataset) and hasattr(dataset, "check_all"):
        problems += dataset.check_all([value for _, _, value in verdicts])
    if not problems and remembered is not None and rank == 0:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs the next run's time, and no more
            write_atomically(remembered, lambda path: Path(path).write_text(json.dumps({"samples": len(indices)})))
    return problems


def _cache_file(dataset: Any, indices: np.ndarray) -> Path | None:
    """Where it is remembered that these samples, with files of these sizes and times, are sound."""
    digest = hashlib.sha256(str(getattr(dataset, "rules", type(dataset).__name__)).encode())
    for index in indices:
        for path in sample_files(dataset, index):
            try:
                status = os.stat(path)
            except OSError:
                return None
            digest.update(f"\n{os.path.abspath(path)}\t{status.st_size}\t{status.st_mtime_ns}".encode())
    return cache_home() / "checked_data" / f"{digest.hexdigest()[:32]}.json"


def check_data(task: Task, report: Report, split: str, which: str | int, num_workers: int = 0) -> None:
    """Build one of a task's data sets and scan it."""
    if split in task.broken:
        return
    name = {"train": "the training data", "val": "the validation data"}[split]
    with report.collecting():
        dataset = task.dataset(split)
        if len(dataset) == 0:
            raise DataError(f"{task.source}: {name} is empty")
        report.add(scan(dataset, name, which, num_workers))


# --- model ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _untouched(model: Any) -> Iterator[None]:
    """Put a model's mode, running statistics and other buffers, and the random state back as they were."""
    kept = untrained_state([model])
    was_training, random_state = model.training, paddle.get_rng_state()
    try:
        yield
    finally:
        restore_tensors(kept)
        model.train() if was_training else model.eval()
        paddle.set_rng_state(random_state)


def try_losses(task: Task, model: Any, autocast: Callable[[], Any] = contextlib.nullcontext) -> None:
    """Raise what model and losses say of a small batch, before the first step; the model is left as it was."""
    batch = task.trial_batch()
    if batch is None:
        dataset = task.dataset("train")
        batch = task.collate([{**dataset[i % len(dataset)], "meta": {"index": i % len(dataset)}} for i in range(2)])
    with _untouched(model), paddle.no_grad(), autocast():
        model.train()
        try:
            task.losses(model, task.prepare(to_tensors(batch), 0))
        except (UserError, OSError):
            raise
        except (ValueError, TypeError, RuntimeError, AssertionError, IndexError) as error:  # as libraries say it
            text = " ".join(str(error).split("The error message is:")[-1].split())
            raise ConfigError(f"{task.source}: model and losses fail on a trial batch: {text[:500]}") from error


def check_resume(save_dir: str | Path, where: str, model: Any) -> None:
    """Raise if the checkpoint to resume from cannot be read or is of another model."""
    folder, content, _ = read_resumed(save_dir, where)
    if folder is not None:
        _, arrays = content
        if "model.pdparams" in arrays:
            fitted_values(model, arrays["model.pdparams"], str(folder / "model.pdparams"))
