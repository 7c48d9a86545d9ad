"""Checks of arguments that every floor makes."""

from __future__ import annotations

from typing import Any


def check_whole_number(name: str, value: Any, least: int) -> None:
    """Raise a ValueError that begins with ``name`` for what is no whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
