"""Options that several command lines share, and those that the tasks add."""

from __future__ import annotations

import argparse
import os
from typing import Any

from paddle_vheat.errors import UserError
from paddle_vheat.tasks import all_tasks


class TaskFlags:
    """The tasks' own options of one command; two tasks may share one."""

    def __init__(self, parser: argparse.ArgumentParser, command: str) -> None:
        self.parser, self.owners = parser, dict[str, list[str]]()
        for name, module in all_tasks().items():
            self._task = name
            self._group = parser.add_argument_group(f"options of {name}")
            module.add_flags(command, self)

    def add(self, flag: str, **options: Any) -> None:
        """Add an option, as ``ArgumentParser.add_argument`` takes it."""
        name = flag.lstrip("-")
        if name not in self.owners:
            self._group.add_argument(flag, **options)
        self.owners.setdefault(name, []).append(self._task)

    def check(self, args: argparse.Namespace, task: str, source: str) -> None:
        """Raise a UserError for an option of another task."""
        for name, owners in self.owners.items():
            if task not in owners and getattr(args, name) not in (None, False):
                raise UserError(f"--{name} is an option of {' and '.join(owners)}, and {source} is for {task}")


def make_parser(command: str, description: str, config_needed: bool = True) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"{command}.py", description=description)
    text = "YAML configuration: PaddleSeg's schema for segmentation, PaddleClas' for classification, else ours"
    parser.add_argument("--config", required=config_needed, type=user_path, help=text)
    text = "replace values, such as batch_size=4 model.channels=64"
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY=VALUE", help=text)
    text = "default: the GPU if there is one"
    parser.add_argument("--device", choices=("cpu", "gpu", "xpu", "npu", "mlu"), help=text)
    parser.add_argument("--debug", action="store_true", help="show where a mistake was found")
    return parser


def user_path(text: str) -> str:
    """An argument that is a path; a shell leaves ``--option=~/x`` as it is."""
    return os.path.expanduser(text)


def add_model_path(parser: argparse.ArgumentParser) -> None:
    text = "checkpoint: .pdparams, .safetensors, or a folder with model.pdparams; needed"
    parser.add_argument("--model_path", type=user_path, help=text)


def _check_data(text: str) -> str | int:
    """What --check_data takes: auto, all, none or a number of samples."""
    if text in ("auto", "all", "none"):
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"expected auto, all, none or a number of samples, got {text!r}")


def add_check_data(parser: argparse.ArgumentParser) -> None:
    text = "samples to read before the start: auto (default; all of up to 3000, else 1000), all, none, or a number"
    parser.add_argument("--check_data", type=_check_data, default="auto", metavar="auto|all|none|N", help=text)
