"""The tasks, a package each. What is in this folder is found by itself: a new task needs no edit anywhere else.

A task's package says in its ``__init__.py``, without importing Paddle,

- ``claims(config) -> bool``: whether a configuration without the key ``task`` is meant for it;
- ``add_flags(command, flags)``: its own options of ``train``, ``val``, ``predict`` and ``export``;
- ``make_task(config, source, flags, problems) -> Task``: the task, with what is wrong put into ``problems``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from paddle_vheat.config import ConfigError, did_you_mean

_REGISTERED: dict[str, Any] = {}


def register_task(name: str, module: Any) -> None:
    """Add a task that is not in this folder: anything with the three functions above."""
    _REGISTERED[name] = module


def all_tasks() -> dict[str, Any]:
    """The tasks' packages by name."""
    names = [found.name for found in pkgutil.iter_modules(__path__) if found.ispkg]
    return {**{name: importlib.import_module(f"{__name__}.{name}") for name in names}, **_REGISTERED}


def find_task(config: Mapping[str, Any], source: str) -> tuple[str, Any]:
    """Name and package of the task that a configuration is for: its key ``task``, else the task that claims it."""
    tasks = all_tasks()
    name = config.get("task")
    if name is not None:
        if name not in tasks:
            raise ConfigError(
                f"{source}: 'task': no task {name!r}{did_you_mean(name, tasks)} (known: {', '.join(tasks)})"
            )
        return name, tasks[name]
    for name, module in tasks.items():
        if module.claims(config):
            return name, module
    raise ConfigError(f"{source}: no task is meant by these keys; say which by 'task' (known: {', '.join(tasks)})")
