"""What the programs beside the four commands share: ``tools/`` and the page in the browser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from paddle_vheat.cli import EXIT_ERROR, load_checkpoint
from paddle_vheat.config import load_config
from paddle_vheat.cpu import configure_cpu
from paddle_vheat.tasks import find_task


def trained(args: argparse.Namespace) -> tuple[Any, Any]:
    """The task of ``--config`` and ``--opts``, and its model with the weights of ``--model_path``."""
    config = load_config(args.config, args.opts)
    task = find_task(config, args.config)[1].make_task(config, args.config, args, None)
    model = task.build_model(pretrained=False)
    load_checkpoint(task, model, args.model_path)
    return task, model


def run_tool(run: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> int:
    """Set the CPU up and run a program; a mistake of the user's is one line. Returns the exit code."""
    if "paddle" not in sys.modules:
        configure_cpu()
    try:
        run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    return 0
