"""Checks of the arguments that image operations take from a configuration.

Each returns the value in one form, or raises a ValueError that begins with the argument's name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from paddle_vheat.data._rand_augment import INTERPOLATIONS


def fraction(value: Any, name: str) -> float:
    """A number, or a string that holds one or the quotient of two ("1.0/255.0"); nothing is evaluated.

    Raises:
        ValueError: for anything else; the message begins with ``name``.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    else:
        unsigned = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
        match = re.fullmatch(rf"{unsigned}(?:/{unsigned})?", value) if isinstance(value, str) else None
        if match is None or (match[2] is not None and float(match[2]) == 0):
            raise ValueError(f"{name}: expected a number or a fraction such as '1.0/255.0', got {value!r}")
        number = float(match[1]) / float(match[2] or 1)
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    return number


def flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected True or False, got {value!r}")
    return value


def probability(value: Any, name: str) -> float:
    number = fraction(value, name)
    if not 0 <= number <= 1:
        raise ValueError(f"{name}: expected a probability from 0 to 1, got {value!r}")
    return number


def numbers(value: Any, name: str, count: int) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise ValueError(f"{name}: expected a list of {count} numbers, got {value!r}")
    return tuple(fraction(item, name) for item in value)


def value_range(value: Any, name: str, most: float = math.inf) -> tuple[float, float]:
    low, high = numbers(value, name, 2)
    if not 0 < low <= high <= most:
        upper = "" if most == math.inf else f" <= {most:g}"
        raise ValueError(f"{name}: expected [low, high] with 0 < low <= high{upper}, got {value!r}")
    return low, high


def size_pair(value: Any, name: str) -> tuple[int, int]:
    pair = value if isinstance(value, (list, tuple)) else (value, value)
    if len(pair) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in pair):
        raise ValueError(f"{name}: expected a positive whole number or [width, height], got {value!r}")
    return pair[0], pair[1]


def interpolation_name(value: Any, known: Sequence[str] = tuple(INTERPOLATIONS)) -> str:
    # Without one, PaddleClas' PIL backend leaves the choice to Pillow, which takes bicubic.
    name = "bicubic" if value is None else str(value).lower()
    if name not in (*known, "random"):
        raise ValueError(f"interpolation: expected one of {', '.join(known)}, random, got {value!r}")
    return name


def only_pil(backend: Any) -> None:
    if str(backend).lower() != "pil":
        raise ValueError(f"backend: only 'pil' is supported, which the recipe was published with, got {backend!r}")
