"""Which anchors and proposals stand for which truth, and which of them are sampled for the losses.

The only randomness of the detector's training beside stochastic depth is here, and its source is passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from paddle_vheat._paddle import paddle

Tensor = Any
# (n, k) -> k different positions below n, ascending, int64: which k of n candidates are sampled
Sampler = Callable[[int, int], np.ndarray]

NEGATIVE, IGNORED = -1, -2  # in place of a truth's index


def random_sampler(generator: np.random.Generator) -> Sampler:
    """Every choice of k out of n equally probable, from a generator whose state a checkpoint can hold."""
    return lambda n, k: np.sort(generator.choice(n, k, replace=False, shuffle=False))


def assign(overlaps: Tensor, positive: float, negative: float, tied: float, valid: Tensor | None = None) -> Tensor:
    """Assign candidates to truths by their overlap.

    Args:
        overlaps: (truths, n) IoU; there may be no truth.
        positive: a candidate of at least this IoU with its best truth belongs to it.
        negative: one of less than this is background; in between it is ignored.
        tied: each truth besides gets all candidates that tie for its own best IoU if that is at least this.
        valid: (n,) bool, False for candidates to be ignored whatever their overlap.

    Returns:
        (n,) int64: index of the truth, ``NEGATIVE`` or ``IGNORED``.
    """
    count, n = overlaps.shape
    if count == 0:
        background = paddle.full([n], NEGATIVE, "int64")
        return background if valid is None else paddle.where(valid, background, paddle.full([n], IGNORED, "int64"))
    if valid is not None:
        overlaps = paddle.where(valid.unsqueeze(0), overlaps, paddle.full([], -1.0))
    best, truth = overlaps.amax(axis=0), overlaps.argmax(axis=0)
    is_background = paddle.logical_and(best >= 0, best < negative)
    background = paddle.where(is_background, paddle.full([n], NEGATIVE, "int64"), paddle.full([n], IGNORED, "int64"))
    assigned = paddle.where(best >= positive, truth, background)
    of_truth = overlaps.amax(axis=1, keepdim=True)
    ties = paddle.logical_and(overlaps == of_truth, of_truth >= tied).astype("int64")
    last = (ties * paddle.arange(1, count + 1).unsqueeze(1)).amax(axis=0) - 1  # the last truth of several has it
    return paddle.where(last >= 0, last, assigned)


def _choose(mask: Tensor, most: int, sampler: Sampler) -> Tensor:
    indices = paddle.nonzero(mask).flatten()
    n = indices.shape[0]
    return paddle.gather(indices, paddle.to_tensor(sampler(n, most), "int64")) if n > most else indices


def sample(assigned: Tensor, count: int, fraction: float, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """At most ``count`` candidates, at most ``fraction`` of them positive: indices of positives and negatives."""
    positive = _choose(assigned >= 0, int(count * fraction), sampler)
    return positive, _choose(assigned == NEGATIVE, count - positive.shape[0], sampler)
