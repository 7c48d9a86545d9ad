"""Image restoration: Gaussian noise and JPEG artefacts, by vHeatIR or SwinIR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def claims(config: Mapping[str, Any]) -> bool:
    return False  # our own schema says "task: restoration"


def add_flags(command: str, flags: Any) -> None:
    if command == "val":
        flags.add("--save_images", metavar="DIR", help="also write the restored images into this folder")
        flags.add("--ablate", choices=("k=0",), help="also score the model without conduction")
    if command in ("val", "predict", "export"):
        flags.add("--tile", type=int, metavar="N", help="restore in tiles of N pixels a side; default: whole images")
        flags.add("--overlap", type=int, metavar="N", help="pixels that neighbouring tiles share; default 16")


def make_task(config: dict[str, Any], source: str, flags: Any, problems: list[str]) -> Any:
    from paddle_vheat.tasks.restoration.task import RestorationTask

    return RestorationTask(config, source, flags, problems)
