"""What the operations on images and batches have in common: arguments that are checked when one is made."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from paddle_vheat.config.options import check_value

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_SIDE = 1 << 13  # pixels; the square is below data.image_file.MAX_PIXELS
_NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
_FRACTION = re.compile(rf"{_NUMBER}(?:/{_NUMBER})?", re.ASCII)


def fraction(value: Any) -> Any:
    """The number that a text such as "1.0/255.0" or "2e-2" holds; anything else as it is. Nothing is evaluated."""
    match = _FRACTION.fullmatch(value) if isinstance(value, str) else None
    if match is None or (match[2] is not None and float(match[2]) == 0):
        return value
    return float(match[1]) / float(match[2] or 1)


@dataclasses.dataclass(eq=False)
class Operation:
    """An operation whose fields are its arguments, each declared by :func:`paddle_vheat.config.option`.

    A null stands for the default, one integer for a pair of equal ones, and a text such as "1.0/255.0" for a number.

    Raises:
        ValueError: for arguments of another kind or out of range; names all of them.
    """

    def __post_init__(self) -> None:
        problems: list[str] = []
        for field in dataclasses.fields(self):
            value, rule = getattr(self, field.name), field.metadata
            if value is None and field.default is not dataclasses.MISSING:
                value = field.default
            if rule["items"] is int and isinstance(value, int):
                value = [value] * rule["length"]
            if float in (rule["kind"], rule["items"]):
                value = [fraction(item) for item in value] if isinstance(value, (list, tuple)) else fraction(value)
            if rule["choices"] is not None and isinstance(value, str):
                value = value.lower()
            value = check_value(value, field, field.name, problems)
            setattr(self, field.name, tuple(value) if isinstance(value, list) else value)
        if problems:
            raise ValueError("; ".join(problems))

    def stages(self) -> tuple[tuple[str, ...], str]:
        """What it works on and what it gives: "file", "image", "hwc" or "chw", see ``transforms.pipeline``."""
        return ("image",), "image"


def check_order(name: str, low: float, high: float) -> None:
    """Raise a ValueError for the ends of a range in the wrong order."""
    if not low <= high < math.inf:
        raise ValueError(f"{name} must be a range [low, high], got [{low:g}, {high:g}]")
