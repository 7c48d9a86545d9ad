"""What a command is given, checked before it starts: everything that is wrong is told at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from paddle_vheat._paddle import nn, paddle
from paddle_vheat.engine.checkpoint import read_checkpoint, read_newest
from paddle_vheat.engine.data import load_batches, sample_files
from paddle_vheat.engine.finite import restore, untrained_state
from paddle_vheat.weights.loading import fitted_values, write_atomically

MOST_TOLD = 20
CHECKED_WHOLE = 3000
"""A data set of up to so many samples is checked whole by default (Cityscapes), of a larger one a sample."""

SAMPLE = 1000
WORKERS_FROM = 100  # samples; below, starting processes takes longer than they save
BATCH = 8
_TEXT_BYTES = 2000


class InputError(ValueError):
    """Several mistakes in what a command was given."""


class Report:
    """Mistakes that were found so far.

    Attributes:
        problems: their texts, each once.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._errors: list[Exception] = []

    def add(self, problems: list[str]) -> None:
        self.problems += [problem for problem in dict.fromkeys(problems) if problem not in self.problems]

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Inside, a mistake of the user's ends the block and is noted."""
        try:
            yield
        except (ValueError, OSError, RuntimeError, NotImplementedError) as error:
            before = len(self.problems)
            self.add(getattr(error, "problems", [str(error)]))
            if len(self.problems) > before:
                self._errors.append(error)

    def close(self) -> None:
        """Raise what was noted: a single error as it was, several as one :class:`InputError`.

        In a distributed run, all processes raise if one of them found a mistake.
        """
        count = len(self.problems)
        if paddle.distributed.get_world_size() > 1:
            worst = paddle.to_tensor([count])
            paddle.distributed.all_reduce(worst, op=paddle.distributed.ReduceOp.MAX)
            if int(worst) and not count:
                raise InputError("another process of this run found mistakes, and tells them")
        if not count:
            return
        first = self._errors[0] if self._errors else None
        if first is not None and len(getattr(first, "problems", [first])) == count <= MOST_TOLD:
            raise first
        raise InputError(shortened(self.problems)) from first


def shortened(problems: list[str], most: int = MOST_TOLD) -> str:
    """Problems below each other, the first of them if there are many; a single one as it is."""
    if len(problems) == 1:
        return problems[0]
    more = [f"... and {len(problems) - most} more"] if len(problems) > most else []
    return "\n  ".join([f"{len(problems)} mistakes, found before the start:", *problems[:most], *more])


# --- data -------------------------------------------------------------------------------------------


def which_samples(length: int, which: str | int) -> np.ndarray:
    """Indices of the samples to check, spread evenly: "all", "none", so many, or "auto" (see ``CHECKED_WHOLE``)."""
    if which == "auto":
        which = length if length <= CHECKED_WHOLE else SAMPLE
    count = {"all": length, "none": 0}[which] if isinstance(which, str) else min(int(which), length)
    return np.unique(np.linspace(0, length - 1, count).astype(int)) if count else np.empty(0, int)


class _Verdicts(paddle.io.Dataset):
    """What is wrong with each sample, as bytes of a fixed number, which loader processes can send."""

    def __init__(self, task: Any, dataset: Any) -> None:
        super().__init__()
        self.task = task
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> np.ndarray:
        try:
            self.task.check_stored(self.dataset, index)
            text = b""
        except (ValueError, OSError, RuntimeError) as error:
            text = str(error).encode("utf-8", "replace")[:_TEXT_BYTES]
        return np.frombuffer(text.ljust(_TEXT_BYTES, b"\0"), np.uint8)


def scan(task: Any, dataset: Any, name: str, which: str | int = "auto", num_workers: int = 0) -> list[str]:
    """Read samples of a data set as they are stored, with a progress bar, and tell what is wrong with them.

    Every file must decode to its end, an image and its label be of one size, and the label hold classes. That all is
    well is remembered in the user's cache folder until a file's size or time changes.

    Args:
        task: checks a sample by ``check_stored(dataset, index)``, and says by ``storage_rules(dataset)`` on what that
            depends beside the files; None if there are none.
        name: of the data, for the bar.
        which: see :func:`which_samples`.
        num_workers: processes; 0 takes as many as there are processors if there is much to do.
    """
    indices = which_samples(len(dataset), which)
    rules = task.storage_rules(dataset)
    if not len(indices) or rules is None:
        return []
    remembered = _cache_file(rules, dataset, indices)
    if remembered is not None and remembered.is_file():
        return []
    if not num_workers and len(indices) >= WORKERS_FROM:
        num_workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    batches = [indices[i : i + BATCH].tolist() for i in range(0, len(indices), BATCH)]
    problems = []
    loader = load_batches(_Verdicts(task, dataset), batches, num_workers)
    with tqdm(total=len(indices), desc=f"checking {name}", unit="img", dynamic_ncols=True, disable=None) as bar:
        for texts in loader:
            found = [bytes(text).rstrip(b"\0").decode("utf-8", "replace") for text in texts.numpy()]
            problems += [text for text in found if text]
            bar.update(len(found))
    if not problems and remembered is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs the next run's time, and no more
            write_atomically(remembered, lambda path: Path(path).write_text(json.dumps({"samples": len(indices)})))
    return problems


def _cache_file(rules: str, dataset: Any, indices: np.ndarray) -> Path | None:
    """Where it is remembered that these samples, with files of these sizes and times, are sound."""
    digest = hashlib.sha256(rules.encode())
    for index in indices:
        for path in sample_files(dataset, index):
            try:
                status = os.stat(path)
            except OSError:
                return None
            digest.update(f"\n{os.path.abspath(path)}\t{status.st_size}\t{status.st_mtime_ns}".encode())
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(folder) / "paddle_vheat" / "checked_data" / f"{digest.hexdigest()[:32]}.json"


# --- model ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _untouched(model: Any) -> Iterator[None]:
    """Put a model's mode, running statistics and other buffers, and the random state back as they were."""
    kept = untrained_state([model])
    was_training, random_state = model.training, paddle.get_rng_state()
    try:
        yield
    finally:
        restore(kept)
        model.train() if was_training else model.eval()
        paddle.set_rng_state(random_state)


def check_outputs(task: Any) -> None:
    """Raise a ConfigError if the losses do not fit the outputs of the model in training; it is left as it was.

    Tried on a small batch of zeros, and if the model cannot take that, on the first training images.
    """
    model = task.model
    if not hasattr(task, "losses") or hasattr(model, "loss_computation"):
        return
    channels = int((task.config.get("train_dataset") or {}).get("img_channels", 3))
    with _untouched(model), paddle.no_grad():
        model.train()
        try:
            outputs = model(paddle.zeros([2, channels, 64, 64]))
        except Exception:  # a model of another size; one that fails on its own data fails below
            image = task.train_dataset[0]["img"]
            outputs = model(paddle.to_tensor(np.stack([image, image])))
    task.check_outputs(outputs)


def check_resume(save_dir: str | Path, where: str, model: nn.Layer) -> None:
    """Raise if the checkpoint to resume from cannot be read or is of another model."""
    folder: Path | None = Path(where)
    if where == "auto":
        folder, content, _ = read_newest(save_dir)
    else:
        content = read_checkpoint(where)
    if folder is not None:
        _, arrays = content
        if "model.pdparams" in arrays:
            fitted_values(model, arrays["model.pdparams"], str(folder / "model.pdparams"))


def check_training(task: Any, report: Report, do_eval: bool, which: str | int, num_workers: int) -> None:
    """Data sets, losses and the model's outputs of a run that is to start; mistakes go into the report."""
    broken: set[str] = task.broken
    parts = {"train_dataset": "the training data"}
    if do_eval:
        parts["val_dataset"] = "the validation data"
        if not broken & {"val_dataset", "class_names", "model"}:
            with report.collecting():
                _ = task.class_names  # as many as there are classes
    for part, name in parts.items():
        if part not in broken:
            with report.collecting():
                check_data(task, report, part, name, which, num_workers)
    if not broken & {"model", "loss", "train_dataset"}:
        with report.collecting():
            task.check_settings()
            check_outputs(task)


def check_data(task: Any, report: Report, part: str, name: str, which: str | int, num_workers: int = 0) -> None:
    """Build one of a task's data sets and scan it (process 0 only)."""
    dataset = getattr(task, part)
    if paddle.distributed.get_rank() == 0:
        report.add(scan(task, dataset, name, which, num_workers))
