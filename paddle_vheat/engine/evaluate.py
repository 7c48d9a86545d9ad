"""Evaluation on a validation set, sharded between the processes of a distributed run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from paddle_vheat._paddle import paddle
from paddle_vheat.engine.loader import IndexedDataset, load_batches, sample_files
from paddle_vheat.engine.task import Scores, Task
from paddle_vheat.errors import DataError, UserError
from paddle_vheat.ops.fold import fold


@contextlib.contextmanager
def evaluating(model: Any) -> Any:
    """Inside, the model is in evaluation mode and nothing is differentiated."""
    was_training = model.training
    model.eval()
    try:
        with paddle.no_grad():
            yield
    finally:
        if was_training:
            model.train()


def evaluation_form(model: Any) -> Any:
    """A copy with the faster forms for a CPU and decays that are computed once for each size of a feature map
    (:mod:`paddle_vheat.ops.fold`); elsewhere, and where no layer has such a form, the model itself."""
    on_cpu = paddle.get_device() == "cpu"
    takes_part = any(hasattr(layer, "fast_form") for layer in model.sublayers(include_self=True))
    return fold(model) if on_cpu and takes_part else model


def evaluate(
    task: Task,
    model: Any,
    *,
    num_workers: int = 0,
    autocast: Callable[[], Any] = contextlib.nullcontext,
    stop: Callable[[], bool] = bool,
    progress: bool = True,
) -> Scores | None:
    """Score a model on the task's validation set.

    Args:
        model: is left as it is.
        num_workers: processes that read the data.
        autocast: gives a context for each forward pass.
        stop: asked before every batch; True ends the evaluation.
        progress: show a progress bar (process 0 only).

    Returns:
        The scores, equal on every process; None if it was stopped.

    Raises:
        DataError: for a sample that cannot be scored, naming its file.
    """
    dataset, evaluator = task.dataset("val"), task.evaluator()
    rank, world_size = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
    batches = task.eval_batches(dataset, range(rank, len(dataset), world_size))
    loader = load_batches(IndexedDataset(dataset), batches, num_workers, task.collate)
    # The bar leaves no trace: during training, the training bar stands below it.
    shown = None if progress and rank == 0 else True
    bar = tqdm(total=sum(map(len, batches)), desc="evaluating", unit="img", leave=False, disable=shown)
    stopped = False
    model = evaluation_form(model)
    try:
        with evaluating(model):
            for batch in loader:
                stopped = stop()
                if stopped:
                    break
                try:
                    with autocast():
                        outputs = task.infer(model, batch)
                    evaluator.update(outputs, batch)
                except UserError:
                    raise
                except ValueError as error:
                    files = sample_files(dataset, batch["meta"][0]["index"])
                    raise DataError(f"{(files or ['sample'])[-1]}: {error}") from error
                bar.update(len(batch["meta"]))
    finally:
        loader.close()
        bar.close()
    if world_size > 1:
        states: list[Any] = []
        paddle.distributed.all_gather_object(states, (stopped, evaluator.state()))
        stopped = any(flag for flag, _ in states)
        evaluator.merge([state for _, state in states])
    return None if stopped else evaluator.summarize()
