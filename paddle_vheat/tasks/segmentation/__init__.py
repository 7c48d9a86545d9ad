"""Semantic segmentation, configured in PaddleSeg's schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def claims(config: Mapping[str, Any]) -> bool:
    return bool({"model", "train_dataset", "val_dataset", "lr_scheduler"} & set(config))


def add_flags(command: str, flags: Any) -> None:
    if command in ("val", "predict"):
        flags.add("--aug_eval", action="store_true", help="average over --scales and flips")
        flags.add("--scales", nargs="+", type=float, help="for --aug_eval; default 1.0")
        flags.add("--flip_horizontal", action="store_true", help="for --aug_eval: also the mirrored image")
        flags.add("--flip_vertical", action="store_true", help="for --aug_eval: also upside down")
        flags.add("--is_slide", action="store_true", help="sliding windows instead of the whole image")
        flags.add("--crop_size", nargs=2, type=int, metavar=("W", "H"), help="window of --is_slide")
        flags.add("--stride", nargs=2, type=int, metavar=("W", "H"), help="step of --is_slide")
    if command == "export":
        help_text = "what is done to the logits; default argmax for segmentation, softmax for classification"
        flags.add("--output_op", choices=("argmax", "softmax", "none"), help=help_text)


def make_task(config: dict[str, Any], source: str, flags: Any, problems: list[str]) -> Any:
    from paddle_vheat.tasks.segmentation.task import SegmentationTask

    return SegmentationTask(config, source, flags, problems)
