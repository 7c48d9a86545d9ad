"""PSNR, SSIM and PSNR-B as the tables of restoration papers mean them. NumPy only.

Images are (H, W) or (H, W, C) with values in 0..255, uint8 or floating point. A table's figure is the mean over the
images of a set, each scored on the clamped and rounded output (:func:`to_uint8`); colour images over all channels
together, not on luma; JPEG on the luma of :func:`luma`.
"""

from __future__ import annotations

import math

import numpy as np

PEAK = 255.0
_BLOCK = 8  # of JPEG
_WINDOW = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
_WINDOW /= _WINDOW.sum()


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Values of [0, 1], clamped, to 0..255, rounded."""
    return (np.clip(image, 0, 1) * PEAK).round().astype(np.uint8)


def luma(bgr: np.ndarray) -> np.ndarray:
    """Y of BT.601 in studio range (16..235), as Matlab's rgb2ycbcr: (H, W, 3) uint8 BGR -> uint8 (H, W).

    Not OpenCV's gray, which is full-range.
    """
    y = (bgr.astype(np.float32) / np.float32(PEAK)) @ np.array([24.966, 128.553, 65.481]) + 16
    return y.round().astype(np.uint8)


def _pair(output: np.ndarray, target: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64 as (H, W, C)."""
    if output.shape != target.shape or output.ndim not in (2, 3):
        raise ValueError(f"{name}: expected two images (H, W) or (H, W, C), got {output.shape} and {target.shape}")
    return np.atleast_3d(output).astype(np.float64), np.atleast_3d(target).astype(np.float64)


def _decibels(mean_square: float) -> float:
    return 10 * math.log10(PEAK**2 / mean_square) if mean_square > 0 else math.inf


def psnr(output: np.ndarray, target: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels; inf for equal images.

    Raises:
        ValueError: if the shapes differ.
    """
    first, second = _pair(output, target, "psnr")
    return _decibels(float(((first - second) ** 2).mean()))


def _blur(image: np.ndarray) -> np.ndarray:
    """Gaussian 11 x 11 of sigma 1.5 where it fits: (H, W, C) -> (H - 10, W - 10, C)."""
    height, width = image.shape[0] - 10, image.shape[1] - 10
    tall = sum(weight * image[i : i + height] for i, weight in enumerate(_WINDOW))
    return sum(weight * tall[:, i : i + width] for i, weight in enumerate(_WINDOW))


def ssim(output: np.ndarray, target: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004): Gaussian 11 x 11 of 1.5, valid region, mean of the channels.

    Moments are the population's; K 0.01 and 0.03. Equals scikit-image's ``structural_similarity`` with
    ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255``.

    Args:
        output, target: of one shape, at least 11 pixels a side.
    """
    x, y = _pair(output, target, "ssim")
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    alike = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((alike * (2 * covariance + c2) / (var_x + var_y + c2)).mean())


def _blockiness(image: np.ndarray) -> float:
    """Blocking effect factor of a plane (H, W): by how much squared steps across the 8 x 8 grid exceed the others."""
    on_grid = off_grid = 0.0
    steps_on = steps = 0
    for plane in (image, image.T):
        squares = (np.diff(plane, axis=1) ** 2).sum(axis=0)
        is_grid = np.arange(squares.size) % _BLOCK == _BLOCK - 1
        on_grid += squares[is_grid].sum()
        off_grid += squares[~is_grid].sum()
        # Of a side that is no multiple of 8, the published count leaves out the last line of the grid.
        steps_on += plane.shape[0] * (plane.shape[1] // _BLOCK - 1)
        steps += squares.size * plane.shape[0]
    on_grid, off_grid = on_grid / steps_on, off_grid / (steps - steps_on)
    scale = math.log2(_BLOCK) / math.log2(min(image.shape))
    return scale * (on_grid - off_grid) if on_grid > off_grid else 0.0


def psnr_b(output: np.ndarray, target: np.ndarray) -> float:
    """PSNR with a penalty for visible 8 x 8 blocks of the OUTPUT (Yim and Bovik 2011), mean of the channels.

    Not symmetric: the target's blocks do not count.

    Args:
        output, target: of one shape, at least 16 pixels a side.
    """
    first, second = _pair(output, target, "psnr_b")
    channels = [
        _decibels(float(((x - y) ** 2).mean()) + _blockiness(x))
        for x, y in zip(first.transpose(2, 0, 1), second.transpose(2, 0, 1))
    ]
    return float(np.mean(channels))
