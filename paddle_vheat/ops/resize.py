"""Bicubic resizing of maps as matrix products, and a bilinear resizing that trains fast on a CPU.

Half-pixel centres (``align_corners=False``), Keys' kernel with a = -0.75, edges repeated: what PyTorch's
``interpolate(mode="bicubic")`` computes. Paddle's own computes the same except for a result of one row or
column, where it samples the first instead of the centre (seen on 2.6.2 to 3.3.1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from paddle_vheat._paddle import F, paddle
from paddle_vheat.ops.dct import check_products, size_of

Tensor = Any
_A = -0.75


def _cubic(fraction: Any) -> list[Any]:
    """Weights of the four neighbours at distances 1 + f, f, 1 - f and 2 - f, for f in [0, 1)."""

    def near(t: Any) -> Any:
        return ((_A + 2) * t - (_A + 3)) * t * t + 1

    def far(t: Any) -> Any:
        return ((_A * t - 5 * _A) * t + 8 * _A) * t - 4 * _A

    return [far(1 + fraction), near(fraction), near(1 - fraction), far(2 - fraction)]


def _linear(fraction: Any) -> list[Any]:
    """Weights of the two neighbours at distances f and 1 - f."""
    return [1 - fraction, fraction]


@lru_cache(maxsize=256)
def _matrix_numpy(old: int, new: int, weights: Callable[[Any], list[Any]] = _cubic, first: int = -1) -> np.ndarray:
    """The (new, old) resizing matrix in float64; ``first`` is the first neighbour's place from the one on the left."""
    # Twice the centre, scaled by new, is the integer (2i + 1) old - new: its quotient and remainder are exact.
    doubled = (2 * np.arange(new) + 1) * old - new
    base, fraction = doubled // (2 * new), (doubled % (2 * new)) / (2 * new)
    matrix = np.zeros((new, old))
    for tap, weight in enumerate(weights(fraction), first):
        np.add.at(matrix, (np.arange(new), np.clip(base + tap, 0, old - 1)), weight)
    return matrix


def _matrix_graph(old: int, new: Tensor, dtype: Any) -> Tensor:
    """The same matrix as operations of a static graph, for a new size known only at run time."""
    new = new.astype("int64").reshape([])
    doubled = (2 * paddle.arange(0, new, 1, dtype="int64") + 1) * old - new
    base = paddle.floor_divide(doubled + 2 * new, 2 * new) - 1  # shifted so that nothing negative is divided
    fraction = (doubled - base * 2 * new).astype("float32") / (2 * new).astype("float32")
    columns = paddle.arange(0, old, 1, dtype="int64").unsqueeze(0)
    matrix: Any = 0.0
    for tap, weight in zip((-1, 0, 1, 2), _cubic(fraction)):
        chosen = paddle.clip(base + tap, 0, old - 1).unsqueeze(1) == columns
        matrix = matrix + chosen.astype("float32") * weight.unsqueeze(1)
    return matrix.astype(dtype)


def _constant(matrix: np.ndarray, dtype: Any) -> Tensor:
    return paddle.to_tensor(matrix if dtype == paddle.float64 else matrix.astype(np.float32)).astype(dtype)


def _matrix(old: int, new: int | Tensor, dtype: Any) -> Tensor:
    return _constant(_matrix_numpy(old, new), dtype) if isinstance(new, int) else _matrix_graph(old, new, dtype)


def resize_bicubic(x: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
    """Resize (H, W, C) to (height, width, C), bicubically.

    Args:
        x: (H, W, C) of known size, float32 or float64, on a GPU float16 and bfloat16 too.
        height, width: new size; ints, or scalar tensors in a graph of dynamic size.

    Returns:
        Tensor (height, width, C) of the dtype of ``x``; ``x`` itself if the size is its own.

    Raises:
        ValueError: for another dtype.
    """
    old_height, old_width, channels = x.shape
    if isinstance(height, int) and isinstance(width, int) and [height, width] == [old_height, old_width]:
        return x
    check_products(x, "resize_bicubic")
    rows = _matrix(old_height, height, x.dtype)
    columns = _matrix(old_width, width, x.dtype)
    tall = paddle.matmul(rows, x.reshape([old_height, old_width * channels]))
    return paddle.matmul(columns, tall.reshape([size_of(tall, 0), old_width, channels]))


class _Bilinear(paddle.autograd.PyLayer):
    """Paddle's bilinear resizing with a backward pass by two matrix products.

    Paddle's own scatters value by value in one thread; the products are 5 to 13 times faster
    (docs/performance.md).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, height: int, width: int) -> Tensor:
        ctx.sizes = x.shape[2], height, x.shape[3], width
        return F.interpolate(x, [height, width], mode="bilinear", align_corners=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        old_height, height, old_width, width = ctx.sizes
        columns = _constant(_matrix_numpy(old_width, width, _linear, 0), gradient.dtype)
        rows = _constant(_matrix_numpy(old_height, height, _linear, 0), gradient.dtype)
        return paddle.matmul(rows, paddle.matmul(gradient, columns), transpose_x=True)


def _resize_eagerly(x: Tensor, size: Any) -> Tensor:
    """:func:`resize_bilinear` outside of a static graph, where every size is known."""
    if list(size) == list(x.shape[2:]):
        return x
    # A result of one row or column is where Paddle departs from the half-pixel rule: left to Paddle whole.
    if min(size) > 1 and not x.stop_gradient and x.place.is_cpu_place():
        return _Bilinear.apply(x, *size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def resize_bilinear(x: Tensor, size: Any) -> Tensor:
    """Resize (B, C, H, W) to ``size`` with half-pixel centres (``align_corners=False``).

    Args:
        size: [height, width] as ints, or an integer tensor of two in a graph of dynamic size.

    Returns:
        Tensor (B, C, height, width); ``x`` itself if the size is its own.
    """
    # No statement but this one: the conversion to a static graph would look into branches not taken.
    return _resize_eagerly(x, size) if paddle.in_dynamic_mode() else F.interpolate(x, size, mode="bilinear")
