"""What can be wrong with a segmentation configuration, found before anything is built from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from paddle_vheat.config import did_you_mean
from paddle_vheat.data.image_file import MAX_PIXELS
from paddle_vheat.integrations import paddleseg as seg
from paddle_vheat.models.vheat import MIN_SIZE

# PaddleSeg's keys, and two of ours that it passes over: accumulation and class_names.
KNOWN_KEYS = (
    "batch_size", "iters", "train_dataset", "val_dataset", "optimizer", "lr_scheduler", "loss", "model",
    "test_config", "export", "to_static_training", "distill_loss", "accumulation", "class_names",
)  # fmt: skip
_BLOCKS = ("train_dataset", "val_dataset", "optimizer", "lr_scheduler", "loss", "model", "test_config")
_OPTIONAL = ("val_dataset", "test_config")
_WORDS = ("dataset_root", "train_path", "val_path", "test_path", "separator", "mode", "type")
_SIZE_ARGUMENTS = ("crop_size", "target_size")
_NUMBERS = {"iters": 10**9, "batch_size": 10**5, "accumulation": 10**5}
TEST_KEYS = ("aug_eval", "scales", "flip_horizontal", "flip_vertical", "is_slide", "crop_size", "stride")


def find_problems(config: dict[str, Any]) -> list[str]:
    """Unknown keys, values of the wrong kind, names and arguments that do not exist, sizes that cannot be.

    The first word in quotes of each is the key.
    """
    problems = [f"unknown key {key!r}{did_you_mean(key, KNOWN_KEYS)}" for key in config if key not in KNOWN_KEYS]
    wrong = _wrong_kinds(config)
    problems += wrong
    spoilt = broken_blocks(wrong)
    if "test_config" not in spoilt:
        problems += [
            f"unknown key 'test_config.{key}'{did_you_mean(key, TEST_KEYS)}"
            for key in config.get("test_config") or {}
            if key not in TEST_KEYS
        ]
    for key in ("train_dataset", "val_dataset", "optimizer", "loss", "model"):
        if key not in spoilt:
            _check_component(config.get(key), key, problems)
    if not spoilt & {"train_dataset", "val_dataset", "model"}:
        problems += _wrong_sizes(config)
    if not spoilt & {"loss", "model"}:
        problems += _wrong_banks(config)
    return problems


def broken_blocks(problems: list[str]) -> set[str]:
    """The blocks in which problems, as :func:`find_problems` gives them, are."""
    return {problem.split("'")[1].split(".")[0] for problem in problems}


def _wrong_sizes(config: dict[str, Any]) -> list[str]:
    """Crops too small for vHeat or too large for any memory, and numbers of classes that contradict the data set's."""
    problems = []
    model = config.get("model") or {}
    backbone = str((model.get("backbone") or {}).get("type", ""))
    least = MIN_SIZE if backbone.startswith("vHeat") else 1
    for key in ("train_dataset", "val_dataset"):
        block = config.get(key) or {}
        for i, transform in enumerate(block.get("transforms") or []):
            for name in _SIZE_ARGUMENTS:
                size = transform.get(name) if isinstance(transform, dict) else None
                pair = size if isinstance(size, (list, tuple)) else [size, size]
                if size is None or not all(isinstance(n, (int, float)) for n in pair):
                    continue  # of the wrong kind: the transform says so itself
                where = f"'{key}.transforms.{i}.{name}' is {size}"
                if min(pair) < least:
                    problems.append(f"{where}; {backbone or 'an image'} needs at least {least} pixels a side")
                elif math.prod(pair) > MAX_PIXELS:
                    problems.append(f"{where}, more than {MAX_PIXELS} pixels")
        known = getattr(seg.component(str(block.get("type", ""))), "NUM_CLASSES", None)
        classes = model.get("num_classes", known)
        if known and classes != known:
            problems.append(f"'model.num_classes' is {classes}, and {key}'s {block['type']} has {known} classes")
    return problems


def _wrong_banks(config: dict[str, Any]) -> list[str]:
    """Memory banks that are made for another model than this one."""
    problems, model = [], config.get("model") or {}
    for i, loss in enumerate((config.get("loss") or {}).get("types", [])):
        for key in ("num_classes", "proj_dim"):
            given, wanted = loss.get(key), model.get(key)
            if loss.get("type") == "PixelContrastLoss" and None not in (given, wanted) and given != wanted:
                problems.append(f"'loss.types.{i}.{key}' is {given!r}, and 'model.{key}' is {wanted!r}")
    return problems


def list_problems(config: dict[str, Any], key: str) -> list[str]:
    """What is wrong with the folder and the list file that a data set is read from; [] if PaddleSeg can read them."""
    block = config.get(key)
    if not isinstance(block, dict):
        return []
    root = block.get("dataset_root")
    # Before PaddleSeg looks: where the folder is missing, its ADE20K starts a download.
    if not isinstance(root, str) or not Path(root).is_dir():
        return [
            f"'{key}.dataset_root' is {root!r}, and there is no such folder; put the data there, or give "
            f"--opts {key}.dataset_root=FOLDER"
        ]
    name = f"{block.get('mode', 'train')}_path"
    if not isinstance(block.get(name), str):
        return []
    path = Path(block[name])
    if not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.txt")])
        return [f"'{key}.{name}': no such list file: {path}{near}"]
    try:
        lines = path.read_text().splitlines()  # in the encoding in which PaddleSeg reads it
    except UnicodeDecodeError as error:
        return [f"'{key}.{name}': {path} is no text file: {error}"]
    separator = block.get("separator", " ")
    if not isinstance(separator, str) or not separator:
        return [f"'{key}.separator' must be a word or a sign, got {separator!r}"]
    problems = []
    for number, line in enumerate(lines, start=1):
        names = line.strip().split(separator)
        if len(names) != 2:
            problems.append(f"{path}, line {number}: expected 'image{separator}label', got {line!r}")
        for file in names if len(names) == 2 else ():
            if not (Path(root) / file).is_file():
                problems.append(f"{path}, line {number}: no such file: {Path(root) / file}")
    return problems


def _wrong_kinds(config: dict[str, Any]) -> list[str]:
    """What is no block of keys, no list or no number where the code below takes it to be one."""

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    model, loss = config.get("model"), config.get("loss")
    backbone = model.get("backbone", {}) if isinstance(model, dict) else {}
    loss = loss if isinstance(loss, dict) else {}
    types, coefficients = loss.get("types", []), loss.get("coef", [])
    data = [(key, config[key]) for key in ("train_dataset", "val_dataset") if isinstance(config.get(key), dict)]
    optimizer, schedule = config.get("optimizer"), config.get("lr_scheduler")
    decay = optimizer.get("weight_decay", 0) if isinstance(optimizer, dict) else 0
    rate = schedule.get("learning_rate", 1) if isinstance(schedule, dict) else 1
    wanted: list[tuple[str, Any, bool, str]] = [
        *((key, config[key], isinstance(config[key], dict), "a block of keys") for key in _BLOCKS
          if key in config and not (config[key] is None and key in _OPTIONAL)),
        *((key, config[key], whole(config[key]) and 1 <= config[key] <= most, f"a whole number from 1 to {most}")
          for key, most in _NUMBERS.items() if key in config),
        ("optimizer.weight_decay", decay, _finite(decay) and decay >= 0, "a number of at least 0"),
        ("lr_scheduler.learning_rate", rate, _finite(rate) and rate > 0, "a positive number"),
        ("class_names", config.get("class_names"), isinstance(config.get("class_names", []), list), "a list"),
        ("model.backbone", backbone, isinstance(backbone, dict), "a block of keys"),
        ("loss.types", types, _list_of(types, dict), "a list of blocks"),
        ("loss.coef", coefficients, _list_of(coefficients, (int, float)) and all(map(_finite, coefficients)),
          "a list of numbers"),
        # A number would be taken for an open file's: PaddleSeg would read, and close, the program's own output.
        *((f"{key}.{name}", block[name], isinstance(block[name], str), "a word or a path")
          for key, block in data for name in _WORDS if block.get(name) is not None),
        *((f"{key}.transforms", block.get("transforms"), _list_of(block.get("transforms"), dict), "a list of blocks")
          for key, block in data),
    ]  # fmt: skip
    return [f"'{key}' must be {what}, got {value!r}" for key, value, right, what in wanted if not right]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _list_of(value: Any, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _check_component(block: Any, path: str, problems: list[str]) -> None:
    """Check ``type`` and the arguments of every component in a block, wherever it is nested."""
    if isinstance(block, list):
        for i, item in enumerate(block):
            _check_component(item, f"{path}.{i}", problems)
    if not isinstance(block, dict):
        return
    if "type" in block:
        name = str(block["type"])
        alias = {"sgd": "SGD", "adam": "Adam"}.get(name, name)
        if seg.component(alias) is None:
            near = did_you_mean(name, seg.component_names())
            problems.append(f"'{path}.type': no such component {name!r}{near}")
        else:
            if alias == "SGD" and "momentum" in block:
                alias = "Momentum"  # as PaddleSeg takes it
            known = seg.component_arguments(alias)
            if known is not None:
                for key in block:
                    if key != "type" and key not in known:
                        problems.append(f"'{path}.{key}': {name} has no such argument{did_you_mean(key, known)}")
    for key, value in block.items():
        _check_component(value, f"{path}.{key}", problems)
