"""What a task is to the trainer: its data, its loss, its score."""

from __future__ import annotations

import contextlib
from typing import Any


def make_task(
    config: dict[str, Any],
    source: str,
    iters: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    problems: list[str] | None = None,
) -> Any:
    """The task that a configuration is for: PaddleClas' schema has ``Arch``, PaddleSeg's ``model``.

    ``iters``, ``batch_size`` and ``learning_rate`` take the place of the configuration's where they are given.
    What is wrong with the configuration is put into ``problems``, and raised without it.
    """
    if "Arch" in config:
        from paddle_vheat.engine.tasks.classification import ClassificationTask as Task
    else:
        from paddle_vheat.engine.tasks.segmentation import SegmentationTask as Task  # type: ignore[assignment]
    with contextlib.suppress(KeyError, TypeError, AttributeError):  # the missing block is named by the task's check
        Task.override(config, iters, batch_size, learning_rate)
    return Task(config, source, problems)
