"""Object detection and instance segmentation (Mask R-CNN), with COCO annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def claims(config: Mapping[str, Any]) -> bool:
    return False  # the schema is ours, and says ``task: detection``


def add_flags(command: str, flags: Any) -> None:
    if command == "val":
        flags.add("--save_json", metavar="FILE", help="also write the detections as COCO's result JSON")
    if command in ("predict", "export"):
        text = "smallest score of a detection that is drawn and written; default: the configuration's"
        flags.add("--threshold", type=float, help=text)


def make_task(config: dict[str, Any], source: str, flags: Any, problems: list[str]) -> Any:
    from paddle_vheat.tasks.detection.task import DetectionTask

    return DetectionTask(config, source, flags, problems)
