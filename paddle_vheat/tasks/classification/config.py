"""PaddleClas' schema: what its keys may hold, and the recipe that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paddle_vheat.config import option, read_options, unknown_keys
from paddle_vheat.config.build import arguments_of, find_problems
from paddle_vheat.config.options import INFINITE, check_value
from paddle_vheat.engine.loader import max_workers
from paddle_vheat.engine.optim import Epochs, Recipe, Schedule
from paddle_vheat.models import VARIANTS, VHeat
from paddle_vheat.models.vheat import MIN_SIZE
from paddle_vheat.tasks.classification.data import ImageNetDataset
from paddle_vheat.tasks.classification.digits import Digits

DATASETS = {"ImageNetDataset": ImageNetDataset, "Digits": Digits}
CUSTOM = "vHeat"  # of any widths and depths
ARCHITECTURES = {**{name.replace("vheat", CUSTOM): name for name in VARIANTS}, CUSTOM: CUSTOM}


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
class CrossEntropyOptions:
    epsilon: float | None = option(float, None, min=0, below=1)
    weight: float = option(float, 1.0, above=0, max=INFINITE)


@dataclass(frozen=True)
class LossEntry:
    CELoss: CrossEntropyOptions | None = option(CrossEntropyOptions, None)


@dataclass(frozen=True)
class LossOptions:
    Train: Any = option(list, items=LossEntry)
    Eval: Any = option(list, None, items=dict)


@dataclass(frozen=True)
class TopkOptions:
    topk: Any = option(list, [1, 5], items=int, min=1)


@dataclass(frozen=True)
class MetricEntry:
    TopkAcc: TopkOptions | None = option(TopkOptions, None)


@dataclass(frozen=True)
class MetricOptions:
    Train: Any = option(list, None, items=dict)
    Eval: Any = option(list, None, items=MetricEntry)


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

    @property
    def loss(self) -> CrossEntropyOptions:
        """The one loss of training."""
        return self.Loss.Train[0].CELoss or CrossEntropyOptions()

    @property
    def topk(self) -> list[int]:
        """Of the first TopkAcc."""
        entries = (self.Metric.Eval if self.Metric else None) or [MetricEntry()]
        return (entries[0].TopkAcc or TopkOptions()).topk


def read(config: Mapping[str, Any]) -> tuple[ClassificationOptions | None, list[str]]:
    """The options (None where they cannot be), and everything that is wrong with a configuration."""
    problems: list[str] = []
    options = read_options(ClassificationOptions, config, "", problems)
    if options is None:
        return None, problems
    arch = options.Arch
    problems += find_problems(arch.get("name"), {}, ARCHITECTURES, "Arch.name")
    taken = arguments_of(VHeat)
    problems += unknown_keys(arch, ["name", "class_num", "pretrained", *(taken[0] if taken else ())], "Arch")
    check_value(arch.get("class_num", 1000), option(int, min=1, max=10**6), "Arch.class_num", problems)
    if not isinstance(arch.get("pretrained"), (bool, str, type(None))):
        problems.append(f"'Arch.pretrained' must be a file, an address, True or imagenet, got {arch['pretrained']!r}")
    for part in ("Train", "Eval"):
        problems += _dataset_problems(getattr(options.DataLoader, part).dataset, f"DataLoader.{part}.dataset")
    if [set(entry) for entry in config["Loss"]["Train"]] != [{"CELoss"}]:
        problems.append(f"'Loss.Train' must be one CELoss, got {config['Loss']['Train']}")
    if not options.topk:
        problems.append("'Metric.Eval.0.TopkAcc.topk' must be a list of integers of at least 1, got []")
    return (None if problems else options), problems


def _dataset_problems(block: Mapping[str, Any], where: str) -> list[str]:
    arguments = {key: value for key, value in block.items() if key not in ("name", "batch_transform_ops")}
    # The root may be missing only where it has a default, as the class says; num_classes and source are given.
    problems = find_problems(block.get("name"), arguments, DATASETS, where, ("num_classes", "source"))
    operations = block.get("transform_ops") or []
    if not isinstance(operations, list):
        return [*problems, f"'{where}.transform_ops' must be a list of operations, got {operations!r}"]
    for i, operation in enumerate(operations):
        for name, given in operation.items() if isinstance(operation, Mapping) else ():
            size = given.get("size") if isinstance(given, Mapping) else None
            sides = size if isinstance(size, (list, tuple)) else [size]
            if all(isinstance(n, int) for n in sides) and min(sides, default=MIN_SIZE) < MIN_SIZE:
                key = f"{where}.transform_ops.{i}.{name}.size"
                problems.append(f"'{key}' is {size}; vHeat needs at least {MIN_SIZE} pixels a side")
    return problems


def make_recipe(options: ClassificationOptions) -> Recipe:
    """Durations are in epochs, but for ``Global.iters``."""
    optimizer, train, general = options.Optimizer, options.DataLoader.Train, options.Global
    lr, amp = optimizer.lr, options.AMP or AmpOptions(use_amp=False)
    schedule = Schedule(
        lr.learning_rate, "WarmupCosine", {"end": lr.eta_min}, Epochs(lr.warmup_epoch), lr.warmup_start_lr
    )
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
        precision={"float16": "fp16", "bfloat16": "bf16"}[amp.dtype] if amp.use_amp else "fp32",
        amp_level=amp.level,
        loss_scale=amp.scale_loss,
        dynamic_loss_scale=amp.use_dynamic_loss_scaling,
        save_interval=Epochs(general.save_interval),
        eval_interval=Epochs(general.eval_interval),
        num_workers=train.loader.num_workers if train.loader else 0,
        shuffle=train.sampler.shuffle,
        drop_last=train.sampler.drop_last,
    )
