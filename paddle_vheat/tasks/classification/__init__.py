"""Image classification, configured in PaddleClas' schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def claims(config: Mapping[str, Any]) -> bool:
    return "Arch" in config


def add_flags(command: str, flags: Any) -> None:
    if command == "export":
        help_text = "what is done to the logits; default argmax for segmentation, softmax for classification"
        flags.add("--output_op", choices=("argmax", "softmax", "none"), help=help_text)
    if command == "val":
        help_text = "score shifted sets instead: imagenet-a, -r, -sketch, -c, imagenetv2, objectnet (docs/analysis.md)"
        flags.add("--shift", nargs="+", metavar="NAME=DIR", help=help_text)
        flags.add("--real", metavar="FILE", help="ReaL's labels of the validation images (real.json), scored too")


def make_task(config: dict[str, Any], source: str, flags: Any, problems: list[str]) -> Any:
    from paddle_vheat.tasks.classification.task import ClassificationTask

    return ClassificationTask(config, source, flags, problems)
