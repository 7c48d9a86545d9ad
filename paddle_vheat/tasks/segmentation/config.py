"""PaddleSeg's schema: what its keys may hold, and the recipe that they describe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from paddle_vheat.config import ConfigError, option, read_options
from paddle_vheat.config.build import arguments_of, find_problems
from paddle_vheat.config.options import INFINITE, check_value
from paddle_vheat.data.image_file import MAX_PIXELS
from paddle_vheat.engine.optim import Factors, Recipe, Schedule, schedulers
from paddle_vheat.models.vheat import MIN_SIZE
from paddle_vheat.tasks.segmentation.agreement import agreement_problems, bank_problems
from paddle_vheat.tasks.segmentation.transforms import build_transform

_SIZES = ("crop_size", "target_size")
# What arguments of PaddleSeg's components may be, which do not check them; by the end of their names.
_RANGES = {
    "prob": option(float, min=0, max=1),
    "top_k_percent_pixels": option(float, above=0, max=1),
    "num_classes": option(int, None, min=1, max=1 << 20),
    "img_channels": option(int, None, min=1, max=1 << 10),
    "ignore_index": option(int, None),
}
_WORDS = ("dataset_root", "train_path", "val_path", "test_path", "separator", "mode", "type")


@dataclass(frozen=True)
class TestOptions:
    """``test_config``: how an image is evaluated."""

    aug_eval: bool = option(bool, False)
    scales: Any = option(list, [1.0], items=float, above=0, max=64)
    flip_horizontal: bool = option(bool, False)
    flip_vertical: bool = option(bool, False)
    is_slide: bool = option(bool, False)
    crop_size: Any = option(list, None, items=int, length=2, min=1, max=100_000)
    stride: Any = option(list, None, items=int, length=2, min=1, max=100_000)

    def problems(self, where: str) -> list[str]:
        if not self.is_slide:
            return []
        if self.crop_size is None or self.stride is None:
            return [f"'{where}': sliding windows need crop_size and stride, each as width height"]
        if self.stride[0] > self.crop_size[0] or self.stride[1] > self.crop_size[1]:
            return [f"'{where}.stride' {self.stride} is larger than the window {self.crop_size}: pixels are missed"]
        return []


@dataclass(frozen=True)
class ParameterGroup:
    """An entry of ``optimizer.custom_cfg``: parameters whose name contains ``name``."""

    name: str = option(str)
    lr_mult: float = option(float, 1.0, min=0, max=INFINITE)
    weight_decay_mult: float | None = option(float, None, min=0, max=INFINITE)


@dataclass(frozen=True)
class OptimizerOptions:
    """What every optimizer takes."""

    weight_decay: float | None = option(float, None, min=0, max=INFINITE)
    grad_clip_cfg: dict | None = option(dict, None)
    custom_cfg: Any = option(list, None, items=ParameterGroup)


@dataclass(frozen=True)
class Momentum(OptimizerOptions):
    momentum: float = option(float, 0.9, min=0, below=1)
    use_nesterov: bool = option(bool, False)


@dataclass(frozen=True)
class Adam(OptimizerOptions):
    beta1: float = option(float, 0.9, min=0, below=1)
    beta2: float = option(float, 0.999, min=0, below=1)
    epsilon: float = option(float, 1e-8, above=0, max=1)
    lazy_mode: bool = option(bool, False)


@dataclass(frozen=True)
class AdamW(Adam):
    weight_decay: float | None = option(float, 0.01, min=0, max=INFINITE)


@dataclass(frozen=True)
class ClipByNorm:
    clip_norm: float = option(float, min=1e-30, max=INFINITE)  # float32's positive numbers


@dataclass(frozen=True)
class ClipByValue:
    max: float = option(float, min=1e-30, max=INFINITE)
    min: float | None = option(float, None, min=-INFINITE, max=0)


CLIPS: dict[str, type] = {
    "ClipGradByGlobalNorm": ClipByNorm, "ClipGradByNorm": ClipByNorm, "ClipGradByValue": ClipByValue
}  # fmt: skip
OPTIMIZERS: dict[str, type] = {"SGD": OptimizerOptions, "Momentum": Momentum, "Adam": Adam, "AdamW": AdamW}
_LOWER_CASE = {"sgd": "SGD", "adam": "Adam"}


@dataclass(frozen=True)
class SegmentationOptions:
    """The keys at the top of a configuration."""

    batch_size: int = option(int, min=1, max=10**5)
    iters: int = option(int, min=1, max=10**9)
    model: dict = option(dict)
    train_dataset: dict = option(dict)
    optimizer: dict = option(dict)
    lr_scheduler: dict = option(dict)
    loss: dict = option(dict)
    val_dataset: dict | None = option(dict, None)
    test_config: TestOptions | None = option(TestOptions, None)
    export: dict | None = option(dict, None)
    to_static_training: bool = option(bool, False, choices=(False,))
    distill_loss: Any = option(dict, None, choices=(None,))
    accumulation: int = option(int, 1, min=1, max=10**5)
    class_names: Any = option(list, None, items=str)
    task: str | None = option(str, None)


def read(config: Mapping[str, Any], registry: Mapping[str, Any]) -> tuple[SegmentationOptions, list[str]]:
    """The options, and everything that is wrong with a configuration: unknown keys, values of another kind or out of
    range, names and arguments that do not exist, sizes that cannot be.

    The first key in quotes of each problem is the block at fault. Where a top-level value is wrong, the options hold
    null in its place.

    Args:
        registry: PaddleSeg's components by name.
    """
    problems: list[str] = []
    test = config.get("test_config")
    if isinstance(test, Mapping) and isinstance(test.get("scales"), (int, float)):  # PaddleSeg takes a single one too
        config = {**config, "test_config": {**test, "scales": [test["scales"]]}}
    options = read_options(SegmentationOptions, config, "", problems)
    if options is None:
        good = {key: value for key, value in config.items() if key not in broken_blocks(problems)}
        blank = {f.name: None if f.default is MISSING else f.default for f in fields(SegmentationOptions)}
        options = SegmentationOptions(**{**blank, **{k: v for k, v in good.items() if k in blank}})
    spoilt = broken_blocks(problems)
    for key in ("train_dataset", "val_dataset", "loss", "model"):
        if key not in spoilt:
            _component_problems(getattr(options, key), key, registry, problems)
    if isinstance(options.test_config, TestOptions):
        problems += options.test_config.problems("test_config")
    spoilt = broken_blocks(problems)
    if "loss" not in spoilt and options.loss is not None:
        problems += _loss_problems(options.loss)
    if "optimizer" not in spoilt and options.optimizer is not None:
        problems += _optimizer_problems(options.optimizer)
    if "lr_scheduler" not in spoilt and options.lr_scheduler is not None:
        problems += _schedule_problems(options.lr_scheduler)
    for key in ("train_dataset", "val_dataset"):
        if key not in spoilt:
            problems += _dataset_problems(getattr(options, key), key, options.model)
    if not broken_blocks(problems) & {"loss", "model", "train_dataset", "val_dataset"}:
        problems += bank_problems(options) + agreement_problems(options, registry)
    return options, problems


def broken_blocks(problems: list[str]) -> set[str]:
    """The blocks that problems, as :func:`read` gives them, are in."""
    return {problem.split("'")[1].split(".")[0] for problem in problems}


_OF_COMPONENTS = ("transforms", "types", "losses", "backbone")


def _component_problems(block: Any, where: str, registry: Mapping[str, Any], problems: list[str]) -> None:
    """Check ``type`` and the arguments of every component in a block, wherever it is nested."""
    place = where.split(".")
    of_components = place[-1] in _OF_COMPONENTS[-1:] or (len(place) > 1 and place[-2] in _OF_COMPONENTS[:-1])
    if isinstance(block, Mapping) and "type" not in block and (of_components or where in ("model", "train_dataset")):
        problems.append(f"'{where}.type' is missing: the name of a component")
    if isinstance(block, list):
        for i, item in enumerate(block):
            _component_problems(item, f"{where}.{i}", registry, problems)
    if not isinstance(block, Mapping):
        return
    if "type" in block:
        name = block["type"]
        taken = arguments_of(registry[name]) if isinstance(name, str) and name in registry else None
        arguments = {key: value for key, value in block.items() if key != "type"}
        # What is missing is reported when the component is built: a data set's class may give it.
        problems += find_problems(name, arguments, registry, where, taken[1] if taken else ())
    for key, value in block.items():
        _component_problems(value, f"{where}.{key}", registry, problems)
        for end, rule in _RANGES.items():
            if key.endswith(end):
                check_value(value, rule, f"{where}.{key}", problems)


def _loss_problems(loss: Mapping[str, Any]) -> list[str]:
    types: Any = loss.get("types")
    coefficients: Any = loss.get("coef")
    problems = [
        f"'loss.{key}' must be a list of {what}, got {value!r}"
        for key, value, kind, what in (
            ("types", types, Mapping, "blocks"),
            ("coef", coefficients, (int, float), "numbers"),
        )
        if not (isinstance(value, list) and value and all(isinstance(item, kind) for item in value))
    ]
    if problems:
        return problems
    if len(types) not in (1, len(coefficients)):
        problems.append(f"'loss' has {len(types)} types and {len(coefficients)} coefficients; expected one for each")
    problems += _weights_problems(coefficients, "loss.coef")
    for i, block in enumerate(types):
        for j, part in enumerate(block.get("losses", [block])):
            if part.get("weight") is not None:
                where = f"loss.types.{i}.losses.{j}.weight" if "losses" in block else f"loss.types.{i}.weight"
                problems += _weights_problems(part["weight"], where)
    return problems


def _weights_problems(values: Any, where: str) -> list[str]:
    """Weights turn a loss around where they are negative, and switch it off where all are zero."""
    right = isinstance(values, list) and all(_finite(value) and value >= 0 for value in values) and any(values)
    return [] if right else [f"'{where}' must be a list of numbers of at least 0, not all of them 0, got {values!r}"]


def _optimizer_problems(block: Mapping[str, Any]) -> list[str]:
    problems: list[str] = []
    name = block.get("type")
    name = _LOWER_CASE.get(name, name) if isinstance(name, str) else name
    name = "Momentum" if name == "SGD" and "momentum" in block else name
    if not isinstance(name, str) or name not in OPTIMIZERS:
        return find_problems(name, {}, OPTIMIZERS, "optimizer.type")
    arguments = {key: value for key, value in block.items() if key != "type"}
    options = read_options(OPTIMIZERS[name], arguments, "optimizer", problems)
    clip = getattr(options, "grad_clip_cfg", None)
    if clip is not None:
        kind = CLIPS.get(str(clip.get("name")))
        if kind is None:
            problems += find_problems(clip.get("name"), {}, CLIPS, "optimizer.grad_clip_cfg.name")
        else:
            values = {key: value for key, value in clip.items() if key != "name"}
            read_options(kind, values, "optimizer.grad_clip_cfg", problems)
    return problems


def _schedule_problems(block: Mapping[str, Any]) -> list[str]:
    arguments = {key: value for key, value in block.items() if key not in ("type", "warmup_iters", "warmup_start_lr")}
    found = find_problems(
        block.get("type"), arguments, schedulers(), "lr_scheduler", ("decay_steps", "T_max", "lr_lambda", "total")
    )
    rate, warmup, start = block.get("learning_rate", 1), block.get("warmup_iters", 0), block.get("warmup_start_lr", 0)
    if not (_finite(rate) and rate > 0):
        found.append(f"'lr_scheduler.learning_rate' must be a number above 0, got {rate!r}")
    if isinstance(warmup, bool) or not isinstance(warmup, int) or not 0 <= warmup <= 10**9:
        found.append(f"'lr_scheduler.warmup_iters' must be an integer of at least 0, got {warmup!r}")
    if "warmup_iters" in block and "warmup_start_lr" not in block:
        found.append("'lr_scheduler.warmup_start_lr' is missing, and warmup_iters is given")
    if not (_finite(start) and start >= 0):
        found.append(f"'lr_scheduler.warmup_start_lr' must be a number of at least 0, got {start!r}")
    for key, value in arguments.items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, (int, float)) and not (_finite(+number) and number >= 0) and key != "last_epoch":
                found.append(f"'lr_scheduler.{key}' must not be below 0 or infinite, got {value!r}")
    return found


def _dataset_problems(block: Mapping[str, Any] | None, key: str, model: Mapping[str, Any] | None) -> list[str]:
    """Words that are none, and crops too small for vHeat or too large for any memory."""
    if block is None:
        return []
    # A number would be taken for an open file's: PaddleSeg would read, and close, the program's own output.
    problems = [
        f"'{key}.{name}' must be a word or a path, got {block[name]!r}"
        for name in _WORDS
        if block.get(name) is not None and not isinstance(block[name], str)
    ]
    transforms = block.get("transforms")
    if not (isinstance(transforms, list) and all(isinstance(item, Mapping) for item in transforms)):
        return [*problems, f"'{key}.transforms' must be a list of blocks, got {transforms!r}"]
    backbone = model.get("backbone") if isinstance(model, Mapping) else None
    name = str(backbone.get("type", "")) if isinstance(backbone, Mapping) else ""
    low = MIN_SIZE if name.startswith("vHeat") else 1
    for i, transform in enumerate(transforms):
        if transform.get("type") == "Normalize":  # the only one that changes every pixel of every image
            build_transform(transform, f"{key}.transforms.{i}", block.get("img_channels") or 3, problems)
        for argument in _SIZES:
            size = transform.get(argument)
            pair = size if isinstance(size, (list, tuple)) else [size, size]
            if size is None or not all(isinstance(n, (int, float)) for n in pair):
                continue  # of the wrong kind: the transform says so itself
            where = f"'{key}.transforms.{i}.{argument}' is {size}"
            if min(pair) < low:
                problems.append(f"{where}; {name or 'an image'} needs at least {low} pixels a side")
            elif math.prod(pair) > MAX_PIXELS:
                problems.append(f"{where}, more than {MAX_PIXELS} pixels")
    return problems


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# --- the recipe ---------------------------------------------------------------------------------------


def make_recipe(options: SegmentationOptions) -> Recipe:
    """The recipe of sound options."""
    block, schedule = dict(options.optimizer), dict(options.lr_scheduler)
    name: str = block.pop("type")
    name = _LOWER_CASE.get(name, name)
    name = "Momentum" if name == "SGD" and "momentum" in block else name
    chosen: Any = read_options(OPTIMIZERS[name], block, "optimizer", [])
    shared = {field.name for field in fields(OptimizerOptions)}
    arguments = {field.name: getattr(chosen, field.name) for field in fields(chosen) if field.name not in shared}
    clip = dict(chosen.grad_clip_cfg or {})
    is_global = clip.get("name") == "ClipGradByGlobalNorm"
    warmup, start = schedule.pop("warmup_iters", 0), schedule.pop("warmup_start_lr", 0.0)
    kind, rate = schedule.pop("type"), schedule.pop("learning_rate", 0.0)
    return Recipe(
        Schedule(rate, kind, schedule, warmup, start),
        iters=options.iters,
        batch_size=options.batch_size,
        accumulation=options.accumulation,
        optimizer=name,
        optimizer_arguments=arguments,
        weight_decay=chosen.weight_decay,
        clip_norm=float(clip["clip_norm"]) if is_global else None,
        clip=clip if clip and not is_global else None,
    )


def parameter_factors(options: SegmentationOptions, model: Any) -> dict[str, Factors]:
    """Factors of ``optimizer.custom_cfg``: the first entry whose ``name`` is part of the parameter's.

    Raises:
        ConfigError: for an entry that is of no parameter.
    """
    entries = options.optimizer.get("custom_cfg") or []
    names = [name for name, _ in model.named_parameters()]
    for i, entry in enumerate(entries):
        if not any(entry["name"] in name for name in names):
            raise ConfigError(f"'optimizer.custom_cfg.{i}.name' is {entry['name']!r}, and no parameter's name has it")
    factors = {}
    for name in names:
        for entry in entries:
            if entry["name"] in name:
                factors[name] = Factors(entry.get("lr_mult", 1.0), entry.get("weight_decay_mult"))
                break
    return factors
