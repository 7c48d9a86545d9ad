"""Evaluation on a validation set, sharded between the processes of a distributed run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from paddle_vheat._paddle import in_evaluation, paddle
from paddle_vheat.engine.loader import IndexedDataset, load_batches, sample_files
from paddle_vheat.engine.task import Batch, Scores, Task
from paddle_vheat.errors import DataError, UserError
from paddle_vheat.ops.fold import fold

if TYPE_CHECKING:
    from paddle_vheat.deploy.predictor import Predictor


def gathered(value: Any) -> list[Any]:
    """The value of every process of a distributed run, in the order of their ranks."""
    if paddle.distributed.get_world_size() == 1:
        return [value]
    found: list[Any] = []
    paddle.distributed.all_gather_object(found, value)
    return found


@contextlib.contextmanager
def evaluating(model: Any) -> Any:
    """Inside, the model is in evaluation mode and nothing is differentiated."""
    with in_evaluation(model), paddle.no_grad():
        yield


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
    model = evaluation_form(model)

    def infer(batch: Batch) -> Any:
        with autocast():
            return task.infer(model, batch)

    with evaluating(model):
        return _score(task, infer, num_workers, stop, progress)


def check_exported(task: Task, where: object) -> None:
    """Raise a UserError if the task cannot score exported models."""
    if not hasattr(task, "infer_exported"):
        raise UserError(f"{where}: {task.name} cannot score exported models (it has no method infer_exported)")


def evaluate_exported(
    task: Task, predictor: Predictor, *, num_workers: int = 0, indices: Sequence[int] | None = None
) -> Scores | None:
    """Score an exported model, with its own preparation of the images, on the task's validation set.

    Args:
        predictor: of the folder that ``export.py`` wrote.
        num_workers: processes that read the data.
        indices: of the samples to score; None for all.

    Returns:
        The scores, equal on every process.

    Raises:
        UserError: if the export is another task's, or the task cannot score exports.
        DataError: for a sample that cannot be scored, naming its file.
    """
    folder, theirs = predictor.description.path.parent, predictor.description.task
    if theirs != task.name:
        raise UserError(f"{folder}: is an export for {theirs}, and {task.source} is for {task.name}")
    check_exported(task, folder)
    return _score(task, lambda batch: task.infer_exported(predictor, batch), num_workers, indices=indices)


def _score(
    task: Task,
    infer: Callable[[Batch], Any],
    num_workers: int,
    stop: Callable[[], bool] = bool,
    progress: bool = True,
    indices: Sequence[int] | None = None,
) -> Scores | None:
    """Collect what ``infer`` gives for every batch; see :func:`evaluate`."""
    dataset, evaluator = task.dataset("val"), task.evaluator()
    rank, world_size = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
    indices = range(len(dataset)) if indices is None else indices
    batches = task.eval_batches(dataset, indices[rank::world_size])
    loader = load_batches(IndexedDataset(dataset), batches, num_workers, task.collate)
    # The bar leaves no trace: during training, the training bar stands below it.
    shown = None if progress and rank == 0 else True
    bar = tqdm(total=sum(map(len, batches)), desc="evaluating", unit="img", leave=False, disable=shown)
    stopped = False
    try:
        for batch in loader:
            stopped = stop()
            if stopped:
                break
            try:
                evaluator.update(infer(batch), batch)
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
        states = gathered((stopped, evaluator.state()))
        stopped = any(flag for flag, _ in states)
        evaluator.merge([state for _, state in states])
    return None if stopped else evaluator.summarize()
