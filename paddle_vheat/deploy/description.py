"""``deploy.yaml``: what an export is, and how it wants its images."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from paddle_vheat.config.options import option, read_options, short
from paddle_vheat.config.read import read_yaml
from paddle_vheat.data.image_file import MAX_PIXELS
from paddle_vheat.deploy.runtimes import ONEDNN
from paddle_vheat.errors import ConfigError, MissingFileError

T = TypeVar("T")
Shape = tuple[Any, ...]  # N, C, H, W; None for what is decided at run time

FILE = "deploy.yaml"
MAX_BATCH = 4096


@dataclass(frozen=True)
class Tensors:
    """An input or output of a program: name, length (None: any) and name of each axis, dtype."""

    name: str
    shape: tuple[int | None, ...]
    axes: tuple[str, ...]
    dtype: str = "float32"

    def __str__(self) -> str:
        sizes = [axis if length is None else str(length) for axis, length in zip(self.axes, self.shape)]
        return f"{self.name} {self.dtype} [{', '.join(sizes)}]"


class Signature(NamedTuple):
    """What a program takes and gives, in order."""

    inputs: tuple[Tensors, ...]
    outputs: tuple[Tensors, ...]

    def __str__(self) -> str:
        return f"{'; '.join(map(str, self.inputs))} -> {'; '.join(map(str, self.outputs))}"


@dataclass(frozen=True)
class Description:
    """The contents of ``deploy.yaml``, checked but for what is the task's.

    Attributes:
        task: name of the task, whose processor prepares images and makes predictions of outputs.
        input_shape: N C H W, None for what is decided at run time (H and W both or neither).
        options: what the task's processor needs to know; :meth:`read` checks them.
        transforms: of evaluation, as the task's configuration has them.
        programs: signatures of what was exported, by the program's name; {} in exports of before there were several.
        model, params, onnx, int8: file names of the Paddle and ONNX programs and of the quantised ONNX programs, by the
            program's name.
        opset: of the ONNX programs.
        min_size: smallest height and width in pixels that the model takes.
        onednn: how much of oneDNN gave the right results when the export was checked: "full", "reduced" or "off".
        checked_on: versions of the runtimes that the export was checked with, by package name.
        path: the file itself.
        options_at: where the options are in the file, for messages.
    """

    task: str = option(str)
    input_shape: Shape = option(list, items=int, length=4, min=-1)
    options: Mapping[str, Any] = option(dict)
    transforms: Sequence[Mapping[str, Any]] = option(list, [], items=dict)
    programs: Mapping[str, str] = option(dict, {})
    model: Mapping[str, str] = option(dict, {})
    params: Mapping[str, str] = option(dict, {})
    onnx: Mapping[str, str] = option(dict, {})
    int8: Mapping[str, str] = option(dict, {})
    opset: int | None = option(int, None)
    min_size: int = option(int, 1, min=1, max=MAX_PIXELS)
    onednn: str = option(str, "off", choices=ONEDNN)
    checked_on: Mapping[str, str] = option(dict, {})
    path: Path = Path()
    options_at: str = "Deploy.options"

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the images that the model takes; None if any."""
        _, _, height, width = self.input_shape
        return None if height is None else (height, width)

    def read(self, kind: type[T]) -> T:
        """The task's options as a dataclass of :func:`paddle_vheat.config.option` fields."""
        problems: list[str] = []
        options = read_options(kind, self.options, self.options_at, problems)
        if options is None:
            raise self.error(*problems)
        return options

    def error(self, *problems: str) -> ConfigError:
        """What is wrong with the file, one text for each mistake, which names the key."""
        return _error(self.path, problems)


def read_description(folder: str | Path) -> Description:
    """Read and check ``deploy.yaml`` of an exported model.

    Raises:
        FileNotFoundError: if the folder, ``deploy.yaml`` or a file that it names is missing.
        ConfigError: for what is not valid, naming the file and the key.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        what = f"no {FILE} in it" if path.parent.is_dir() else "no such folder"
        raise FileNotFoundError(f"{folder}: {what}; give the folder that export.py wrote")
    block = read_yaml(path).get("Deploy")
    if not isinstance(block, dict):
        raise ConfigError(f"{path}: no block 'Deploy'")
    if "task" not in block and "transforms" in block:
        raise ConfigError(f"{path}: no 'Deploy.task'; an older version or another program wrote it: export again")
    block, options_at = _in_this_layout(block)
    problems: list[str] = []
    found = read_options(Description, block, "Deploy", problems)
    if found is not None:
        problems += _shape_problems(found.input_shape) + _file_problems(found)
        for key in ("checked_on", "programs"):
            if not all(isinstance(text, str) for pair in getattr(found, key).items() for text in pair):
                problems.append(f"'Deploy.{key}' must be a text for each name, got {short(getattr(found, key))}")
    if problems or found is None:
        raise _error(path, problems)
    absent = [
        f"'Deploy.{key}' names {short(name)}, and there is no such file beside it"
        for key in ("model", "params", "onnx", "int8")
        for name in getattr(found, key).values()
        if not os.path.isfile(path.parent / name)
    ]
    if absent:
        raise _error(path, absent, MissingFileError)
    shape = tuple(None if length < 0 else length for length in found.input_shape)
    return replace(found, path=path, options_at=options_at, input_shape=shape)


def _error(path: Path, problems: Sequence[str], kind: type[ConfigError] = ConfigError) -> ConfigError:
    return kind(f"{path}: {problems[0]}") if len(problems) == 1 else kind(str(path), problems)


def _in_this_layout(block: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The block with every file under its program's name, and the task's options in one block; where that is from."""
    block = dict(block)
    for key in ("model", "params", "onnx", "int8"):
        if isinstance(block.get(key), str):
            block[key] = {"model": block[key]}
    if isinstance(block.get("onednn"), bool):  # of before there was a reduced one, or `off` without quotes
        block["onednn"] = "full" if block["onednn"] else "off"
    if "options" in block:
        return block, "Deploy.options"
    block.pop("output_dtype", None)
    options = {key: block.pop(key) for key in ("output_op", "num_classes", "class_names", "palette") if key in block}
    return {**block, "options": options}, "Deploy"


def _shape_problems(shape: Sequence[int]) -> list[str]:
    _, channels, height, width = shape
    if 0 in shape or channels < 0 or (height < 0) != (width < 0):
        return [f"'Deploy.input_shape' must be [N, C, H, W], -1 for what is decided at run time, got {list(shape)}"]
    problem = size_problem(shape)
    return [f"'Deploy.input_shape' {problem}"] if problem else []


def size_problem(shape: Iterable[int]) -> str:
    """What is wrong with [N, C, H, W] (-1: free) that no memory holds; "" if it is fine."""
    batch, *sides = (max(length, 1) for length in shape)
    if batch > MAX_BATCH or batch * math.prod(sides[1:]) > MAX_PIXELS or sides[0] > MAX_BATCH:
        return f"is {list(shape)}; at most {MAX_BATCH} images and channels and {MAX_PIXELS} pixels can be taken"
    return ""


def _file_problems(deploy: Description) -> list[str]:
    problems = []
    for key in ("model", "params", "onnx", "int8"):
        for name in getattr(deploy, key).values():
            # The file may come from anywhere: it may name nothing outside its folder.
            if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
                problems.append(f"'Deploy.{key}' must be the name of a file beside it, got {short(name)}")
    if deploy.model.keys() != deploy.params.keys():
        problems.append("'Deploy.model' and 'Deploy.params' belong together, and one is missing")
    if deploy.int8 and deploy.int8.keys() != deploy.onnx.keys():
        problems.append("'Deploy.int8' must have a file for each program of 'Deploy.onnx', and no other")
    if not deploy.model and not deploy.onnx:
        problems.append("names no model: neither 'Deploy.model' nor 'Deploy.onnx'")
    return problems
