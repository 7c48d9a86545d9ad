"""The schema of detection: what its keys may hold, and the recipe that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from paddle_vheat.config import option, read_options
from paddle_vheat.config.options import INFINITE
from paddle_vheat.engine.loader import max_workers
from paddle_vheat.engine.optim import Epochs, Recipe, Schedule
from paddle_vheat.models.mask_rcnn import MODELS, MaskRCNN, Selection, build_mask_rcnn
from paddle_vheat.models.vheat import MIN_SIZE, VHeat

CUSTOM = "mask_rcnn_vheat"  # of any width and depth
MAX_SIDE = 10**4
IMAGENET_MEAN, IMAGENET_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


@dataclass(frozen=True)
class SelectionOptions:
    """``model.selection``; see :class:`paddle_vheat.models.mask_rcnn.Selection`."""

    train_per_level: int = option(int, 2000, min=1, max=10**5)
    test_per_level: int = option(int, 1000, min=1, max=10**5)
    proposals: int = option(int, 1000, min=1, max=10**5)
    rpn_samples: int = option(int, 256, min=2, max=10**5)
    roi_samples: int = option(int, 512, min=4, max=10**5)
    score_threshold: float = option(float, 0.05, min=0, below=1)
    detections: int = option(int, 100, min=1, max=10**4)


@dataclass(frozen=True)
class ModelOptions:
    """``model``. ``embed_dim`` and ``depths`` are for the name without a variant, and needed there."""

    name: str = option(str, choices=(*MODELS, CUSTOM))
    num_classes: int = option(int, min=1, max=10**5)
    img_size: int = option(int, 512, min=MIN_SIZE, max=MAX_SIDE)
    drop_path_rate: float = option(float, 0.1, min=0, below=1)
    pretrained: str | None = option(str, None)
    recompute: bool = option(bool, False)
    channels: int = option(int, 256, min=1, max=10**4)
    fc_channels: int = option(int, 1024, min=1, max=10**5)
    embed_dim: int | None = option(int, None, min=1, max=10**4)
    depths: Any = option(list, None, items=int, length=4, min=1, max=10**3)
    selection: SelectionOptions = option(SelectionOptions, SelectionOptions())


@dataclass(frozen=True)
class SplitOptions:
    """A set of images. ``skip_empty``: train without images that have no object or a side below 32 pixels."""

    image_dir: str = option(str)
    annotations: str = option(str)
    skip_empty: bool = option(bool, True)


@dataclass(frozen=True)
class DataOptions:
    train: SplitOptions = option(SplitOptions)
    val: SplitOptions = option(SplitOptions)


@dataclass(frozen=True)
class CropOptions:
    """Resize to a shorter side of these, then crop; each side of the crop is drawn from ``min`` to ``max`` pixels."""

    short_sides: Any = option(list, items=int, min=MIN_SIZE, max=MAX_SIDE)
    min: int = option(int, min=MIN_SIZE, max=MAX_SIDE)
    max: int = option(int, min=MIN_SIZE, max=MAX_SIDE)


@dataclass(frozen=True)
class TransformOptions:
    """What is done to images; ``short_sides`` and ``crop`` are for training, ``scale`` is longest, shortest side."""

    scale: Any = option(list, [1333, 800], items=int, length=2, min=MIN_SIZE, max=MAX_SIDE)
    mean: Any = option(list, IMAGENET_MEAN, items=float, length=3)
    std: Any = option(list, IMAGENET_STD, items=float, length=3, above=0)
    flip: float = option(float, 0.5, min=0, max=1)
    short_sides: Any = option(list, None, items=int, min=MIN_SIZE, max=MAX_SIDE)
    crop: CropOptions | None = option(CropOptions, None)

    def problems(self) -> list[str]:
        found = []
        if self.scale[0] < self.scale[1]:
            found.append(f"'transforms.scale' must be [longest side, shortest side], got {self.scale}")
        if self.short_sides == [] or (self.crop is not None and not self.crop.short_sides):
            found.append("'transforms.short_sides' and 'transforms.crop.short_sides' must not be empty")
        if self.crop is not None and self.short_sides is None:
            found.append("'transforms.crop' needs 'transforms.short_sides', to which the crop is resized")
        if self.crop is not None and self.crop.min > self.crop.max:
            found.append(f"'transforms.crop.min' is {self.crop.min}, larger than max, {self.crop.max}")
        return found


@dataclass(frozen=True)
class OptimizerOptions:
    learning_rate: float = option(float, above=0, max=1e6)
    type: str = option(str, "AdamW", choices=("AdamW",))
    beta1: float = option(float, 0.9, min=0, below=1)
    beta2: float = option(float, 0.999, min=0, below=1)
    epsilon: float = option(float, 1e-8, above=0, max=1)
    weight_decay: float = option(float, 0.05, min=0, max=1e6)
    clip_norm: float | None = option(float, None, above=0, max=INFINITE)


@dataclass(frozen=True)
class ScheduleOptions:
    """Length in ``epochs`` or ``iters``, and ``milestones`` in the same, at which the rate is multiplied by ``gamma``;
    meanwhile it rises from ``warmup_factor`` times itself in the first ``warmup_iters`` iterations."""

    epochs: int | None = option(int, None, min=1, max=10**6)
    iters: int | None = option(int, None, min=1, max=10**9)
    milestones: Any = option(list, [], items=int, min=1, max=10**9)
    gamma: float = option(float, 0.1, above=0, max=1)
    warmup_iters: int = option(int, 0, min=0, max=10**9)
    warmup_factor: float = option(float, 0.001, above=0, max=1)

    def problems(self) -> list[str]:
        found = []
        if (self.epochs is None) == (self.iters is None):
            found.append("'schedule' must have one of epochs and iters")
        if self.milestones != sorted(set(self.milestones)):
            found.append(f"'schedule.milestones' must rise, got {self.milestones}")
        return found


@dataclass(frozen=True)
class DetectionOptions:
    """The keys at the top of a configuration."""

    task: str = option(str, choices=("detection",))
    batch_size: int = option(int, min=1, max=10**5)
    model: ModelOptions = option(ModelOptions)
    data: DataOptions = option(DataOptions)
    optimizer: OptimizerOptions = option(OptimizerOptions)
    schedule: ScheduleOptions = option(ScheduleOptions)
    transforms: TransformOptions = option(TransformOptions, TransformOptions())
    accumulation: int = option(int, 1, min=1, max=10**5)
    eval_batch_size: int = option(int, 1, min=1, max=10**4)
    num_workers: int = option(int, 0, min=0, max=max_workers())
    threshold: float = option(float, 0.3, min=0, below=1)  # of what is drawn and written


def read(config: Mapping[str, Any]) -> tuple[DetectionOptions | None, list[str]]:
    """The options, None if they cannot be, and everything that is wrong with a configuration."""
    problems: list[str] = []
    options = read_options(DetectionOptions, config, "", problems)
    if options is None:
        return None, problems
    problems += options.transforms.problems() + options.schedule.problems()
    model = options.model
    custom = (model.embed_dim is not None, model.depths is not None)
    if custom != (model.name == CUSTOM,) * 2:
        problems.append(f"'model.embed_dim' and 'model.depths' are needed by {CUSTOM}, and are no others' keys")
    return (None if problems else options), problems


def build(model: ModelOptions) -> MaskRCNN:
    """The model with random weights."""
    heads: dict[str, Any] = {"channels": model.channels, "fc_channels": model.fc_channels}
    selection = Selection(**asdict(model.selection))
    options: dict[str, Any] = {name: getattr(model, name) for name in ("img_size", "drop_path_rate", "recompute")}
    if model.name == CUSTOM:
        backbone = VHeat(embed_dim=model.embed_dim or 0, depths=tuple(model.depths), out_norms=True, **options)
        return MaskRCNN(model.num_classes, backbone, selection=selection, **heads)
    return build_mask_rcnn(model.name, model.num_classes, selection=selection, **options, **heads)


def make_recipe(options: DetectionOptions) -> Recipe:
    optimizer, schedule = options.optimizer, options.schedule

    def duration(count: int) -> Any:
        return Epochs(count) if schedule.iters is None else count

    length = schedule.epochs if schedule.iters is None else schedule.iters
    lr = Schedule(
        optimizer.learning_rate,
        "WarmupMultiStep",
        {"milestones": [duration(count) for count in schedule.milestones], "gamma": schedule.gamma},
        schedule.warmup_iters,
        schedule.warmup_factor * optimizer.learning_rate,
    )
    return Recipe(
        lr,
        iters=duration(length or 1),
        batch_size=options.batch_size,
        accumulation=options.accumulation,
        optimizer=optimizer.type,
        optimizer_arguments={"beta1": optimizer.beta1, "beta2": optimizer.beta2, "epsilon": optimizer.epsilon},
        weight_decay=optimizer.weight_decay,
        clip_norm=optimizer.clip_norm,
        save_interval=Epochs(1) if schedule.iters is None else 1000,
        num_workers=options.num_workers,
    )
