"""Large images, tile by tile. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from paddle_vheat.errors import UserError

OVERLAP = 16
"""Pixels that neighbouring tiles share where nothing else is said."""


def check_tile(tile: int | None, overlap: int) -> list[str]:
    """What is wrong with a side of tiles (None: whole images) and their overlap."""
    if tile is None or (tile >= 1 and 0 <= overlap < tile):
        return []
    return [f"tiles of {tile} pixels with an overlap of {overlap}: expected an overlap of 0 to the tile's side less 1"]


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along an axis; the last one ends where the axis ends."""
    return [*range(0, size - tile, tile - overlap), max(size - tile, 0)]


def _places(size: tuple[int, int], tile: tuple[int, int], overlap: int) -> Iterator[tuple[slice, slice]]:
    for top in _starts(size[0], tile[0], overlap):
        for left in _starts(size[1], tile[1], overlap):
            yield slice(top, top + tile[0]), slice(left, left + tile[1])


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
        overlap: pixels that neighbouring tiles share, at least.

    Returns:
        Array of the shape of ``images``.

    Raises:
        UserError: for an overlap that is not below the tile's sides.
    """
    height, width = images.shape[2:]
    if tile is None or (height <= tile[0] and width <= tile[1]):
        return run(images)
    if problems := check_tile(min(tile), overlap):
        raise UserError(problems[0])
    total, count = np.zeros(images.shape, np.float32), np.zeros((height, width), np.float32)
    for rows, columns in _places((height, width), tile, overlap):
        total[:, :, rows, columns] += run(np.ascontiguousarray(images[:, :, rows, columns]))
        count[rows, columns] += 1
    return total / count
