"""Checkpoints, and the evaluation that follows them.

A checkpoint is written before the evaluation that may die, marked as not evaluated; when the evaluation is over, its
result is put into the checkpoint's state, and then the best models are written. So a best model is always one that a
checkpoint knows of, and a run that is resumed from a checkpoint whose evaluation did not end begins with it.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paddle_vheat import __version__
from paddle_vheat._paddle import paddle
from paddle_vheat.engine.checkpoint import (
    list_checkpoints,
    optimizer_arrays,
    prune_checkpoints,
    read_best,
    read_resumed,
    restore_optimizer,
    resuming,
    save_best,
    save_checkpoint,
    update_state,
)
from paddle_vheat.engine.evaluate import evaluate, gathered
from paddle_vheat.engine.hooks import ExponentialMovingAverage, Hook
from paddle_vheat.errors import CheckpointError
from paddle_vheat.weights.loading import live_tensors, load_state

if TYPE_CHECKING:
    from paddle_vheat.engine.trainer import Trainer

MODEL, OPTIMIZER, LOSS = "model.pdparams", "model.pdopt", "loss.pdparams"
BEST_FILES = {"best_model": MODEL, "ema_best_model": ExponentialMovingAverage.FILE}


class Checkpoints(Hook):
    """Writes and resumes checkpoints."""

    # --- saving ---------------------------------------------------------------------------------------

    def after_step(self, run: Trainer) -> None:
        if run.save_due or run.stopping:
            self.save(run)

    def save(self, run: Trainer) -> None:
        synchronise(run)
        run.guard.check_weights(run)
        if not run.is_main:
            return
        arrays = {MODEL: run.model.state_dict(), OPTIMIZER: optimizer_arrays(run.optimizer, run.model)}
        for layers in run.loss_layers:
            arrays[LOSS] = layers.state_dict()
        scaler = run.precision.scaler
        state: dict[str, Any] = {
            "optimizer": type(run.optimizer).__name__,
            "lr_scheduler": run.scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler.is_enable() else None,
            "options": effective_options(run),
            "config": run.task.config,
            "versions": {
                "paddle_vheat": __version__,
                "paddle": paddle.__version__,
                "numpy": np.__version__,
                "python": sys.version.split()[0],
            },
        }
        for hook in run.hooks:
            arrays.update(hook.arrays(run))
            state.update(hook.state(run))
        with run.log.writing(run.save_dir / f"iter_{run.iteration}"):
            folder = save_checkpoint(run.save_dir, run.iteration, arrays, state)
            prune_checkpoints(run.save_dir, run.options.keep_checkpoint_max, run.iteration)
        run.log.say(f"saved {folder}")

    # --- resuming -------------------------------------------------------------------------------------

    def resume(self, run: Trainer) -> None:
        """Restore the checkpoint that the options ask for; without one, refuse a folder that holds a run."""
        where = run.options.resume_model
        if where is None:
            self._refuse_other_run(run.save_dir)
            return
        with resuming(where):
            folder, content, skipped = read_resumed(run.save_dir, where)
            for reason in skipped:
                run.log.say(f"skipped: {reason}")
            if folder is None:
                self._refuse_other_run(run.save_dir)
                run.log.say(f"nothing to resume in {run.save_dir}: starting from the beginning")
            else:
                self._restore(run, folder, *content)
        self._agree_on_the_start(run)

    @staticmethod
    def _refuse_other_run(save_dir: Path) -> None:
        there = list_checkpoints(save_dir)[-1:] + [save_dir / n for n in BEST_FILES if (save_dir / n).is_dir()]
        if there:
            how = "continue it with --resume_model auto, or give" if list_checkpoints(save_dir) else "give"
            raise CheckpointError(f"{save_dir} holds a run already ({there[0].name}): {how} another --save_dir")

    def _restore(self, run: Trainer, folder: Path, state: dict[str, Any], arrays: dict[str, Any]) -> None:
        kind = type(run.optimizer).__name__
        if state.get("optimizer", kind) != kind:
            raise CheckpointError(f"{folder}: was saved with {state['optimizer']}, and this run is with {kind}")
        if OPTIMIZER not in arrays or MODEL not in arrays:
            raise CheckpointError(f"{folder}: holds no model and optimizer to resume from")
        if state["iteration"] > run.recipe.iters:
            raise CheckpointError(
                f"{folder} is of iteration {state['iteration']}, and the run ends at {run.recipe.iters}"
            )
        load_state(run.model, arrays[MODEL], str(folder / MODEL))
        restore_optimizer(run.optimizer, run.model, arrays[OPTIMIZER])
        for layers in run.loss_layers:
            if LOSS not in arrays:
                raise CheckpointError(f"{folder}: holds no state of the losses, and this run's have one")
            load_state(layers, arrays[LOSS], str(folder / LOSS))
        with warnings.catch_warnings():
            # LinearWarmup says so of its own state, always.
            warnings.filterwarnings("ignore", "There are some unused values in state_dict")
            run.scheduler.set_state_dict(state["lr_scheduler"])
        if run.precision.scaler.is_enable() and state.get("scaler"):
            run.precision.scaler.load_state_dict({k: np.asarray(v) for k, v in state["scaler"].items()})
        run.iteration = state["iteration"]
        for hook in run.hooks:
            hook.restore(run, state, arrays, folder)
        for line in changes(state, run):
            run.log.say(f"note: changed since the checkpoint: {line}")
        if run.is_main:  # what a process that was killed after its checkpoint did not come to
            prune_checkpoints(run.save_dir, run.options.keep_checkpoint_max, run.iteration)
        run.log.say(f"resumed {folder} at iteration {run.iteration}")

    @staticmethod
    def _agree_on_the_start(run: Trainer) -> None:
        """Raise if the processes of a run have not resumed the same checkpoint, or only some have one."""
        iterations = gathered(run.iteration)
        if len(set(iterations)) > 1:
            raise CheckpointError(
                f"the processes start at different iterations {iterations} (in the order of their ranks): --save_dir "
                f"{run.save_dir} must be one folder that all of them see"
            )


class Evaluation(Hook):
    """Evaluates after the checkpoint, keeps the best models, and ends a run that gets no better."""

    def __init__(self, enabled: bool, patience: int | None) -> None:
        self.enabled, self.patience = enabled, patience
        self.best: dict[str, dict[str, float]] = {}
        self.reports: dict[str, dict[str, Any]] = {}
        self.stale_intervals = 0
        self.pending = False  # the restored checkpoint was not evaluated

    def start(self, run: Trainer) -> None:
        if self.pending and self.enabled:
            self._interval(run)
        else:
            self._save_best(run, unless_there=True)

    def after_step(self, run: Trainer) -> None:
        if self.enabled and run.eval_due:
            self.pending = True
            if not run.stopping:
                self._interval(run)

    def _interval(self, run: Trainer) -> None:
        improved = False
        weights: dict[str, Any] = {"best_model": contextlib.nullcontext()}
        if run.ema is not None:
            weights["ema_best_model"] = run.ema.applied()
        found = dict(self.best), dict(self.reports)
        for folder, context in weights.items():
            with context:
                better = self._evaluate(run, folder)
            if better is None:  # stopped: as if it had not begun
                self.best, self.reports = found
                run.stopping = self.pending = True
                return
            improved = improved or better
        self.stale_intervals = 0 if improved else self.stale_intervals + 1
        self.pending = False
        folder_path = run.save_dir / f"iter_{run.iteration}"
        run.progress.flush()
        if run.is_main and folder_path.is_dir():
            with run.log.writing(folder_path):
                update_state(folder_path, {**self._entries(), "evaluated": True})
        self._save_best(run)
        if self.patience and self.stale_intervals >= self.patience and run.iteration < run.recipe.iters:
            run.stopped = "early"
            name = run.task.metric.name
            run.log.say(f"stopped early: no better {name} for {self.stale_intervals} intervals")

    def _evaluate(self, run: Trainer, folder: str) -> bool | None:
        """Whether the model, as its weights are, is the best so far; None if a signal stopped the evaluation."""
        task, metric = run.task, run.task.metric
        scores = evaluate(
            task,
            run.model,
            num_workers=run.options.num_workers or run.recipe.num_workers,
            autocast=run.precision.autocast,
            stop=run.signals.received,
        )
        if scores is None:
            return None
        value = scores.values[metric.name]
        known = self.best.get(folder)
        better = metric.better(value, known["score"] if known else None)
        if better:
            self.best[folder] = known = {"score": value, "iteration": run.iteration}
            self.reports[folder] = {"iteration": run.iteration, **scores.report}
        kind = folder.replace("_best_model", "").replace("best_model", "model")
        text = f"[EVAL] iter {run.iteration}, {kind}: {metric.name} {metric.format(value)} on {scores.samples} images; "
        if known is None:
            text += f"this is no score: nothing was there to evaluate {metric.name} on"
        else:
            text += f"best {metric.format(known['score'])} at iteration {known['iteration']}"
        run.log.say(text)
        tag = "Evaluate/" if folder == "best_model" else "Evaluate/Ema_"
        numbers = {key: one for key, one in scores.report.items() if isinstance(one, float)}
        run.progress.scalars(run, {f"{tag}{key}": one for key, one in numbers.items()})
        if run.progress.writer is not None and folder == "best_model":
            with run.precision.autocast():
                run.progress.pictures(run, task.preview(run.model, 4))
        return better

    def _save_best(self, run: Trainer, unless_there: bool = False) -> None:
        """Keep the weights as they are now, where they are the best."""
        weights = {"best_model": run.model, "ema_best_model": run.ema}
        for name, report in self.reports.items():
            folder, file, of = run.save_dir / name, BEST_FILES[name], weights[name]
            if not run.is_main or of is None or report["iteration"] != run.iteration:
                continue
            if not (unless_there and read_best(folder, file) == report):
                with run.log.writing(folder):
                    save_best(folder, file, of.state_dict(), report)

    def _entries(self) -> dict[str, Any]:
        return {"best": self.best, "best_reports": self.reports, "stale_intervals": self.stale_intervals}

    def state(self, run: Trainer) -> dict[str, Any]:
        return {**self._entries(), "evaluated": not (self.enabled and run.eval_due)}

    def restore(self, run: Trainer, state: Mapping[str, Any], arrays: Mapping[str, Any], folder: Path) -> None:
        self.best, self.reports = state["best"], state.get("best_reports", {})
        self.stale_intervals = state["stale_intervals"]
        self.pending = not state.get("evaluated", True)


def synchronise(run: Trainer) -> None:
    """Give every process what is not trained of process 0, which is what is saved.

    Without SyncBatchNorm (on the CPU) each has the running statistics of its own share of the data.
    """
    if run.world_size == 1:
        return
    # To Paddle, running statistics are parameters as well.
    trained = {name for name, parameter in run.model.named_parameters() if not parameter.stop_gradient}
    for state in [live_tensors(run.model), *([run.ema.average] if run.ema else [])]:
        for name, value in state.items():
            if name not in trained:
                paddle.distributed.broadcast(value, src=0)


def effective_options(run: Trainer) -> dict[str, Any]:
    """The command line's options, those that it leaves to the recipe filled in."""
    options = asdict(run.options)
    return {name: getattr(run.recipe, name, value) if value is None else value for name, value in options.items()}


def changes(state: Mapping[str, Any], run: Trainer, limit: int = 12) -> list[str]:
    """What a run's configuration and options have that the checkpoint's did not: "key: old -> new"."""
    free = {"save_dir", "resume_model", "num_workers", "use_vdl", "log_iters", "keep_checkpoint_max"}
    before = dict(_flat("", {**state.get("config", {}), **state.get("options", {})}))
    now = dict(_flat("", {**run.task.config, **effective_options(run)}))
    names = [name for name in {**before, **now} if name not in free and before.get(name) != now.get(name)]
    lines = [f"{name}: {before.get(name)!r} -> {now.get(name)!r}" for name in names]
    return lines[:limit] + ([f"and {len(lines) - limit} more"] if len(lines) > limit else [])


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (Mapping, list, tuple)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), item)
    else:
        yield prefix, value
