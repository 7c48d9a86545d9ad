"""Mixup and CutMix on batches, under PaddleClas' names, with label smoothing and soft targets.

One mixing weight is drawn for a batch, and image i is mixed with image N - 1 - i: batches are in random order, so
the partner is as good as a drawn one, and the published recipe does the same. Everything random is drawn from the
generator that is passed in, so that a trainer can make it a function of the seed, the iteration and the process.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from paddle_vheat.config import ConfigError, did_you_mean
from paddle_vheat.data._op_arguments import fraction, probability


def soft_targets(labels: np.ndarray, num_classes: int, smoothing: float = 0.0) -> np.ndarray:
    """Class indices as rows of probabilities.

    Args:
        labels: integers (N,), 0 to num_classes - 1.
        num_classes: K.
        smoothing: this share is spread evenly over all K classes, the right one included.

    Returns:
        float32 (N, K); each row sums to 1.

    Raises:
        ValueError: for labels that are no such integers, or a smoothing outside 0 to 1.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: expected integers (N,), got {labels.dtype} {labels.shape}")
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if outside.size:
        raise ValueError(f"labels: expected classes 0 to {num_classes - 1}, got {outside[0]}")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing: expected a share from 0 to 1, got {smoothing!r}")
    targets = np.full((len(labels), num_classes), smoothing / num_classes, np.float32)
    targets[np.arange(len(labels)), labels] = 1 - smoothing + smoothing / num_classes
    return targets


def _check_alpha(alpha: Any) -> float:
    number = fraction(alpha, "alpha")
    if number <= 0:
        raise ValueError(f"alpha: expected a number above 0, got {alpha!r}")
    return number


def _mix(values: np.ndarray, weight: float) -> np.ndarray:
    """``weight`` of each row and the rest of its partner, in float32."""
    mixed = values * np.float32(weight)
    mixed += values[::-1] * np.float32(1 - weight)
    return mixed


class MixupOperator:
    """Weighted means of two images (Zhang et al., https://arxiv.org/abs/1710.09412).

    Args:
        alpha: the weight is drawn from Beta(alpha, alpha); the published recipe has 0.8.
    """

    def __init__(self, alpha: Any = 1.0) -> None:
        self.alpha = _check_alpha(alpha)

    def __call__(
        self, images: np.ndarray, targets: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Float32 (N, C, H, W) and (N, K) -> the same shapes, new arrays."""
        weight = float(rng.beta(self.alpha, self.alpha))
        return _mix(images, weight), _mix(targets, weight)


class CutmixOperator:
    """A rectangle of each image replaced by the other's (Yun et al., https://arxiv.org/abs/1905.04899).

    Args:
        alpha: the rectangle's area is drawn as 1 - Beta(alpha, alpha); the published recipe has 1.0. Its centre
            may be anywhere in the image, and what of it is outside is cut off; the labels are weighted by the
            area that is left.
    """

    def __init__(self, alpha: Any = 0.2) -> None:
        self.alpha = _check_alpha(alpha)

    def draw(self, height: int, width: int, rng: np.random.Generator) -> tuple[slice, slice]:
        """The rows and columns to replace."""
        side = math.sqrt(1 - float(rng.beta(self.alpha, self.alpha)))
        spans = []
        for length in (height, width):
            half = int(length * side) // 2
            middle = int(rng.integers(length))
            spans.append(slice(max(0, middle - half), min(length, middle + half)))
        return spans[0], spans[1]

    def __call__(
        self, images: np.ndarray, targets: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Float32 (N, C, H, W) and (N, K) -> the same shapes, new arrays."""
        height, width = images.shape[2:]
        rows, columns = self.draw(height, width, rng)
        mixed = images.copy()
        mixed[:, :, rows, columns] = images[::-1, :, rows, columns]
        replaced = (rows.stop - rows.start) * (columns.stop - columns.start)
        return mixed, _mix(targets, 1 - replaced / (height * width))


class Choice(NamedTuple):
    """An operation, and the probability with which a batch gets it."""

    prob: float
    op: Any


class BatchTransform:
    """Soft targets, and for each batch one of several mixing operations or none.

    Args:
        choices: the probabilities sum to at most 1; what is missing from 1 leaves the images as they are.
        num_classes: K.
        smoothing: of the labels; smoothing before mixing gives the same targets as smoothing after it.

    Raises:
        ValueError: if the probabilities sum to more than 1.
    """

    def __init__(self, choices: Sequence[Choice], num_classes: int, smoothing: float = 0.0) -> None:
        total = sum(choice.prob for choice in choices)
        if total > 1 + 1e-9:
            raise ValueError(f"the probabilities sum to {total:g}, expected at most 1")
        self.choices = tuple(choices)
        self.num_classes = num_classes
        self.smoothing = smoothing

    def __call__(
        self, images: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mix one batch.

        Args:
            images: float32 (N, C, H, W); not changed.
            labels: integers (N,).
            rng: decides everything random here.

        Returns:
            Images float32 (N, C, H, W) and targets float32 (N, K), whose rows sum to 1.

        Raises:
            ValueError: for other shapes or types, or labels out of range.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.dtype != np.float32:
            raise ValueError(f"images: expected float32 (N, C, H, W), got {images.dtype} {images.shape}")
        targets = soft_targets(labels, self.num_classes, self.smoothing)
        if len(targets) != len(images):
            raise ValueError(f"{len(images)} images, but {len(targets)} labels")
        drawn = rng.random()
        for prob, op in self.choices:
            if drawn < prob:
                return op(images, targets, rng)
            drawn -= prob
        return images, targets


OPERATORS: dict[str, Callable[..., Any]] = {"MixupOperator": MixupOperator, "CutmixOperator": CutmixOperator}
_TOP_LEVEL = ("OpSampler", *OPERATORS)


def _build(name: str, arguments: Any, source: str) -> Any:
    known = inspect.signature(OPERATORS[name]).parameters
    for key in arguments:
        if key not in known:
            near = did_you_mean(key, (*known, "prob"))
            raise ConfigError(f"{source}: no argument {key!r}{near}; known are {', '.join((*known, 'prob'))}")
    try:
        return OPERATORS[name](**arguments)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error


def _by_name(value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{source}: expected arguments by name, got {value!r}")
    return dict(value)


def _sampler(arguments: Any, source: str) -> list[Choice]:
    choices = []
    for name, value in _by_name(arguments, source).items():
        where = f"{source}.{name}"
        if name not in OPERATORS:
            raise ConfigError(f"{where}: no operator {name!r}{did_you_mean(name, OPERATORS)}; known are "
                              f"{', '.join(OPERATORS)}")  # fmt: skip
        value = _by_name(value, where)
        if "prob" not in value:
            raise ConfigError(f"{where}: prob is missing: the probability with which a batch gets it")
        try:
            prob = probability(value.pop("prob"), "prob")
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
        choices.append(Choice(prob, _build(name, value, where)))
    return choices


def build_batch_ops(
    config: Any, num_classes: int, smoothing: float = 0.0, source: str = "batch_transform_ops"
) -> BatchTransform:
    """What to do with batches, from PaddleClas' ``batch_transform_ops``.

    Args:
        config: a list of one {"OpSampler": {operator: {"alpha": ..., "prob": ...}, ...}}, or of one
            {operator: {"alpha": ...}} that every batch gets; None or an empty list mixes nothing.
        num_classes: K.
        smoothing: of the labels (``epsilon`` of PaddleClas' CELoss).
        source: what to call the list in an error.

    Raises:
        ConfigError: for unknown names and arguments, with the nearest and the known ones, and values out of range.
    """
    entries = [] if config is None else config
    if not isinstance(entries, (list, tuple)):
        raise ConfigError(f"{source}: expected a list of operators, got {config!r}")
    if len(entries) > 1:
        raise ConfigError(f"{source}: only one entry is supported; put the operators into one OpSampler")
    choices: list[Choice] = []
    for entry in entries:
        if not isinstance(entry, dict) or len(entry) != 1:
            raise ConfigError(f"{source}: expected one 'name: arguments', got {entry!r}")
        ((name, arguments),) = entry.items()
        arguments = {} if arguments is None else arguments
        where = f"{source}: 0.{name}"
        if name == "OpSampler":
            choices = _sampler(arguments, where)
        elif name in OPERATORS:
            choices = [Choice(1.0, _build(name, _by_name(arguments, where), where))]
        else:
            near = did_you_mean(name, _TOP_LEVEL)
            raise ConfigError(f"{source}: 0: no operator {name!r}{near}; known are {', '.join(_TOP_LEVEL)}")
    try:
        return BatchTransform(choices, num_classes, smoothing)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
