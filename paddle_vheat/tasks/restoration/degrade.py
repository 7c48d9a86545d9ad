"""Degraded images for training and evaluation: Gaussian noise and JPEG, as SwinIR and DnCNN before it use them.

Images are uint8, (H, W) gray or (H, W, 3) BGR as OpenCV reads them; pairs for a network are float32 in units of the
full range. ``rng`` is what random numbers are drawn from: NumPy's module (its global state, which the data loading
seeds for every sample), a ``RandomState`` or a ``Generator``. No Paddle here.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from paddle_vheat.errors import DataError
from paddle_vheat.tasks.restoration.metrics import luma

GRID = 8  # pixels of JPEG's blocks; a crop for it is taken so much larger first
AUGMENTATIONS = 8


def _below(count: int, rng: Any) -> int:
    """A random integer from 0 to ``count`` - 1, by a method that all of NumPy's sources have."""
    return int(rng.random() * count)


def as_float(image: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(255)


def random_crop(image: np.ndarray, size: int, rng: Any = np.random) -> np.ndarray:
    """A random square (view) of ``size`` pixels a side.

    Raises:
        DataError: if the image is smaller.
    """
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise DataError(f"the image of {height} x {width} pixels is smaller than the crop of {size} x {size}")
    top, left = _below(height - size + 1, rng), _below(width - size + 1, rng)
    return image[top : top + size, left : left + size]


def augment(image: np.ndarray, mode: int) -> np.ndarray:
    """One of the eight flips and rotations of the square, by its number; 0 is the image itself."""
    turned = np.rot90(image, mode % 4)
    return np.ascontiguousarray(turned[::-1] if mode >= 4 else turned)


def add_noise(image: np.ndarray, sigma: float, rng: Any = np.random) -> np.ndarray:
    """Gaussian noise of deviation ``sigma`` / 255 on an image in [0, 1]; float32, neither clamped nor rounded."""
    return (image + rng.normal(0.0, sigma / 255, image.shape)).astype(np.float32)


def scored_noise(image: np.ndarray, sigma: float) -> np.ndarray:
    """The noisy image of the published tables: uint8 gray or BGR -> float32, the same noise for every image."""
    return add_noise(as_float(image), sigma, np.random.RandomState(0))


def compress_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """A uint8 image, gray or BGR, after JPEG of a quality from 1 to 100."""
    if image.dtype != np.uint8 or not 1 <= quality <= 100:
        raise ValueError(f"compress_jpeg: expected uint8 and a quality of 1..100, got {image.dtype} and {quality}")
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE if image.ndim == 2 else cv2.IMREAD_COLOR)


def noise_pair(image: np.ndarray, sigma: float, size: int = 128, rng: Any = np.random) -> tuple[np.ndarray, np.ndarray]:
    """(noisy, clean) for training: an augmented random crop with fresh noise.

    Raises:
        DataError: if the image is smaller than the crop.
    """
    clean = as_float(augment(random_crop(image, size, rng), _below(AUGMENTATIONS, rng)))
    return add_noise(clean, sigma, rng), clean


def jpeg_pair(
    image: np.ndarray, quality: int, size: int = 126, gray: bool = True, rng: Any = np.random
) -> tuple[np.ndarray, np.ndarray]:
    """(compressed, clean) for training: an augmented random crop whose JPEG grid begins anywhere half of the time.

    A crop larger by 8 is compressed and then cut, in half of the cases at a random place, else at its corner.

    Args:
        gray: whether a colour image is turned gray, by the luma of the tables or by OpenCV's, with equal chance.

    Raises:
        DataError: if the image is smaller than ``size`` + 8.
    """
    clean = augment(random_crop(image, size + GRID, rng), _below(AUGMENTATIONS, rng))
    if gray and clean.ndim == 3:
        clean = luma(clean) if rng.random() < 0.5 else cv2.cvtColor(clean, cv2.COLOR_BGR2GRAY)
    compressed = compress_jpeg(clean, quality)
    top = left = 0
    if rng.random() < 0.5:
        top, left = _below(GRID + 1, rng), _below(GRID + 1, rng)
    cut = slice(top, top + size), slice(left, left + size)
    return as_float(compressed[cut]), as_float(clean[cut])
