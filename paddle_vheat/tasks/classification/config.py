"""PaddleClas' schema: what its keys may hold, and the recipe that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paddle_vheat.config import option, read_options, unknown_keys
from paddle_vheat.config.build import arguments_of, find_problems
from paddle_vheat.config.options import INFINITE
from paddle_vheat.engine.loader import max_workers
from paddle_vheat.engine.optim import Epochs, Factors, Recipe, Schedule
from paddle_vheat.models import VARIANTS, VHeat
from paddle_vheat.models.vheat import MIN_SIZE
from paddle_vheat.tasks.classification.data import ImageNetDataset
from paddle_vheat.tasks.classification.digits import Digits

DATASETS = {"ImageNetDataset": ImageNetDataset, "Digits": Digits}
ARCHITECTURES = {name.replace("vheat", "vHeat"): name for name in VARIANTS}


@dataclass(frozen=True)
class GlobalOptions:
    """``Global``. The keys of the second half are PaddleClas' own: here the command line decides them, and so they must
    not ask for anything that would then not happen."""

    epochs: int = option(int, 300, min=1, max=10**6)
    iters: int | None = option(int, None, min=1, max=10**9)
    update_freq: int = option(int, 1, min=1, max=10**5)
    class_names: str | None = option(str, None)
    save_interval: int = option(int, 1, min=1, max=10**6)
    eval_interval: int = option(int, 1, min=1, max=10**6)

    checkpoints: Any = option(str, None, choices=(None,))  # --resume_model
    pretrained_model: Any = option(str, None, choices=(None,))  # Arch.pretrained, --model_path
    to_static: bool = option(bool, False, choices=(False,))
    output_dir: Any = option(str, None)
    device: Any = option(str, None)
    eval_during_train: bool = option(bool, True)
    print_batch_step: Any = option(int, None)
    use_visualdl: bool = option(bool, False)
    image_shape: Any = option(list, None)
    save_inference_dir: Any = option(str, None)
    seed: Any = option(int, None, min=0)
    task: Any = option(str, None)


@dataclass(frozen=True)
class AmpOptions:
    use_amp: bool = option(bool, True)
    level: str = option(str, "O1", choices=("O1", "O2"))
    scale_loss: float = option(float, 1024.0, above=0, max=2.0**40)
    use_dynamic_loss_scaling: bool = option(bool, True)
    dtype: str = option(str, "float16", choices=("float16", "bfloat16"))


@dataclass(frozen=True)
class EmaOptions:
    decay: float = option(float, 0.9999, min=0, below=1)


@dataclass(frozen=True)
class LrOptions:
    learning_rate: float = option(float, above=0, max=1e6)
    name: str = option(str, "Cosine", choices=("Cosine",))
    eta_min: float = option(float, 0.0, min=0, max=1e6)
    warmup_epoch: float = option(float, 0, min=0, max=1e6)
    warmup_start_lr: float = option(float, 0.0, min=0, max=1e6)
    by_epoch: bool = option(bool, False, choices=(False,))


@dataclass(frozen=True)
class OptimizerOptions:
    lr: LrOptions = option(LrOptions)
    name: str = option(str, "AdamW", choices=("AdamW",))
    beta1: float = option(float, 0.9, min=0, below=1)
    beta2: float = option(float, 0.999, min=0, below=1)
    epsilon: float = option(float, 1e-8, above=0, max=1)
    weight_decay: float = option(float, 0.01, min=0, max=1e6)
    one_dim_param_no_weight_decay: bool = option(bool, False)
    clip_norm: float | None = option(float, None, above=0, max=INFINITE)


@dataclass(frozen=True)
class SamplerOptions:
    batch_size: int = option(int, min=1, max=10**5)
    name: str = option(str, "DistributedBatchSampler", choices=("DistributedBatchSampler", "BatchSampler"))
    shuffle: bool = option(bool, False)
    drop_last: bool = option(bool, False)


@dataclass(frozen=True)
class LoaderOptions:
    num_workers: int = option(int, 0, min=0, max=max_workers())
    use_shared_memory: bool = option(bool, True)  # of Paddle's own loader


@dataclass(frozen=True)
class PartOptions:
    dataset: dict = option(dict)
    sampler: SamplerOptions = option(SamplerOptions)
    loader: LoaderOptions | None = option(LoaderOptions, None)


@dataclass(frozen=True)
class DataOptions:
    Train: PartOptions = option(PartOptions)
    Eval: PartOptions = option(PartOptions)


@dataclass(frozen=True)
class LossOptions:
    Train: Any = option(list, items=dict)
    Eval: Any = option(list, None, items=dict)


@dataclass(frozen=True)
class CrossEntropyOptions:
    epsilon: float | None = option(float, None, min=0, below=1)
    weight: float = option(float, 1.0, above=0, max=INFINITE)


@dataclass(frozen=True)
class MetricOptions:
    Train: Any = option(list, None, items=dict)
    Eval: Any = option(list, None, items=dict)


@dataclass(frozen=True)
class ClassificationOptions:
    Arch: dict = option(dict)
    Loss: LossOptions = option(LossOptions)
    Optimizer: OptimizerOptions = option(OptimizerOptions)
    DataLoader: DataOptions = option(DataOptions)
    Global: GlobalOptions = option(GlobalOptions, GlobalOptions())
    AMP: AmpOptions | None = option(AmpOptions, None)
    EMA: EmaOptions | None = option(EmaOptions, None)
    Metric: MetricOptions | None = option(MetricOptions, None)
    Infer: dict | None = option(dict, None)  # for PaddleClas' infer.py
    task: str | None = option(str, None)


@dataclass(frozen=True)
class Settings:
    """What a configuration says, beside the recipe: see :func:`read`."""

    arch: str
    arguments: dict[str, Any]
    num_classes: int
    pretrained: str | bool | None
    datasets: dict[str, dict[str, Any]]
    batch_ops: Any
    smoothing: float
    loss_weight: float
    topk: tuple[int, ...]
    eval_batch_size: int
    class_names: str | None


def read(config: Mapping[str, Any]) -> tuple[Settings | None, Recipe | None, list[str]]:
    """Settings and recipe (None where they cannot be), and everything that is wrong with a configuration."""
    problems: list[str] = []
    options = read_options(ClassificationOptions, config, "", problems)
    if options is None:
        return None, None, problems
    arch = dict(options.Arch)
    name, classes, pretrained = arch.pop("name", None), arch.pop("class_num", 1000), arch.pop("pretrained", None)
    if not isinstance(name, str) or name not in {**ARCHITECTURES, "vHeat": ""}:
        problems += find_problems(name, {}, {**dict.fromkeys(ARCHITECTURES), "vHeat": None}, "Arch.name")
    else:
        taken = arguments_of(VHeat)
        problems += unknown_keys(arch, [*(taken[0] if taken else ()), "class_num", "pretrained"], "Arch")
    if isinstance(classes, bool) or not isinstance(classes, int) or not 1 <= classes <= 10**6:
        problems.append(f"'Arch.class_num' must be an integer of at least 1 and at most 1000000, got {classes!r}")
    if not isinstance(pretrained, (bool, str, type(None))):
        problems.append(f"'Arch.pretrained' must be a file, an address, True or imagenet, got {pretrained!r}")
    datasets = {}
    for split, part in (("train", "Train"), ("val", "Eval")):
        datasets[split], found = _dataset(getattr(options.DataLoader, part).dataset, f"DataLoader.{part}.dataset")
        problems += found
    criterion = _cross_entropy(options.Loss.Train, problems)
    topk = _topk(options.Metric, problems)
    if problems:
        return None, None, problems
    batch_ops = datasets["train"].pop("batch_transform_ops", None)
    sampler = options.DataLoader.Eval.sampler
    settings = Settings(
        str(name), arch, classes, pretrained, datasets, batch_ops, criterion.epsilon or 0.0, criterion.weight, topk,
        sampler.batch_size, options.Global.class_names,
    )  # fmt: skip
    return settings, _recipe(options), []


def _dataset(block: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    arguments = {key: value for key, value in block.items() if key not in ("name", "batch_transform_ops")}
    # The root may be missing only where it has a default, as the class says; num_classes and source are given.
    problems = find_problems(block.get("name"), arguments, DATASETS, where, ("num_classes", "source"))
    operations = block.get("transform_ops") or []
    if not isinstance(operations, list):
        return dict(block), [*problems, f"'{where}.transform_ops' must be a list of operations, got {operations!r}"]
    for i, operation in enumerate(operations):
        sizes = [one.get("size") for one in operation.values() if isinstance(one, dict)] if _is_dict(operation) else []
        for size in sizes:
            sides = size if isinstance(size, (list, tuple)) else [size]
            if size is not None and all(isinstance(n, int) for n in sides) and min(sides, default=MIN_SIZE) < MIN_SIZE:
                key = f"{where}.transform_ops.{i}.{next(iter(operation))}.size"
                problems.append(f"'{key}' is {size}; vHeat needs at least {MIN_SIZE} pixels a side")
    return dict(block), problems


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _cross_entropy(losses: list[Any], problems: list[str]) -> CrossEntropyOptions:
    if len(losses) != 1 or set(losses[0]) != {"CELoss"}:
        problems.append(f"'Loss.Train' must be one CELoss, got {losses}")
        return CrossEntropyOptions()
    found = read_options(CrossEntropyOptions, losses[0]["CELoss"] or {}, "Loss.Train.0.CELoss", problems)
    return found or CrossEntropyOptions()


def _topk(metric: MetricOptions | None, problems: list[str]) -> tuple[int, ...]:
    for i, entry in enumerate((metric.Eval if metric else None) or []):
        name, arguments = next(iter(entry.items()), (None, None))
        if name != "TopkAcc" or not isinstance(arguments or {}, dict):
            problems += find_problems(name, {}, {"TopkAcc": None}, f"Metric.Eval.{i}")
            continue
        topk = (arguments or {}).get("topk", [1, 5])
        if not (isinstance(topk, list) and topk and all(type(k) is int and k >= 1 for k in topk)):
            problems.append(f"'Metric.Eval.{i}.TopkAcc.topk' must be a list of integers of at least 1, got {topk!r}")
            continue
        return tuple(topk)
    return 1, 5


def _recipe(options: ClassificationOptions) -> Recipe:
    """Durations are in epochs, but for ``Global.iters``."""
    optimizer, train, amp, general = options.Optimizer, options.DataLoader.Train, options.AMP, options.Global
    lr = optimizer.lr
    schedule = Schedule(
        lr.learning_rate, "WarmupCosine", {"end": lr.eta_min}, Epochs(lr.warmup_epoch), lr.warmup_start_lr
    )
    mixed = amp is not None and amp.use_amp
    return Recipe(
        schedule,
        iters=general.iters if general.iters is not None else Epochs(general.epochs),
        batch_size=train.sampler.batch_size,
        accumulation=general.update_freq,
        optimizer=optimizer.name,
        optimizer_arguments={"beta1": optimizer.beta1, "beta2": optimizer.beta2, "epsilon": optimizer.epsilon},
        weight_decay=optimizer.weight_decay,
        clip_norm=optimizer.clip_norm,
        ema_decay=None if options.EMA is None else options.EMA.decay,
        ema_warm_up=False,  # the recipe's average keeps the same share of itself from the first step
        precision={"float16": "fp16", "bfloat16": "bf16"}[amp.dtype] if amp is not None and mixed else "fp32",
        amp_level=amp.level if amp is not None else "O1",
        loss_scale=amp.scale_loss if amp is not None else 1024.0,
        dynamic_loss_scale=amp.use_dynamic_loss_scaling if amp is not None else True,
        save_interval=Epochs(general.save_interval),
        eval_interval=Epochs(general.eval_interval),
        num_workers=train.loader.num_workers if train.loader else 0,
        shuffle=train.sampler.shuffle,
        drop_last=train.sampler.drop_last,
    )


def parameter_factors(model: Any, one_dim_no_decay: bool) -> dict[str, Factors]:
    """No weight decay on parameters of one axis; frequency embeddings have three, and are decayed."""
    return {name: Factors(decay=0.0) for name in model.no_weight_decay()} if one_dim_no_decay else {}
