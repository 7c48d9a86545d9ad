"""Mixup and CutMix on batches of tensors, under PaddleClas' names, with label smoothing and soft targets.

One mixing weight is drawn for a batch, and image i is mixed with image N - 1 - i: batches are in random order, so
the partner is as good as a drawn one, and the published recipe does the same. Everything random is drawn on the host,
from the NumPy generator that is passed in, so that a trainer can make it a function of the seed, the iteration and the
process; the images stay on their device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_vheat._paddle import F, paddle
from paddle_vheat.config import ConfigError, build, build_list, by_name, option
from paddle_vheat.config.options import short
from paddle_vheat.tasks.classification.operation import Operation

Tensor = Any


def soft_targets(labels: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Class indices, integers (N,) from 0 to K - 1, as rows of probabilities, float32 (N, K).

    ``smoothing`` is spread evenly over all K classes, the right one included.
    """
    right = F.one_hot(labels, num_classes)
    return right * (1 - smoothing + smoothing / num_classes) + (1 - right) * (smoothing / num_classes)


def _partners(values: Tensor) -> Tensor:
    return values.index_select(paddle.arange(len(values) - 1, -1, -1))  # on a CPU, flip takes four times as long


def _mix(values: Tensor, weight: float) -> Tensor:
    """``weight`` of each row and the rest of its partner."""
    return values * weight + _partners(values) * (1 - weight)


@dataclass(eq=False)
class MixupOperator(Operation):
    """Weighted means of two images (Zhang et al., https://arxiv.org/abs/1710.09412).

    Args:
        alpha: the weight is drawn from Beta(alpha, alpha); the published recipe has 0.8.
        prob: probability that a batch gets it.
    """

    alpha: float = option(float, 1.0, above=0)
    prob: float = option(float, 1.0, min=0, max=1)

    def __call__(self, images: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Float32 (N, C, H, W) and (N, K) -> the same shapes, new tensors."""
        weight = float(rng.beta(self.alpha, self.alpha))
        return _mix(images, weight), _mix(targets, weight)


@dataclass(eq=False)
class CutmixOperator(Operation):
    """A rectangle of each image replaced by the other's (Yun et al., https://arxiv.org/abs/1905.04899).

    Args:
        alpha: the rectangle's area is drawn as 1 - Beta(alpha, alpha); the published recipe has 1.0. Its centre
            may be anywhere in the image, and what of it is outside is cut off; the labels are weighted by the
            area that is left.
        prob: probability that a batch gets it.
    """

    alpha: float = option(float, 0.2, above=0)
    prob: float = option(float, 1.0, min=0, max=1)

    def draw(self, height: int, width: int, rng: np.random.Generator) -> tuple[slice, slice]:
        """The rows and columns to replace."""
        side = math.sqrt(1 - float(rng.beta(self.alpha, self.alpha)))
        spans = []
        for length in (height, width):
            half = int(length * side) // 2
            middle = int(rng.integers(length))
            spans.append(slice(max(0, middle - half), min(length, middle + half)))
        return spans[0], spans[1]

    def __call__(self, images: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Float32 (N, C, H, W) and (N, K) -> the same shapes, new tensors."""
        height, width = images.shape[2:]
        rows, columns = self.draw(height, width, rng)
        replaced = np.zeros((1, 1, height, width), bool)
        replaced[:, :, rows, columns] = True
        mixed = paddle.where(paddle.to_tensor(replaced), _partners(images), images)
        return mixed, _mix(targets, 1 - float(replaced.mean()))


OPERATORS: dict[str, Callable[..., Any]] = {"MixupOperator": MixupOperator, "CutmixOperator": CutmixOperator}


def _sampler(**operators: Any) -> list[Any]:
    """PaddleClas' OpSampler: operators by name, each with its ``prob``."""
    for name, arguments in operators.items():
        if isinstance(arguments, Mapping) and "prob" not in arguments:
            raise ValueError(f"'{name}.prob' is missing: the probability that a batch gets it")
    try:
        return [build(name, arguments, OPERATORS, name) for name, arguments in operators.items()]
    except ConfigError as error:  # a ValueError gets the place of the sampler
        raise ValueError("; ".join(error.problems)) from error


@dataclass(frozen=True)
class BatchTransform:
    """Soft targets, and for each batch one of several mixing operators or none.

    Attributes:
        operators: their probabilities sum to at most 1; what is missing from 1 leaves the images as they are.
        num_classes: K.
        smoothing: of the labels; smoothing before mixing gives the same targets as smoothing after it.
    """

    operators: tuple[Any, ...]
    num_classes: int
    smoothing: float = 0.0

    def __call__(self, images: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Images float32 (N, C, H, W) and labels int64 (N,) -> images and targets, float32 (N, K), rows of sum 1.

        ``rng`` decides everything random. The images that are passed in are not changed.
        """
        targets = soft_targets(labels, self.num_classes, self.smoothing)
        drawn = rng.random()
        for operator in self.operators:
            if drawn < operator.prob:
                return operator(images, targets, rng)
            drawn -= operator.prob
        return images, targets


def build_batch_ops(
    config: Any, num_classes: int, smoothing: float = 0.0, source: str = "batch_transform_ops"
) -> BatchTransform:
    """What to do with batches, from PaddleClas' ``batch_transform_ops``.

    Args:
        config: a list of one {"OpSampler": {operator: {"alpha": ..., "prob": ...}, ...}}, or of one
            {operator: {"alpha": ...}}; None or an empty list mixes nothing.
        num_classes: K.
        smoothing: of the labels, 0 to 1 (``epsilon`` of PaddleClas' CELoss).
        source: what to call the list in an error.

    Raises:
        ConfigError: for unknown names and arguments, with the nearest and the known ones, and values out of range.
    """
    entries = build_list([] if config is None else config, {"OpSampler": _sampler, **OPERATORS}, source, by_name)
    if len(entries) > 1:
        raise ConfigError(f"'{source}' must be a list of one entry, got {short(config)}; put several into OpSampler")
    operators = tuple(entries[0] if entries and isinstance(entries[0], list) else entries)
    total = sum(operator.prob for operator in operators)
    if total > 1 + 1e-9:
        raise ConfigError(f"'{source}': the probabilities sum to {total:g}, expected at most 1")
    return BatchTransform(operators, num_classes, smoothing)
