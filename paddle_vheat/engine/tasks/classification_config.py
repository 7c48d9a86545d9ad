"""What can be wrong with a configuration in PaddleClas' schema, found before anything is built from it."""

from __future__ import annotations

import inspect
from typing import Any

from paddle_vheat.config import did_you_mean
from paddle_vheat.data.digits import Digits
from paddle_vheat.data.imagenet import ImageNetDataset
from paddle_vheat.engine.data import MOST_WORKERS
from paddle_vheat.models import VARIANTS, VHeat
from paddle_vheat.models.vheat import MIN_SIZE

DATASETS: dict[str, Any] = {"ImageNetDataset": ImageNetDataset, "Digits": Digits}
ARCHITECTURES = {name.replace("vheat", "vHeat"): name for name in VARIANTS}

_OPTIMIZER_KEYS = {
    "name", "beta1", "beta2", "epsilon", "weight_decay", "one_dim_param_no_weight_decay", "lr", "clip_norm",
}  # fmt: skip
_LR_KEYS = {"name", "learning_rate", "eta_min", "warmup_epoch", "warmup_start_lr", "by_epoch"}
_GLOBAL_KEYS = {
    "epochs", "iters", "update_freq", "class_names", "eval_interval", "save_interval",
    # passed over: the command line or the framework decides these
    "checkpoints", "pretrained_model", "output_dir", "device", "eval_during_train", "print_batch_step",
    "use_visualdl", "image_shape", "save_inference_dir", "to_static", "seed", "task",
}  # fmt: skip
_PARTS = (
    "DataLoader.Train", "DataLoader.Eval", "DataLoader.Train.dataset", "DataLoader.Eval.dataset",
    "DataLoader.Train.sampler", "DataLoader.Eval.sampler", "DataLoader.Train.loader", "DataLoader.Eval.loader",
)  # fmt: skip
_MAY_BE_NULL = ("Global.iters", "Optimizer.clip_norm")
_OPTIONAL = ("EMA", "AMP", "Metric", "DataLoader.Train.loader", "DataLoader.Eval.loader")
# least, most
_WHOLE = {
    "Global.epochs": (1, 10**6), "Global.iters": (1, 10**9), "Global.update_freq": (1, 10**5),
    "Global.save_interval": (1, 10**6), "Arch.class_num": (1, 10**6),
    "DataLoader.Train.sampler.batch_size": (1, 10**5), "DataLoader.Eval.sampler.batch_size": (1, 10**5),
    "DataLoader.Train.loader.num_workers": (0, MOST_WORKERS),
}  # fmt: skip
_NUMBERS = {
    "Optimizer.lr.learning_rate": (0, 1e6), "Optimizer.lr.eta_min": (0, 1e6), "Optimizer.lr.warmup_start_lr": (0, 1e6),
    "Optimizer.lr.warmup_epoch": (0, 1e6), "Optimizer.weight_decay": (0, 1e6), "Optimizer.beta1": (0, 1),
    "Optimizer.beta2": (0, 1), "Optimizer.epsilon": (0, 1), "Optimizer.clip_norm": (0, 1e30), "EMA.decay": (0, 1),
}  # fmt: skip
_TOP_KEYS = {"Global", "AMP", "EMA", "Arch", "Loss", "Optimizer", "DataLoader", "Metric", "Infer"}


def unknown(block: dict[str, Any], known: set[str], path: str) -> list[str]:
    where = f"{path}." if path else ""
    return [f"unknown key '{where}{key}'{did_you_mean(key, known)}" for key in block if key not in known]


def _small_crops(operations: Any, part: str) -> list[str]:
    problems = []
    for i, operation in enumerate(operations if isinstance(operations, list) else []):
        for name, arguments in operation.items() if isinstance(operation, dict) else ():
            size = arguments.get("size") if isinstance(arguments, dict) else None
            sides = size if isinstance(size, (list, tuple)) else [size]
            if size is not None and all(isinstance(n, int) for n in sides) and min(sides, default=MIN_SIZE) < MIN_SIZE:
                where = f"DataLoader.{part}.dataset.transform_ops.{i}.{name}.size"
                problems.append(f"'{where}' is {size}; vHeat needs at least {MIN_SIZE} pixels a side")
    return problems


def value_at(config: dict[str, Any], path: str, default: Any = None) -> Any:
    """The value at a path such as "Optimizer.lr.name"."""
    value: Any = config
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return default
        value = value[key]
    return value


def unknown_blocks(config: dict[str, Any]) -> list[str]:
    """Misspelt blocks at the top."""
    return unknown(config, _TOP_KEYS, "")


def wrong_kinds(config: dict[str, Any]) -> list[str]:
    """What is no block of keys and no list where the code below takes it to be one."""
    problems = []
    for key in ("Global", "Arch", "Loss", "Optimizer", "DataLoader"):
        if not isinstance(config.get(key), dict):
            problems.append(f"no block {key!r}")
    for path in ("Global", "Arch", "Loss", "Optimizer.lr", "EMA", "AMP", "Metric", *_PARTS):
        value = value_at(config, path, {})
        if not isinstance(value, dict) and not (value is None and path in _OPTIONAL):
            problems.append(f"{path!r} must be a block of keys, got {value!r}")
    lists = [f"DataLoader.{part}.dataset.transform_ops" for part in ("Train", "Eval")]
    for path in ("Loss.Train", "Loss.Eval", "Metric.Eval", *lists):
        value = value_at(config, path)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
            problems.append(f"{path!r} must be a list of blocks, got {value!r}")
    return problems


def find_problems(config: dict[str, Any]) -> list[str]:
    """Unknown keys and names, and values that cannot be."""
    problems = unknown(config["Global"], _GLOBAL_KEYS, "Global")
    problems += unknown(config["Optimizer"], _OPTIMIZER_KEYS, "Optimizer")
    problems += unknown(config["Optimizer"].get("lr") or {}, _LR_KEYS, "Optimizer.lr")
    for key, known in (("Optimizer.name", "AdamW"), ("Optimizer.lr.name", "Cosine")):
        if value_at(config, key) != known:
            problems.append(f"'{key}' must be {known!r}, got {value_at(config, key)!r}")
    if value_at(config, "Optimizer.lr.by_epoch", False):
        problems.append("'Optimizer.lr.by_epoch': the schedule is per iteration")
    name = str(value_at(config, "Arch.name"))
    known_names = [*ARCHITECTURES, "vHeat"]
    if name not in known_names:
        hint = did_you_mean(name, known_names)
        problems.append(f"'Arch.name': no such architecture {name!r}{hint} (known: {', '.join(known_names)})")
    else:
        arguments = set(inspect.signature(VHeat).parameters) - {"out_norms"} | {"name", "class_num", "pretrained"}
        problems += unknown(config["Arch"], arguments, "Arch")
    for part in ("Train", "Eval"):
        dataset = value_at(config, f"DataLoader.{part}.dataset.name")
        if str(dataset) not in DATASETS:
            hint = did_you_mean(str(dataset), DATASETS)
            problems.append(
                f"'DataLoader.{part}.dataset.name': no dataset {dataset!r}{hint} (known: {', '.join(DATASETS)})"
            )
        if value_at(config, f"DataLoader.{part}.sampler.batch_size") is None:
            problems.append(f"no 'DataLoader.{part}.sampler.batch_size'")
        problems += _small_crops(value_at(config, f"DataLoader.{part}.dataset.transform_ops"), part)
    for kinds, bounds, what in ((int, _WHOLE, "a whole number"), ((int, float), _NUMBERS, "a number")):
        for path, (least, most) in bounds.items():
            value = value_at(config, path, least)
            if value is None and path in _MAY_BE_NULL:
                continue
            if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value <= most:
                problems.append(f"'{path}' must be {what} from {least} to {most:g}, got {value!r}")
    return problems
