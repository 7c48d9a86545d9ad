"""Average pooling to a fixed number of bins, in a form that every exporter gets right.

Bin ``i`` of ``n`` over a length L is the positions floor(i L / n) to ceil((i + 1) L / n) - 1, which overlap where n
does not divide L: PyTorch's and Paddle's adaptive pooling. paddle2onnx writes an ordinary pooling for it, wrong
wherever the bins do not divide the map.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paddle_vheat._paddle import F, paddle
from paddle_vheat.ops.dct import known_size, size_of

Tensor = Any


def _weights_numpy(bins: int, length: int) -> np.ndarray:
    """The (bins, length) averaging matrix in float64."""
    index, position = np.arange(bins)[:, None], np.arange(length)[None]
    inside = (position >= index * length // bins) & (position < -(-(index + 1) * length // bins))
    return inside / inside.sum(axis=1, keepdims=True)


def _weights_graph(bins: int, length: Tensor) -> Tensor:
    """The same matrix, float32, as operations of a static graph, for a length known only at run time."""
    length = length.astype("int64").reshape([])
    index = paddle.arange(0, bins, 1, dtype="int64").unsqueeze(1)
    position = paddle.arange(0, length, 1, dtype="int64").unsqueeze(0)
    start = paddle.floor_divide(index * length, paddle.full([], bins, "int64"))
    end = paddle.floor_divide((index + 1) * length + (bins - 1), paddle.full([], bins, "int64"))
    inside = paddle.logical_and(position >= start, position < end).astype("float32")
    return inside / inside.sum(axis=1, keepdim=True)


def _weights(bins: int, length: int | Tensor) -> Tensor:
    if isinstance(length, int):
        return paddle.to_tensor(_weights_numpy(bins, length).astype(np.float32))
    return _weights_graph(bins, length)


def _pool_in_graph(x: Tensor, bins: int) -> Tensor:
    rows, columns = _weights(bins, size_of(x, 2)), _weights(bins, size_of(x, 3))
    # Both axes in one product on a flattened map: with the map's four axes as an operand, oneDNN is silently wrong.
    both = (rows.unsqueeze([1, 3]) * columns.unsqueeze([0, 2])).reshape([bins * bins, -1]).astype(x.dtype)
    pooled = paddle.matmul(x.flatten(2), both, transpose_y=True)
    channels = known_size(x, 1)
    return pooled.reshape([0, size_of(x, 1) if channels is None else channels, bins, bins])


def adaptive_average_pool(x: Tensor, bins: int) -> Tensor:
    """Averages of ``bins`` x ``bins`` parts of every channel: (B, C, H, W) -> (B, C, bins, bins), same dtype.

    In a static graph it is a matrix product, with the matrix a constant where the size is known.
    """
    # No statement but this one: the conversion to a static graph would look into branches not taken.
    return F.adaptive_avg_pool2d(x, bins) if paddle.in_dynamic_mode() else _pool_in_graph(x, bins)
