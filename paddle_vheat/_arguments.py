"""Checks of arguments that every level makes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from paddle_vheat.errors import UserError


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """'; did you mean X?' if something known is near, else an empty string."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise a UserError that begins with ``name`` for what is no integer from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        upper = "" if high is None or high > 10**15 else f" and at most {high}"
        raise UserError(f"{name} must be an integer of at least {low}{upper}, got {value!r}")
