"""Predictions of classification: no pictures, but lines and JSON. Needs no Paddle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def best(scores: np.ndarray) -> np.ndarray:
    """The five likeliest classes, best first; of equal ones the first class counts, on every machine."""
    return np.argsort(-scores, kind="stable")[:5]


@dataclass(frozen=True)
class ClassificationPrediction:
    """The likeliest classes, best first: [{"class": index, "name": name, "score": probability or None}, ...]."""

    value: list[dict[str, Any]]

    @classmethod
    def of(cls, scores: np.ndarray, names: Sequence[str] | None) -> ClassificationPrediction:
        """The five likeliest classes by their scores (classes,); without names, a class is called by its index."""
        order = best(scores).tolist()
        return cls([{"class": i, "name": class_name(i, names), "score": float(scores[i])} for i in order])

    def draw(self, image: Any) -> dict[str, Any]:
        return {}

    def to_json(self) -> list[dict[str, Any]]:
        return self.value

    def line(self) -> str:
        scores = ["" if one["score"] is None else f" {100 * one['score']:.1f}%" for one in self.value]
        return ", ".join(one["name"] + score for one, score in zip(self.value, scores))


def class_name(index: int, names: Sequence[str] | None) -> str:
    return str(index) if names is None else names[index]
