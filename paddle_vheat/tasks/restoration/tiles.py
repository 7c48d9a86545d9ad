"""Large images, tile by tile. NumPy only."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

OVERLAP = 16
"""Pixels that neighbouring tiles share where nothing else is said."""


def check_tile(tile: int | None, overlap: int) -> list[str]:
    """What is wrong with a side of tiles (None: whole images) and their overlap."""
    if tile is None or (tile >= 1 and 0 <= overlap < tile):
        return []
    return [f"tiles of {tile} pixels with an overlap of {overlap}: expected an overlap of 0 to the tile's side less 1"]


def _parts(size: int, tile: int, overlap: int) -> list[slice]:
    """The tiles along an axis; the last one ends where the axis ends."""
    starts = [*range(0, size - tile, tile - overlap), max(size - tile, 0)]
    return [slice(start, start + tile) for start in starts]


def restore_tiled(
    run: Callable[[np.ndarray], np.ndarray], images: np.ndarray, tile: tuple[int, int] | None, overlap: int = OVERLAP
) -> np.ndarray:
    """Restore images tile by tile; where tiles overlap, their results are averaged.

    Whole images are restored better, as more of the image conducts, in memory that grows with their area
    (docs/restoration.md).

    Args:
        run: (N, C, h, w) float32 to the same.
        images: (N, C, H, W).
        tile: (height, width) in pixels; for windows best a multiple of them. None for the whole image at once.
        overlap: pixels that neighbouring tiles share, at least; below the tile's sides (:func:`check_tile`).

    Returns:
        Array of the shape of ``images``.
    """
    height, width = images.shape[2:]
    if tile is None or (height <= tile[0] and width <= tile[1]):
        return run(images)
    total, count = np.zeros(images.shape, np.float32), np.zeros((height, width), np.float32)
    parts = (_parts(side, length, overlap) for side, length in zip((height, width), tile))
    for rows, columns in itertools.product(*parts):
        total[:, :, rows, columns] += run(np.ascontiguousarray(images[:, :, rows, columns]))
        count[rows, columns] += 1
    return total / count
