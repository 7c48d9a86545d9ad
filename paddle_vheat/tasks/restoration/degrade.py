"""Degraded images for training and evaluation: Gaussian noise and JPEG, as SwinIR and DnCNN before it use them.

Images are uint8, (H, W) gray or (H, W, 3) BGR as OpenCV reads them; pairs for a network are float32 in units of the
full range. Random numbers are drawn from NumPy's global state, which the data loading seeds for every sample. No Paddle
here.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from paddle_vheat.tasks.restoration.metrics import luma

GRID = 8  # pixels of JPEG's blocks; a crop for it is taken so much larger first
AUGMENTATIONS = 8


def _below(count: int) -> int:
    """A random integer from 0 to ``count`` - 1."""
    return int(np.random.random() * count)


def as_float(image: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(255)


def random_crop(image: np.ndarray, size: int) -> np.ndarray:
    """A random square (view) of ``size`` pixels a side, of an image that is at least so large."""
    height, width = image.shape[:2]
    top, left = _below(height - size + 1), _below(width - size + 1)
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
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE if image.ndim == 2 else cv2.IMREAD_COLOR)


def noise_pair(image: np.ndarray, sigma: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(noisy, clean) for training: an augmented random crop with fresh noise."""
    clean = as_float(augment(random_crop(image, size), _below(AUGMENTATIONS)))
    return add_noise(clean, sigma), clean


def jpeg_pair(image: np.ndarray, quality: int, size: int, gray: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(compressed, clean) for training: an augmented random crop whose JPEG grid begins anywhere half of the time.

    A crop larger by 8 is compressed and then cut, in half of the cases at a random place, else at its corner.

    Args:
        gray: whether a colour image is turned gray, by the luma of the tables or by OpenCV's, with equal chance.
    """
    clean = augment(random_crop(image, size + GRID), _below(AUGMENTATIONS))
    if gray and clean.ndim == 3:
        clean = luma(clean) if np.random.random() < 0.5 else cv2.cvtColor(clean, cv2.COLOR_BGR2GRAY)
    compressed = compress_jpeg(clean, quality)
    top = left = 0
    if np.random.random() < 0.5:
        top, left = _below(GRID + 1), _below(GRID + 1)
    cut = slice(top, top + size), slice(left, left + size)
    return as_float(compressed[cut]), as_float(clean[cut])
