"""What a task is to the trainer: its data, its loss, its score."""

from __future__ import annotations

from typing import Any


def make_task(config: dict[str, Any], source: str) -> Any:
    """The task that a configuration is for: PaddleClas' schema has ``Arch``, PaddleSeg's ``model``."""
    if "Arch" in config:
        from paddle_vheat.engine.tasks.classification import ClassificationTask

        return ClassificationTask(config, source)
    from paddle_vheat.engine.tasks.segmentation import SegmentationTask

    return SegmentationTask(config, source)
