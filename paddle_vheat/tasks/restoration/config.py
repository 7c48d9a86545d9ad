"""The schema of restoration, and the recipe that it describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paddle_vheat.config import option, read_options
from paddle_vheat.config.build import find_problems
from paddle_vheat.engine.optim import Recipe, Schedule
from paddle_vheat.models.restoration import MODELS
from paddle_vheat.tasks.restoration.degrade import GRID
from paddle_vheat.tasks.restoration.tiles import OVERLAP, check_tile


@dataclass(frozen=True)
class DegradationOptions:
    """Noise of deviation ``sigma`` / 255, or JPEG of a quality."""

    type: str = option(str, choices=("noise", "jpeg"))
    sigma: float | None = option(float, None, above=0, max=255)
    quality: int | None = option(int, None, min=1, max=100)

    def problems(self) -> list[str]:
        needed, other = ("sigma", "quality") if self.type == "noise" else ("quality", "sigma")
        found = [f"'degradation.{needed}' is missing, which '{self.type}' needs"] * (getattr(self, needed) is None)
        return found + [f"'degradation.{other}' is not for '{self.type}'"] * (getattr(self, other) is not None)


@dataclass(frozen=True)
class TrainOptions:
    """``to_gray`` says how colour images become gray for a gray model; without it, they are an error."""

    folders: Sequence[str] = option(list, items=str)
    crop: int = option(int, min=8, max=4096)
    to_gray: str | None = option(str, None, choices=("opencv", "luma", "either"))
    cache: bool = option(bool, False)  # keep decoded images in memory
    num_workers: int = option(int, 0, min=0, max=1024)

    def pixels(self, degradation: DegradationOptions) -> int:
        """Smallest side of an image: JPEG's crop is cut out of a larger one, so that its grid may begin anywhere."""
        return self.crop + GRID * (degradation.type == "jpeg")


@dataclass(frozen=True)
class ValOptions:
    folders: Sequence[str] = option(list, items=str)
    to_gray: str | None = option(str, None, choices=("opencv", "luma"))
    tile: int | None = option(int, None, min=1, max=2**16)
    overlap: int = option(int, OVERLAP, min=0, max=2**16)


@dataclass(frozen=True)
class LossOptions:
    """Mean of sqrt(d^2 + eps)."""

    type: str = option(str, "Charbonnier", choices=("Charbonnier",))
    eps: float = option(float, 1e-9, above=0, max=1)


@dataclass(frozen=True)
class OptimizerOptions:
    type: str = option(str, "Adam", choices=("Adam",))
    beta1: float = option(float, 0.9, min=0, below=1)
    beta2: float = option(float, 0.999, min=0, below=1)
    epsilon: float = option(float, 1e-8, above=0, max=1)
    weight_decay: float = option(float, 0.0, min=0, max=1)


@dataclass(frozen=True)
class ScheduleOptions:
    """Steps at ``milestones``, or half a cosine down to ``end_lr``."""

    learning_rate: float = option(float, above=0, max=1e3)
    type: str = option(str, "MultiStep", choices=("MultiStep", "Cosine"))
    milestones: Sequence[int] = option(list, [], items=int, min=1)
    gamma: float = option(float, 0.5, above=0, max=1)
    end_lr: float = option(float, 0.0, min=0, max=1e3)


@dataclass(frozen=True)
class RestorationOptions:
    """All keys of a configuration; see docs/restoration.md."""

    model: Mapping[str, Any] = option(dict)
    degradation: DegradationOptions = option(DegradationOptions)
    train: TrainOptions = option(TrainOptions)
    val: ValOptions = option(ValOptions)
    lr_scheduler: ScheduleOptions = option(ScheduleOptions)
    iters: int = option(int, min=1, max=10**9)
    batch_size: int = option(int, min=1, max=10**5)
    optimizer: OptimizerOptions = option(OptimizerOptions, OptimizerOptions())
    loss: LossOptions = option(LossOptions, LossOptions())
    ema: float | None = option(float, None, min=0, below=1)
    pretrained: str | None = option(str, None)
    task: str | None = option(str, None)

    @property
    def channels(self) -> int:
        """1 (gray) or 3 (RGB)."""
        return int(self.model.get("in_channels", 1))


def read(config: Mapping[str, Any]) -> tuple[RestorationOptions | None, list[str]]:
    """The options (None where they cannot be), and everything that is wrong with a configuration."""
    problems: list[str] = []
    options = read_options(RestorationOptions, config, "", problems)
    if options is None:
        return None, problems
    arguments = dict(options.model)
    problems += find_problems(arguments.pop("name", None), arguments, MODELS, "model")
    problems += options.degradation.problems()
    problems += [f"'val.tile' and 'val.overlap': {text}" for text in check_tile(options.val.tile, options.val.overlap)]
    if arguments.get("in_channels", 1) not in (1, 3):
        problems.append(f"'model.in_channels' must be one of 1, 3, got {arguments['in_channels']!r}")
    elif options.channels == 3:
        given = [name for name in ("train", "val") if getattr(options, name).to_gray is not None]
        problems += [f"'{name}.to_gray' is for gray models, and 'model.in_channels' is 3" for name in given]
    if options.train.to_gray == "either" and options.degradation.type != "jpeg":
        problems.append("'train.to_gray' may be 'either' for JPEG only; expected opencv or luma")
    if not options.train.folders or not options.val.folders:
        problems.append("'train.folders' and 'val.folders' must name at least one folder each")
    return options, problems


def make_recipe(options: RestorationOptions) -> Recipe:
    """Durations are in iterations. The average of the weights keeps the same share of itself from the first step."""
    lr, optimizer = options.lr_scheduler, options.optimizer
    if lr.type == "MultiStep":
        schedule = Schedule(lr.learning_rate, "WarmupMultiStep", {"milestones": lr.milestones, "gamma": lr.gamma})
    else:
        schedule = Schedule(lr.learning_rate, "WarmupCosine", {"end": lr.end_lr})
    return Recipe(
        schedule,
        iters=options.iters,
        batch_size=options.batch_size,
        optimizer=optimizer.type,
        optimizer_arguments={"beta1": optimizer.beta1, "beta2": optimizer.beta2, "epsilon": optimizer.epsilon},
        weight_decay=optimizer.weight_decay or None,
        ema_decay=options.ema,
        ema_warm_up=False,
        save_interval=min(5000, options.iters),
        num_workers=options.train.num_workers,
    )
