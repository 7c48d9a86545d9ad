"""What a task does before and after an exported model: a processor, found by the task's name. Needs no Paddle.

A task's package has it in ``deploy.py``, under the name ``Processor``; a task of your own is added by
:func:`register_processor`.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from paddle_vheat.errors import ConfigError

if TYPE_CHECKING:
    from paddle_vheat.deploy.description import Description

Outputs = dict[str, np.ndarray]
Run = Callable[..., Outputs]  # a program: input arrays in order -> its outputs by name


class Processor(Protocol):
    """From an image to a model's input, and from its outputs to a prediction.

    Made with the description of the export, whose ``options`` are what the task put there; raises a ConfigError
    that names the key for what is not valid.
    """

    def __init__(self, description: Description) -> None: ...

    def prepare(self, image: Any) -> tuple[np.ndarray, Any]:
        """A file's name or an array (H, W, C) to float32 (C, h, w), and what :meth:`finish` needs to know of it."""

    def run(self, programs: Mapping[str, Run], batch: np.ndarray) -> Outputs:
        """Outputs for a batch (N, C, h, w); most often ``programs["model"](batch)``."""

    def finish(self, outputs: Outputs, context: Any) -> Any:
        """The prediction (:class:`paddle_vheat.engine.task.Prediction`) from one image's outputs, without batch axis."""

    def fit(self, array: np.ndarray, size: tuple[int, int], context: Any) -> tuple[np.ndarray, Any]:
        """The input (C, h, w) at the fixed size of an export, and the context that undoes it."""


_REGISTERED: dict[str, Callable[[Description], Processor]] = {}


def register_processor(task: str, factory: Callable[[Description], Processor]) -> None:
    """Add the processor of a task that is not in ``paddle_vheat.tasks``."""
    _REGISTERED[task] = factory


def find_processor(task: str, where: str) -> Callable[[Description], Processor]:
    """The processor of a task.

    Raises:
        ConfigError: if there is none; ``where`` names the key.
    """
    if task in _REGISTERED:
        return _REGISTERED[task]
    # The name comes from a file: only a module of this package may be imported for it.
    if re.fullmatch(r"[a-z_]{1,40}", task):
        name = f"paddle_vheat.tasks.{task}"
        if importlib.util.find_spec(name) is not None and importlib.util.find_spec(f"{name}.deploy") is not None:
            return importlib.import_module(f"{name}.deploy").Processor
    raise ConfigError(f"{where}: no task is called {task[:60]!r}")
