"""Restored pictures, and what has changed in them. Needs no Paddle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

CONTRAST = 4
"""By how much a difference is amplified to be seen."""


def as_rgb(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W) or BGR (H, W, 3) -> RGB (H, W, 3)."""
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., ::-1]


def difference(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """What was added to a picture, four times as strong, around a gray of 128: uint8 of the shape of both."""
    change = CONTRAST * (after.astype(np.int16) - before.astype(np.int16)) + 128
    return change.clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class RestorationPrediction:
    """The restored picture, uint8 (H, W) or BGR (H, W, 3), and the one that it was made of."""

    value: np.ndarray
    before: np.ndarray

    def draw(self, image: Any) -> dict[str, Any]:
        """``restored``: the picture; ``compared``: before | after | difference."""
        parts = self.before, self.value, difference(self.before, self.value)
        restored = self.value if self.value.ndim == 2 else as_rgb(self.value)
        return {"restored": restored, "compared": np.concatenate([as_rgb(part) for part in parts], axis=1)}

    def to_json(self) -> None:
        """None: the picture is all."""

    def line(self) -> str:
        return ""
