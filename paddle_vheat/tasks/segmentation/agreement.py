"""What several blocks of a segmentation's configuration say of the same thing, and whether they agree.

``options`` are the :class:`SegmentationOptions` of ``config.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def agreed(options: Any, registry: Mapping[str, Any], key: str) -> dict[str, Any]:
    """What the blocks say of "num_classes", "img_channels" or "ignore_index": place to value.

    A data set's class may fix them; its block, the model's and (of the channels) the backbone's may give them.
    """
    found: dict[str, Any] = {}
    for where in ("train_dataset", "val_dataset"):
        block = getattr(options, where) or {}
        fixed = getattr(registry.get(str(block.get("type", ""))), key.upper(), None)
        if fixed is not None:
            found[f"{where}.type"] = fixed
        if block.get(key) is not None:
            found[f"{where}.{key}"] = block[key]
    model = options.model or {}
    backbone = model.get("backbone") if isinstance(model.get("backbone"), Mapping) else {}
    if key == "num_classes" and model.get(key) is not None:
        found["model.num_classes"] = model[key]
    if key == "img_channels" and (backbone or {}).get("in_channels") is not None:
        found["model.backbone.in_channels"] = backbone["in_channels"]  # type: ignore[index]
    return found


def agreement_problems(options: Any, registry: Mapping[str, Any]) -> list[str]:
    problems = []
    for key in ("num_classes", "img_channels", "ignore_index"):
        found = agreed(options, registry, key)
        if len(set(map(repr, found.values()))) > 1:
            last = list(found)[-1]
            others = ", ".join(f"{where} says {value!r}" for where, value in list(found.items())[:-1])
            problems.append(f"'{last}' says {found[last]!r} for {key}, and {others}")
    names, counts = options.class_names, list(agreed(options, registry, "num_classes").values())
    if names is not None and counts and len(names) != counts[0]:
        problems.append(f"'class_names' has {len(names)} names for {counts[0]} classes")
    return problems


def bank_problems(options: Any) -> list[str]:
    """Memory banks that are made for another model than this one."""
    problems = []
    for i, loss in enumerate((options.loss or {}).get("types", [])):
        for key in ("num_classes", "proj_dim"):
            given, wanted = loss.get(key), (options.model or {}).get(key)
            if loss.get("type") == "PixelContrastLoss" and None not in (given, wanted) and given != wanted:
                problems.append(f"'loss.types.{i}.{key}' is {given!r}, and 'model.{key}' is {wanted!r}")
    return problems
