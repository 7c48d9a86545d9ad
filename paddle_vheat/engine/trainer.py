"""The training loop, for every task; it reads top to bottom. What surrounds a step is a hook."""

from __future__ import annotations

import contextlib
import os
import random
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._paddle import nn, paddle
from paddle_vheat.engine.checkpoint import run_lock
from paddle_vheat.engine.hooks import ExponentialMovingAverage, Hook, NonFiniteGuard, StopOnSignal
from paddle_vheat.engine.loader import IterationSampler, SeededDataset, derived_seed, load_batches
from paddle_vheat.engine.log import Progress, RunLog
from paddle_vheat.engine.optim import TrainOptions, build_optimizer, build_scheduler
from paddle_vheat.engine.precision import Precision
from paddle_vheat.engine.saving import Checkpoints, Evaluation
from paddle_vheat.engine.task import Batch, Task
from paddle_vheat.errors import UserError
from paddle_vheat.ops.training import accelerate_training


class Trainer:
    """Trains a task.

    Random numbers are a function of the seed and the iteration (dropout, stochastic depth) or of the seed and
    the sample's position (order and augmentation of the data), so that a run that was stopped and continued
    equals one that was not.
    """

    def __init__(self, task: Task, options: TrainOptions) -> None:
        self.task, self.options = task, options
        self.save_dir = Path(options.save_dir).expanduser()
        self.rank, self.world_size = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
        self.is_main = self.rank == 0
        self.log = RunLog(self.save_dir, self.is_main)
        recipe = options.applied_to(task.recipe)
        self.recipe = recipe.in_iterations(len(task.dataset("train")), self.world_size)
        self.precision = Precision(recipe.precision, recipe.amp_level, recipe.loss_scale, recipe.dynamic_loss_scale)
        if recipe.precision != "fp32" and not self.precision.on:
            self.log.say(f"precision {recipe.precision} needs a GPU: on this device the run is in fp32")
        _seed_all(options.seed)
        model = task.build_model()
        if paddle.get_device().startswith("gpu") and self.world_size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model = accelerate_training(model)
        self.scheduler = build_scheduler(self.recipe, f"{task.source}: learning rate")
        factors = task.parameter_factors(model)
        optimizer = build_optimizer(self.recipe, model, self.scheduler, factors, f"{task.source}: optimizer")
        self.model, self.optimizer = self.precision.decorate(model, optimizer)
        layers = task.loss_layers()
        self.loss_layers = [] if layers is None else [layers]
        self.network: Any = self.model
        self.iteration, self.lr, self.data_wait, self.skipped = 0, 0.0, 0.0, False
        self.stopping = False  # a signal asks to stop
        self.stopped: str | None = None  # why the run has ended
        self._add_hooks()

    def _add_hooks(self) -> None:
        options, recipe = self.options, self.recipe
        self.ema = None
        if recipe.ema_decay is not None:
            self.ema = ExponentialMovingAverage(self.model, recipe.ema_decay, recipe.ema_warm_up)
        self.signals, self.guard = StopOnSignal(), NonFiniteGuard(options.max_skipped_steps)
        self.progress, self.checkpoints = Progress(), Checkpoints()
        self.evaluation = Evaluation(options.do_eval, options.early_stop_intervals)
        hooks = (self.ema, self.signals, self.guard, self.progress, self.checkpoints, self.evaluation)
        self.hooks: list[Hook] = [hook for hook in hooks if hook is not None]

    @property
    def last(self) -> bool:
        return self.iteration >= self.recipe.iters

    @property
    def eval_due(self) -> bool:
        return self.last or self.iteration % (self.recipe.eval_interval or self.recipe.save_interval) == 0

    @property
    def save_due(self) -> bool:
        return self.iteration % self.recipe.save_interval == 0 or (self.options.do_eval and self.eval_due) or self.last

    @property
    def log_due(self) -> bool:
        return self.iteration % self.options.log_iters == 0 or self.save_due

    def run(self) -> dict[str, Any]:
        """Train to the last iteration.

        Returns:
            "iteration" reached, "best" score per kind of weights, and "stopped": None, "signal" or "early".
        """
        with self.log.writing(self.save_dir):
            os.makedirs(os.path.realpath(self.save_dir), exist_ok=True)
        with contextlib.ExitStack() as stack:
            if self.is_main:
                with self.log.writing(self.save_dir):
                    locked = stack.enter_context(run_lock(self.save_dir))
                if not locked:
                    self.log.say(f"note: {self.save_dir} cannot be locked; nothing there keeps a second run out")
            try:
                self.checkpoints.resume(self)
                self._train()
            except (UserError, OSError):
                raise
            except Exception:  # a fault of the program
                self.log.say(traceback.format_exc(), terminal=False)
                raise
        return {"iteration": self.iteration, "best": self.evaluation.best, "stopped": self.stopped}

    def _train(self) -> None:
        if self.world_size > 1:
            # A PaddleSeg model may hold layers that its forward pass does not use.
            self.network = paddle.DataParallel(self.model, find_unused_parameters=True)
        if self.last:
            self.log.say(f"the run is complete ({self.iteration} of {self.recipe.iters} iterations)")
        with warnings.catch_warnings():
            # Paddle 3 says so in every training step of every BatchNorm.
            warnings.filterwarnings("ignore", message="When training, we now always track global mean")
            try:
                for hook in self.hooks:
                    hook.start(self)
                self.model.train()
                batches = self._batches()
                while not (self.last or self.stopping or self.stopped):
                    self._step(batches)
            finally:
                for hook in reversed(self.hooks):
                    hook.close(self)
        if self.stopping and not (self.last and not self.evaluation.pending):
            self.stopped = "signal"
            self.log.say(f"{self.signals.name}: saved at iteration {self.iteration}; continue with --resume_model auto")

    def _batches(self) -> Iterator[Batch]:
        """Batches of the remaining iterations, each ``accumulation`` of them."""
        recipe, seed, micro = self.recipe, self.options.seed, self.recipe.accumulation
        dataset = self.task.dataset("train")
        steps = recipe.iters * micro, seed, self.iteration * micro
        place = self.rank, self.world_size, recipe.shuffle, recipe.drop_last
        groups = getattr(dataset, "groups", None)
        sampler = IterationSampler(len(dataset), recipe.batch_size, *steps, *place, groups)
        return load_batches(SeededDataset(dataset, seed), sampler, recipe.num_workers, self.task.collate)

    def _step(self, batches: Iterator[Batch]) -> None:
        """Data, forward, backward, clip, step; and the hooks."""
        for hook in self.hooks:
            hook.before_step(self)
        began = time.perf_counter()
        batch = [next(batches) for _ in range(self.recipe.accumulation)]
        self.data_wait = time.perf_counter() - began
        self._forward_backward(batch)
        self.precision.scaler.unscale_(self.optimizer)
        self.skipped = not all(hook.before_update(self) for hook in self.hooks)
        self.lr = self.optimizer.get_lr()
        if not self.skipped:
            if self.recipe.clip_norm is not None:
                with_gradient = [p for p in self.model.parameters() if p.grad is not None]
                nn.utils.clip_grad_norm_(with_gradient, self.recipe.clip_norm)
            self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        self.scheduler.step()
        self.optimizer.clear_grad()
        self.iteration += 1
        for hook in self.hooks:
            hook.after_step(self)

    def _forward_backward(self, batches: list[Batch]) -> None:
        """Add up the gradients of the batches; ``losses``, ``loss_parts`` and ``indices`` tell of them."""
        seeds = self.options.seed, self.iteration, self.rank
        _seed_all(derived_seed(*seeds))
        self.losses: list[Any] = []
        self.loss_parts: list[dict[str, Any]] = []
        self.indices = [int(meta["index"]) for batch in batches for meta in batch["meta"]]
        for i, batch in enumerate(batches):
            batch = self.task.prepare(batch, derived_seed(*seeds, i + 1))
            # Gradients are exchanged between processes once, with the last batch.
            silent = self.world_size > 1 and i < len(batches) - 1
            with self.network.no_sync() if silent else contextlib.nullcontext():
                with self.precision.autocast():
                    parts = self.task.losses(self.network, batch)
                    total = sum(list(parts.values())[1:], next(iter(parts.values())))
                self.precision.scaler.scale(total / len(batches)).backward()
            self.losses.append(total.detach())
            self.loss_parts.append({name: part.detach() for name, part in parts.items()} if len(parts) > 1 else {})


def _seed_all(seed: int) -> None:
    """Seed Paddle, and Python and NumPy for components that draw from them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    paddle.seed(seed)
