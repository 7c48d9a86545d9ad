"""What decays say about conduction, in NumPy's float64.

A map of H x W patches has the modes (n, m) with w_n = pi n / H and w_m = pi m / W in radians per patch. The thermal
diffusivity k[n, m, c], in patches^2 and with the time in it, gives the decay E = exp(-k (w_n^2 + w_m^2)). Everything
here but :func:`diffusivity_of` starts from E, so it is defined for a folded model too, where k is gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from paddle_vheat.ops.dct import cosine_basis

FREQUENCY_BINS = np.arange(24) * (math.pi / 16)
"""Edges of the bins of |w|, radians per patch; the largest |w| is below sqrt(2) pi."""

_SMALLEST = float(np.finfo(np.float32).tiny)


def radial_frequency(height: int, width: int) -> np.ndarray:
    """|w| of every mode, radians per patch, float64 (H, W)."""
    rows, columns = np.arange(height) * (math.pi / height), np.arange(width) * (math.pi / width)
    return np.hypot(rows[:, None], columns[None, :])


def diffusivity_of(decay: np.ndarray) -> np.ndarray:
    """k of a decay (H, W, C), for folded models: -log(E) / |w|^2.

    NaN where E does not tell it: at mode (0, 0), where E has underflowed, and where a free filter is not positive.
    """
    decay = np.asarray(decay, np.float64)
    squares = radial_frequency(*decay.shape[:2])[..., None] ** 2
    known = (decay >= _SMALLEST) & (squares > 0)
    return np.where(known, np.maximum(-np.log(np.where(known, decay, 1.0)), 0) / np.where(known, squares, 1.0), np.nan)


def by_frequency(values: np.ndarray, statistic: Callable[[np.ndarray], Any] = np.mean) -> np.ndarray:
    """A statistic of the values (H, W, C) of all modes and channels in each bin of |w|; NaN for a bin without modes.

    Args:
        values: those that are NaN are left out.
        statistic: such as ``lambda v: np.quantile(v, [0.1, 0.5, 0.9])``.

    Returns:
        float64 (23,), or (23, ...) if the statistic gives an array; ``FREQUENCY_BINS`` has the edges.
    """
    bins = np.digitize(radial_frequency(*values.shape[:2]), FREQUENCY_BINS) - 1
    found = []
    for i in range(len(FREQUENCY_BINS) - 1):
        inside = np.asarray(values, np.float64)[bins == i]
        inside = inside[~np.isnan(inside)]
        found.append(statistic(inside) if inside.size else np.full_like(statistic(np.zeros(1)), np.nan, np.float64))
    return np.asarray(found, np.float64)


def mean_over_channels(values: np.ndarray) -> np.ndarray:
    """Mean of the values (H, W, C) of each mode, float (H, W): of those that are not NaN; NaN where all are."""
    with np.errstate(invalid="ignore"):
        known = ~np.isnan(values)
        return np.where(known.any(-1), np.where(known, values, 0).sum(-1) / np.maximum(known.sum(-1), 1), np.nan)


def conduction(decay: np.ndarray, patch: tuple[int, int], times: Sequence[float] = (1.0,)) -> np.ndarray:
    """Heat that spreads from one patch: u_t = IDCT2(DCT2(delta_patch) E^t), mean over channels.

    It depends on the weights alone, not on an image: the transform is linear. The time 1 is what the operator does; the
    others are the heat equation's. The sum of u_t is 1. Where k varies with the mode, u_t may be negative.

    Args:
        decay: E (H, W, C).
        patch: (row, column) that the heat starts from.
        times: t >= 0; 0 gives the patch alone.

    Returns:
        float64 (T, H, W).

    Raises:
        ValueError: for a patch outside the map and a negative time.
    """
    height, width = decay.shape[:2]
    y, x = patch
    if not (0 <= y < height and 0 <= x < width):
        raise ValueError(f"patch ({y}, {x}) is outside the map of {height} x {width} patches")
    if min(times) < 0:
        raise ValueError(f"times must be at least 0, got {list(times)}")
    rows, columns = (cosine_basis(n, "float64").numpy() for n in (height, width))
    start = np.outer(rows[:, y], columns[:, x])
    wide = np.asarray(decay, np.float64)
    return np.stack([rows.T @ (start * (wide**t).mean(axis=-1)) @ columns for t in times])


def reach(decay: np.ndarray) -> float:
    """How far a patch conducts: the standard deviation of the kernel at the centre, mean over channels, in patches.

    For a constant k, away from the edges, it is sqrt(2 k). For a k of modes it comes from the kernel's central
    variance (mean of the two axes), not from a mean of k. NaN where negative lobes make the variance negative.
    """
    height, width = decay.shape[:2]
    kernel = conduction(decay, (height // 2, width // 2))[0]
    variances = []
    for axis, size in ((1, height), (0, width)):
        profile, place = kernel.sum(axis=axis), np.arange(size)
        variances.append((profile * (place - (profile * place).sum()) ** 2).sum())
    variance = float(np.mean(variances))
    # Rounding leaves the variance of the identity at about -1e-16.
    return math.sqrt(max(variance, 0.0)) if variance > -1e-9 else math.nan
