"""How a model is optimized: the recipe as plain data, and the optimizer and schedule that are built from it.

A task adapts its configuration's schema to a :class:`Recipe`; nothing of the schema is known here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paddle_vheat._paddle import nn, paddle
from paddle_vheat.config import build, building, option
from paddle_vheat.config.options import check_fields
from paddle_vheat.engine.adamw import AdamW
from paddle_vheat.engine.loader import check_workers
from paddle_vheat.errors import UserError


@dataclass(frozen=True)
class Epochs:
    """A duration in passes over the training set; any duration of a recipe may be one, or iterations (int)."""

    count: float


Duration = Any  # int (iterations) or Epochs
MAX_STEPS = 10**9


@dataclass(frozen=True)
class Schedule:
    """Learning rate per iteration.

    Attributes:
        type: a scheduler of ``paddle.optimizer.lr``, ``WarmupCosine`` or ``WarmupMultiStep``.
        learning_rate: the rate that the scheduler starts from, or (WarmupCosine) reaches after its warm-up.
        arguments: further ones of the scheduler; a duration among them may be given in epochs.
        warmup, warmup_start: length of a linear warm-up before the scheduler, and the rate at its start.
    """

    learning_rate: float
    type: str = "LambdaDecay"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    warmup: Duration = 0
    warmup_start: float = 0.0


@dataclass(frozen=True)
class Factors:
    """What the learning rate and the weight decay of a parameter are multiplied by."""

    lr: float = 1.0
    decay: float | None = None  # None: the optimizer's own


@dataclass(frozen=True)
class Recipe:
    """Everything about training that does not depend on what is trained."""

    schedule: Schedule
    iters: Duration = 1
    batch_size: int = 1  # per process and step
    accumulation: int = 1
    optimizer: str = "AdamW"  # of ``paddle.optimizer``
    optimizer_arguments: Mapping[str, Any] = field(default_factory=dict)
    weight_decay: float | None = None
    clip_norm: float | None = None  # GLOBAL gradient norm
    clip: Mapping[str, Any] | None = None  # another of Paddle's clips: its name and arguments, left to the optimizer
    ema_decay: float | None = None
    ema_warm_up: bool = True  # forget the initial weights quickly; without, the decay is the same from the first step
    precision: str = "fp32"
    amp_level: str = "O1"
    loss_scale: float = 1024.0
    dynamic_loss_scale: bool = True
    save_interval: Duration = 1000
    eval_interval: Duration | None = None  # None: at every save
    num_workers: int = 0
    shuffle: bool = True
    drop_last: bool = False

    def in_iterations(self, samples: int, world_size: int) -> Recipe:
        """The recipe with every duration in iterations, for a training set of ``samples``."""
        per_epoch = max(samples // (self.batch_size * self.accumulation * world_size), 1)

        def steps(value: Any, least: int = 1) -> Any:
            if isinstance(value, (list, tuple)):
                return [steps(item) for item in value]
            return max(round(value.count * per_epoch), least) if isinstance(value, Epochs) else value

        arguments = {key: steps(value) for key, value in self.schedule.arguments.items()}
        schedule = replace(self.schedule, warmup=steps(self.schedule.warmup, least=0), arguments=arguments)
        names = ("iters", "save_interval", "eval_interval")
        return replace(self, schedule=schedule, **{name: steps(getattr(self, name)) for name in names})


@dataclass(frozen=True)
class TrainOptions:
    """What the command line decides about a run; None leaves it to the task's recipe."""

    iters: int | None = option(int, None, min=1, max=MAX_STEPS)
    batch_size: int | None = option(int, None, min=1, max=MAX_STEPS)
    learning_rate: float | None = option(float, None, above=0, max=10**6)
    accumulation: int | None = option(int, None, min=1, max=MAX_STEPS)
    save_interval: int | None = option(int, None, min=1, max=MAX_STEPS)
    precision: str | None = option(str, None, choices=("fp32", "fp16", "bf16"))
    amp_level: str | None = option(str, None, choices=("O1", "O2"))
    num_workers: int | None = option(int, None)
    use_ema: bool = option(bool, False)
    save_dir: str = option(str, "output")
    log_iters: int = option(int, 10, min=1, max=MAX_STEPS)
    keep_checkpoint_max: int = option(int, 5, min=0, max=MAX_STEPS)
    seed: int = option(int, 42, min=0, max=2**63 - 1)
    do_eval: bool = option(bool, False)
    use_vdl: bool = option(bool, False)
    resume_model: str | None = option(str, None)
    early_stop_intervals: int | None = option(int, None, min=1, max=MAX_STEPS)
    max_skipped_steps: int = option(int, 0, min=0, max=MAX_STEPS)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_workers is not None:
            check_workers(self.num_workers, "num_workers")
        if self.early_stop_intervals is not None and not self.do_eval:
            raise UserError("--early_stop_intervals needs --do_eval: it counts evaluations")

    def applied_to(self, recipe: Recipe) -> Recipe:
        names = ("iters", "batch_size", "accumulation", "precision", "amp_level", "num_workers")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.learning_rate is not None:
            given["schedule"] = replace(recipe.schedule, learning_rate=self.learning_rate)
        if self.save_interval is not None:
            given.update(save_interval=self.save_interval, eval_interval=None)
        if self.use_ema and recipe.ema_decay is None:
            given["ema_decay"] = 0.999
        return replace(recipe, **given)


class WarmupCosine(paddle.optimizer.lr.LRScheduler):
    """Linear warm-up, then a half cosine, stepped per iteration; every value is computed from its step alone.

    For step t of ``total``: ``start + (peak - start) t / warmup`` in the first ``warmup`` steps, then
    ``end + (peak - end) (1 + cos(pi (t - warmup) / (total - warmup))) / 2``.

    Args:
        learning_rate: the peak, after the warm-up.
        total: steps in all.
        warmup: steps of warm-up.
        start: learning rate of step 0.
        end: learning rate that the cosine goes down to.
    """

    def __init__(self, learning_rate: float, total: int, warmup: int = 0, start: float = 0.0, end: float = 0.0) -> None:
        if not 0 <= warmup < total:
            raise ValueError(f"the warm-up of {warmup} steps must be shorter than the run of {total}")
        self.peak, self.total, self.warmup, self.start, self.end = learning_rate, total, warmup, start, end
        super().__init__(learning_rate=learning_rate)

    def get_lr(self) -> float:
        step = min(self.last_epoch, self.total)
        if step < self.warmup:
            return self.start + (self.peak - self.start) * step / self.warmup
        progress = (step - self.warmup) / (self.total - self.warmup)
        return self.end + (self.peak - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))


class WarmupMultiStep(paddle.optimizer.lr.LRScheduler):
    """Linear warm-up beside steps: at every one of ``milestones``, counted from the start, the rate is multiplied by
    ``gamma``; in the first ``warmup`` steps also by a factor that rises from ``start / learning_rate`` to 1."""

    def __init__(
        self, learning_rate: float, milestones: Sequence[int], gamma: float = 0.1, warmup: int = 0, start: float = 0.0
    ) -> None:
        if list(milestones) != sorted(set(milestones)):
            raise ValueError(f"milestones must rise, got {list(milestones)}")
        self.peak, self.milestones, self.gamma = learning_rate, milestones, gamma
        self.warmup, self.start = warmup, start
        super().__init__(learning_rate=learning_rate)

    def get_lr(self) -> float:
        step = self.last_epoch
        rate = self.peak * self.gamma ** sum(step >= milestone for milestone in self.milestones)
        if step < self.warmup:
            share = self.start / self.peak
            rate *= share + (1 - share) * step / self.warmup
        return rate


def schedulers() -> dict[str, Any]:
    """Schedulers by name: Paddle's own and ours."""
    module = paddle.optimizer.lr
    found = {name: getattr(module, name) for name in module.__all__ if name not in ("LRScheduler", "LinearWarmup")}
    return {**found, "WarmupCosine": WarmupCosine, "WarmupMultiStep": WarmupMultiStep}


def build_scheduler(recipe: Recipe, where: str) -> Any:
    """The scheduler of a recipe whose durations are in iterations; ``where`` names its block in an error."""
    schedule, arguments = recipe.schedule, dict(recipe.schedule.arguments)
    warmup = schedule.warmup
    if schedule.type == "WarmupCosine":
        warmup, arguments["warmup"] = 0, min(warmup, recipe.iters - 1)
        arguments.update(total=recipe.iters, start=schedule.warmup_start)
    elif schedule.type == "WarmupMultiStep":
        warmup, arguments["warmup"], arguments["start"] = 0, warmup, schedule.warmup_start
    elif schedule.type == "PolynomialDecay":
        arguments.setdefault("decay_steps", max(recipe.iters - warmup, 1))
    elif schedule.type == "CosineAnnealingDecay":
        arguments.setdefault("T_max", max(recipe.iters - warmup, 1))
    elif schedule.type == "LambdaDecay":
        arguments.setdefault("lr_lambda", lambda step: 1.0)
    without_rate = ("PiecewiseDecay", "OneCycleLR", "CyclicLR")
    given = {} if schedule.type in without_rate else {"learning_rate": schedule.learning_rate}
    scheduler = build(schedule.type, {**given, **arguments}, schedulers(), where)
    if not warmup:
        return scheduler
    with building(where):
        return paddle.optimizer.lr.LinearWarmup(scheduler, warmup, schedule.warmup_start, schedule.learning_rate)


def parameter_groups(model: Any, factors: Mapping[str, Factors], weight_decay: float | None) -> Any:
    """Paddle's parameter groups: a group for each pair of factors, in the order in which they first occur.

    Args:
        factors: by the parameter's name; all others have the default.
    """
    groups: dict[Factors, list[Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.stop_gradient:
            groups.setdefault(factors.get(name, Factors()), []).append(parameter)
    if set(groups) <= {Factors()}:
        return model.parameters()
    found = []
    for factor, parameters in groups.items():
        group: dict[str, Any] = {"params": parameters, "learning_rate": factor.lr}
        if factor.decay is not None and weight_decay is not None:
            group["weight_decay"] = weight_decay * factor.decay
        found.append(group)
    return found


def build_optimizer(recipe: Recipe, model: Any, scheduler: Any, factors: Mapping[str, Factors], where: str) -> Any:
    """The optimizer of a recipe. The global norm is clipped by the loop: Paddle would clip each group by itself."""
    arguments = dict(recipe.optimizer_arguments)
    if recipe.weight_decay is not None or recipe.optimizer != "AdamW":
        arguments["weight_decay"] = recipe.weight_decay
    with building(where):
        if recipe.clip is not None:
            settings = dict(recipe.clip)
            arguments["grad_clip"] = getattr(nn, settings.pop("name"))(**settings)
        groups = parameter_groups(model, factors, recipe.weight_decay)
        optimizer = AdamW if recipe.optimizer == "AdamW" else getattr(paddle.optimizer, recipe.optimizer)
        return optimizer(learning_rate=scheduler, parameters=groups, **arguments)
