"""RoIAlign: features of boxes, each from the level of the pyramid that fits its area.

Paper: "Mask R-CNN", He et al., ICCV 2017, arXiv 1703.06870; "Feature Pyramid Networks", arXiv 1612.03144, eq. 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from paddle_vheat._paddle import paddle
from paddle_vheat.models.mask_rcnn.anchors import STRIDES

Tensor = Any

LEVELS = 4  # the fifth feeds proposals only
SIZE_OF_FIRST = 56  # pixels; a box of twice this side (the root of its area) goes to the second level
FAR = (-1000.0, -1000.0, -999.0, -999.0)
MAX_VALUES = 2**24  # of windows that are in memory together


def box_levels(boxes: Tensor) -> Tensor:
    """Level of each box (n, 4), from 0 to 3, as (n,) float32."""
    side = (boxes[:, 2:] - boxes[:, :2]).clip(min=0)
    relative = paddle.sqrt(side[:, 0] * side[:, 1]) / SIZE_OF_FIRST + 1e-6
    # floor(log2(relative)) between 0 and 3, without a logarithm to round
    level: Any = sum((relative >= 2.0**i).astype("float32") for i in range(1, LEVELS))
    return level


def roi_features(pyramid: Sequence[Tensor], boxes: Tensor, counts: Tensor | None, size: int) -> Tensor:
    """Each box's part of its level, averaged over ``size`` x ``size`` bins.

    The number of samples of a bin follows the box's size (one a cell, rounded up), half-pixel centres are exact. A
    box without width or height has features of zero.

    Args:
        pyramid: (B, C, H_i, W_i), at least four levels.
        boxes: (n, 4) in pixels, those of the first image first, n at least 1.
        counts: (B,) int32, boxes of each image; None for a batch of one.
        size: bins a side of the result.

    Returns:
        (n, C, size, size) float32.
    """
    if counts is None:
        counts = paddle.shape(boxes)[:1].astype("int32")
    maps = [feature.astype("float32") for feature in pyramid[:LEVELS]]  # pixels of a large image need float32
    # No statement but this one: the conversion to a static graph would look into branches not taken.
    return (
        _by_products(maps, boxes.numpy(), counts.tolist(), size)
        if paddle.in_dynamic_mode() and boxes.place.is_cpu_place()
        else _by_operator(maps, boxes, counts, size)
    )


def _by_operator(maps: Sequence[Tensor], boxes: Tensor, counts: Tensor, size: int) -> Tensor:
    """By Paddle's operator, for GPUs and graphs.

    Every box is cut out of every level, but on all levels other than its own at a place far outside, which costs
    next to nothing and gives zeros, also for gradients. So nothing depends on how many boxes a level has: nothing
    waits for a GPU to count them, and the same operations serve Paddle Inference and ONNX.
    """
    level, far = box_levels(boxes), paddle.to_tensor(FAR)
    features: Any = 0.0
    for i, stride in enumerate(STRIDES[:LEVELS]):
        cells = boxes / stride - 0.5  # as the operator rounds them; without a side it would give NaN on a CPU
        side = paddle.minimum(cells[:, 2] - cells[:, 0], cells[:, 3] - cells[:, 1])
        here = ((level == i).astype("float32") * (side > 0).astype("float32")).unsqueeze(1)
        placed = boxes * here + far * (1 - here)
        features = features + paddle.vision.ops.roi_align(maps[i], placed, counts, size, 1 / stride)
    return features


# On a CPU Paddle's operator takes seconds for a thousand boxes, value by value in one thread, and its backward pass
# takes a box narrower than a cell for one of a whole cell (3.2.2 and before): ``test_paddle_misplaces_gradients``.
# A bin is a weighted sum of cells whose weights are those of rows times those of columns. So here windows of cells
# are gathered, channels last, and reduced by two products.


def _by_products(maps: Sequence[Tensor], boxes: np.ndarray, counts: Sequence[int], size: int) -> Tensor:
    level = box_levels(paddle.to_tensor(boxes)).numpy()
    image = np.repeat(np.arange(len(counts)), counts)
    parts, order = [], []
    for i, stride in enumerate(STRIDES[:LEVELS]):
        chosen = np.flatnonzero(level == i)
        if chosen.size:
            _, channels, height, width = maps[i].shape
            table = maps[i].transpose([0, 2, 3, 1]).reshape([-1, channels])
            cells = boxes[chosen] / np.float32(stride) - np.float32(0.5)
            for group, rows, columns in _groups(cells, height, width, channels):
                parts.append(_reduce(table, image[chosen[group]], cells[group], rows, columns, size, (height, width)))
                order.append(chosen[group])
    return paddle.gather(paddle.concat(parts), paddle.to_tensor(np.argsort(np.concatenate(order))))


def _groups(cells: np.ndarray, height: int, width: int, channels: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """Indices of boxes (n, 4) whose windows have the same power of two of rows and of columns, few at a time."""
    limits = np.asarray([width, height, width, height]) - 1
    first, last = np.split(np.floor(np.clip(cells, 0, limits)).astype(int), 2, axis=1)
    powers = np.ceil(np.log2(np.maximum(last - first, 0) + 2)).astype(int)  # with the cell after the last
    for power in np.unique(powers, axis=0):
        columns, rows = (1 << power).tolist()
        group = np.flatnonzero((powers == power).all(axis=1))
        most = max(MAX_VALUES // (rows * columns * channels), 1)
        for start in range(0, len(group), most):
            yield group[start : start + most], rows, columns


def _reduce(
    table: Tensor, image: np.ndarray, cells: np.ndarray, rows: int, columns: int, size: int, shape: tuple[int, int]
) -> Tensor:
    """Features (n, C, size, size) of boxes (n, 4) whose windows have ``rows`` x ``columns`` cells of ``table``."""
    height, width = shape
    row, row_weights = _bin_weights(cells[:, 1], cells[:, 3], size, rows, height)
    column, column_weights = _bin_weights(cells[:, 0], cells[:, 2], size, columns, width)
    index = (image[:, None] * height + row)[:, :, None] * width + column[:, None]
    n, channels = len(cells), table.shape[1]
    window = paddle.gather(table, paddle.to_tensor(index.reshape(-1)))
    reduced = paddle.matmul(paddle.to_tensor(row_weights), window.reshape([n, rows, columns * channels]))
    reduced = reduced.reshape([n, size, columns, channels])
    return paddle.matmul(paddle.to_tensor(column_weights[:, None]), reduced).transpose([0, 3, 1, 2])


def _bin_weights(
    start: np.ndarray, end: np.ndarray, bins: int, cells: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cells of a window (n, cells), and how much each counts in every bin between ``start`` and ``end`` (n,)."""
    first = np.floor(np.clip(start, 0, length - 1)).astype(int)
    step = ((end - start) / bins)[:, None, None]
    samples = np.maximum(np.ceil(step), 1)
    sample = np.arange(samples.max(initial=1), dtype=np.float32)
    position = start[:, None, None] + (np.arange(bins)[:, None] + (sample + 0.5) / samples) * step
    counted = (sample < samples) & (step > 0) & (position >= -1) & (position <= length)
    offset = np.clip(position, 0, length - 1) - first[:, None, None]
    weights = np.maximum(1 - np.abs(offset[..., None] - np.arange(cells)), 0) * counted[..., None]
    index = np.minimum(first[:, None] + np.arange(cells), length - 1)
    return index, (weights.sum(axis=2) / samples).astype(np.float32)
