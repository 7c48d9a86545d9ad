"""``deploy.yaml``: what an export is, and how it wants its images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paddle_vheat.config import ConfigError, did_you_mean
from paddle_vheat.deploy.runtimes import ONEDNN_NAMES

TASKS = ("segmentation", "classification")
OUTPUT_OPS = ("argmax", "softmax", "none")
OUTPUT_NAMES = {"argmax": "classes", "softmax": "probabilities", "none": "logits"}  # of the ONNX graph
INPUT_NAME = "x"


@dataclass(frozen=True)
class Description:
    """The contents of ``deploy.yaml``, checked.

    Attributes:
        folder: where it lies.
        task: "segmentation" or "classification".
        transforms: PaddleSeg's list of {type: ..., ...}, or PaddleClas' list of {name: arguments}.
        input_shape: N C H W, -1 for what is decided at run time (H and W both or neither).
        output_op: "argmax", "softmax" or "none".
        class_names: one for each class.
        palette: RGB of each class, for pictures; segmentation only.
        model, params: file names of the Paddle export, None if there is none.
        onnx: file name of the ONNX export, None if there is none.
        onednn: how much of oneDNN gave the right results when the export was checked: "full", "reduced" or "off".
        checked_on: versions of the runtimes that the export was checked with, by package name.
        min_size: smallest height and width in pixels that the model takes.
    """

    folder: Path
    task: str
    transforms: list[dict[str, Any]]
    input_shape: tuple[int, int, int, int]
    output_op: str
    class_names: list[str]
    palette: list[list[int]] | None
    model: str | None
    params: str | None
    onnx: str | None
    onednn: str
    checked_on: dict[str, str]
    min_size: int

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the images that the model takes; None if any."""
        _, _, height, width = self.input_shape
        return None if height < 0 else (height, width)


class _Reader:
    """Takes values out of the block, with an error that names the file and the key."""

    def __init__(self, path: Path, block: dict[str, Any]) -> None:
        self.path, self.block = path, block

    def fail(self, key: str, expected: str, hint: str = "") -> ConfigError:
        got = f"got {self.block[key]!r}" if key in self.block else "it is not there"
        return ConfigError(f"{self.path}: 'Deploy.{key}' must be {expected}, {got}{hint}")

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        value = self.block.get(key)
        if not isinstance(value, str) or value not in known:
            hint = did_you_mean(value, known) if isinstance(value, str) else ""
            raise self.fail(key, f"one of {', '.join(known)}", hint)
        return value

    def checked(self, key: str, expected: str, right: Any, default: Any = None) -> Any:
        value = self.block.get(key, default)
        if not right(value):
            raise self.fail(key, expected)
        return value

    def file(self, key: str) -> str | None:
        name = self.block.get(key)
        if name is None:
            return None
        # The file may come from anywhere: it may name nothing outside its folder.
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise self.fail(key, "the name of a file beside it")
        if not (self.path.parent / name).is_file():
            raise FileNotFoundError(f"{self.path}: 'Deploy.{key}' names {name}, and there is no such file beside it")
        return name


def _onednn(read: _Reader) -> str:
    # Exports of before there was a reduced one have true or false; so has `off` in YAML without quotes.
    if isinstance(read.block.get("onednn", False), bool):
        return "full" if read.block.get("onednn") else "off"
    return read.choice("onednn", tuple(ONEDNN_NAMES))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_shape(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4 or not all(_whole(v) and (v == -1 or v > 0) for v in value):
        return False
    return value[1] > 0 and (value[2] > 0) == (value[3] > 0)


def _is_palette(value: Any) -> bool:
    return value is None or (
        isinstance(value, list)
        and all(isinstance(c, list) and len(c) == 3 and all(_whole(v) and 0 <= v <= 255 for v in c) for c in value)
    )


def _strings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def read_description(folder: str | Path) -> Description:
    """Read and check ``deploy.yaml`` of an exported model.

    Raises:
        FileNotFoundError: if the folder, ``deploy.yaml`` or a file that it names is not there.
        ConfigError: for what is not valid, naming the file and the key.
    """
    path = Path(folder) / "deploy.yaml"
    if not path.is_file():
        what = "no deploy.yaml in it" if path.parent.is_dir() else "no such folder"
        raise FileNotFoundError(f"{folder}: {what}; give the folder that export.py wrote")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    block = content.get("Deploy") if isinstance(content, dict) else None
    if not isinstance(block, dict):
        raise ConfigError(f"{path}: no block 'Deploy'")
    if "task" not in block and "transforms" in block:
        raise ConfigError(f"{path}: no 'Deploy.task'; an older version or another program wrote it: export again")
    read = _Reader(path, block)
    described = Description(
        folder=path.parent,
        task=read.choice("task", TASKS),
        transforms=read.checked(
            "transforms",
            "a list of blocks",
            lambda v: isinstance(v, list) and all(isinstance(item, dict) for item in v),
        ),
        input_shape=tuple(read.checked("input_shape", "[N, C, H, W], -1 for what is decided at run time", _is_shape)),
        output_op=read.choice("output_op", OUTPUT_OPS),
        class_names=read.checked("class_names", "a list of names", _strings),
        palette=read.checked("palette", "a list of [red, green, blue], 0 to 255", _is_palette),
        model=read.file("model"),
        params=read.file("params"),
        onnx=read.file("onnx"),
        onednn=_onednn(read),
        checked_on=read.checked(
            "checked_on",
            "package names and versions",
            lambda v: isinstance(v, dict) and all(isinstance(item, str) for pair in v.items() for item in pair),
            {},
        ),
        min_size=read.checked("min_size", "a number of pixels", lambda v: _whole(v) and v > 0, 1),
    )
    if described.task == "segmentation" and len(described.palette or []) != len(described.class_names):
        raise read.fail("palette", f"the colours of {len(described.class_names)} classes")
    if (described.model is None) != (described.params is None):
        raise ConfigError(f"{path}: 'Deploy.model' and 'Deploy.params' belong together, and one is missing")
    if described.model is None and described.onnx is None:
        raise ConfigError(f"{path}: names no model: neither 'Deploy.model' nor 'Deploy.onnx'")
    return described
