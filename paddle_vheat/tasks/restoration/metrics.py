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


def luma(bgr: np.ndarray, rounded: bool = True) -> np.ndarray:
    """Y of BT.601 in studio range (16..235), as Matlab's rgb2ycbcr: (H, W, 3) uint8 BGR -> (H, W).

    Not OpenCV's gray, which is full-range. ``rounded`` gives uint8, else float64.
    """
    y = (bgr.astype(np.float32) / np.float32(PEAK)) @ np.array([24.966, 128.553, 65.481]) + 16
    return y.round().astype(np.uint8) if rounded else y


def _pair(output: np.ndarray, target: np.ndarray, border: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64 as (H, W, C), without ``border`` pixels at each side."""
    if output.shape != target.shape or output.ndim not in (2, 3):
        raise ValueError(f"{name}: expected two images (H, W) or (H, W, C), got {output.shape} and {target.shape}")
    height, width = output.shape[:2]
    if min(height, width) <= 2 * border:
        raise ValueError(f"{name}: nothing is left of {height} x {width} pixels without a border of {border}")
    cut = slice(border, height - border), slice(border, width - border)
    first, second = (np.atleast_3d(image[cut]).astype(np.float64) for image in (output, target))
    return first, second


def _decibels(mean_square: float) -> float:
    return 10 * math.log10(PEAK**2 / mean_square) if mean_square > 0 else math.inf


def psnr(output: np.ndarray, target: np.ndarray, border: int = 0) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels; inf for equal images.

    Args:
        border: pixels that are left out at each side.

    Raises:
        ValueError: if the shapes differ, or nothing is left inside the border.
    """
    first, second = _pair(output, target, border, "psnr")
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

    Raises:
        ValueError: if the shapes differ, or a side is below 11 pixels.
    """
    x, y = _pair(output, target, 0, "ssim")
    if min(x.shape[:2]) < 11:
        raise ValueError(f"ssim: needs at least 11 pixels a side, got {x.shape[0]} x {x.shape[1]}")
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

    Raises:
        ValueError: if the shapes differ, or a side is below 16 pixels.
    """
    first, second = _pair(output, target, 0, "psnr_b")
    if min(first.shape[:2]) < 2 * _BLOCK:
        raise ValueError(f"psnr_b: needs at least 16 pixels a side, got {first.shape[0]} x {first.shape[1]}")
    channels = [
        _decibels(float(((x - y) ** 2).mean()) + _blockiness(x))
        for x, y in zip(first.transpose(2, 0, 1), second.transpose(2, 0, 1))
    ]
    return float(np.mean(channels))
