"""What a task does before and after an exported model: a processor, found by the task's name. Needs no Paddle.

A task's package has it in ``deploy.py``, under the name ``Processor``; a task of your own is added by
:func:`register_processor`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from paddle_vheat.config.build import did_you_mean
from paddle_vheat.config.options import short
from paddle_vheat.errors import ConfigError

if TYPE_CHECKING:
    from paddle_vheat.deploy.description import Description, Signature

Outputs = dict[str, Any]  # arrays by the output's name
Run = Callable[..., dict[str, np.ndarray]]  # a program: input arrays in order -> its outputs by name


class Prediction(Protocol):
    """What a model says of one image. Made without Paddle, so that exported models give the same."""

    @property
    def value(self) -> Any:
        """What ``deploy.Predictor.predict`` returns."""

    def draw(self, image: Any) -> dict[str, Any]:
        """Pictures by the name of their folder; {} if there are none.

        Args:
            image: what was predicted: a file's name, or uint8 BGR (H, W, C).

        Returns:
            uint8 RGB (H, W, 3), or a :class:`PIL.Image.Image` where the picture is of another kind (classes with a
            palette, 16-bit depth), which is written as it is.
        """

    def to_json(self) -> Any:
        """For ``predictions.json``; None if there is nothing to write."""

    def line(self) -> str:
        """For the terminal; "" if there is nothing to say."""


class Processor(Protocol):
    """From an image to a model's input, and from its outputs to a prediction.

    Made with the description of the export, whose ``options`` are what the task put there
    (:meth:`Description.read` checks them); raises a ConfigError that names the key for what is not valid.

    Attributes:
        programs: what each program that the task may export takes and gives, by the program's name, as the options
            say. The files are compared with it.
    """

    programs: Mapping[str, Signature]

    def __init__(self, description: Description) -> None: ...

    def prepare(self, image: Any) -> tuple[np.ndarray, Any]:
        """A file's name or an array (H, W, C) to float32 (C, h, w), and what :meth:`finish` needs to know of it."""

    def fit(self, array: np.ndarray, size: tuple[int, int], context: Any) -> tuple[np.ndarray, Any]:
        """The input (C, h, w) at the fixed size of an export, and the context that undoes it."""

    def run(self, programs: Mapping[str, Run], batch: np.ndarray) -> Outputs:
        """Outputs for a batch (N, C, h, w), each with N entries; most often ``programs["model"](batch)``.

        ``programs`` are those that the runtime has, by name: a task may export other ones for ONNX than for Paddle.
        """

    def finish(self, outputs: Outputs, context: Any) -> Prediction:
        """The prediction from one image's outputs, without batch axis."""


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
    folders = Path(__file__).parents[1] / "tasks"
    known = [module.name for module in pkgutil.iter_modules([str(folders)]) if module.ispkg]
    if task in known and (folders / task / "deploy.py").is_file():
        return importlib.import_module(f"paddle_vheat.tasks.{task}.deploy").Processor
    known += _REGISTERED
    raise ConfigError(f"{where}: no task is called {short(task)}{did_you_mean(task, known)} ({', '.join(known)})")


def make_processor(description: Description) -> Processor:
    """The processor of an export.

    Raises:
        ConfigError: if there is none, it does not take the options, or the export has other programs than they mean.
    """
    processor = find_processor(description.task, f"{description.path}: 'Deploy.task'")(description)
    for name in (*description.model, *description.onnx):
        if name not in processor.programs:
            raise description.error(
                f"'Deploy.model' or 'Deploy.onnx' has a program {short(name)}; {description.task} has "
                f"{', '.join(processor.programs)}"
            )
    for name, stored in description.programs.items():
        if name in processor.programs and stored != str(processor.programs[name]):
            raise description.error(
                f"'Deploy.programs.{name}' is {short(stored)}, but '{description.options_at}' means "
                f"{processor.programs[name]}"
            )
    return processor
