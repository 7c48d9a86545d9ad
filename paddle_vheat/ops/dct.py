"""Orthonormal discrete cosine transforms (type II and its inverse) as matrix products.

For feature maps of the sizes that a vision backbone sees (7 to a few hundred a side), a product with the cosine
matrix runs at the speed of a matrix product, which no FFT call does, and it differentiates by itself: the
transform is orthonormal, so its gradient is its inverse.

Every transform takes float32 and float64, and on a GPU float16 and bfloat16 too, of which a CPU has no products.

    C[n, x] = s_n cos(pi n (x + 1/2) / N),   s_0 = sqrt(1/N),   s_n = sqrt(2/N)

This is ``scipy.fft.dct(type=2, norm="ortho")``; the inverse is multiplication by the transpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from paddle_vheat._paddle import paddle
from paddle_vheat.ops.lru import LRU

Tensor = Any  # paddle.Tensor; in a static graph, its symbolic counterpart

# A training run at one size needs at most eight matrices per dtype; multi-scale evaluation of differently
# sized images adds two per stage and size. 128 matrices of 256 x 256 float32 are 32 MiB.
_cache = LRU(128)
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def dtype_name(dtype: Any) -> str:
    """Canonical name ("float32") of a dtype given as a string, a NumPy dtype or a Paddle dtype."""
    return str(dtype).rsplit(".", maxsplit=1)[-1]


def _basis_numpy(n: int) -> np.ndarray:
    """The (n, n) orthonormal DCT-II matrix in float64."""
    mode = np.arange(n).reshape(n, 1)
    position = np.arange(n).reshape(1, n)
    # The phase is taken modulo its period in integers: cos(pi * 150.5 * 255 / 256) in floating point would
    # lose the digits that the range reduction has to throw away.
    phase = (mode * (2 * position + 1)) % (4 * n)
    basis = math.sqrt(2.0 / n) * np.cos(phase * (math.pi / (2 * n)))
    basis[0] = math.sqrt(1.0 / n)
    return basis


def _basis_graph(n: Tensor | int, dtype: str) -> Tensor:
    """The same matrix as operations of a static graph, for a size that may be known only at run time."""
    count = paddle.to_tensor(n, dtype="int64") if isinstance(n, int) else n.astype("int64").reshape([])
    index = paddle.arange(0, count, 1, dtype="int64")
    phase = paddle.mod(index.unsqueeze(1) * (2 * index.unsqueeze(0) + 1), 4 * count)
    working = "float64" if dtype == "float64" else "float32"
    size = count.astype(working)
    scale = paddle.where(
        index.unsqueeze(1) == 0,
        paddle.sqrt(1.0 / size),
        paddle.sqrt(2.0 / size),
    )
    # A graph keeps a Python number as a float32 attribute of the operation; pi must be a tensor to be exact.
    quarter_turn = paddle.full([], math.pi / 2, working)
    return (scale * paddle.cos(phase.astype(working) * quarter_turn / size)).astype(dtype)


# Paddle 2.6's to_static takes the global for a local variable of the rewritten function.
@paddle.jit.not_to_static
def _cached_basis(n: int, name: str) -> Tensor:
    def make() -> Tensor:
        # NumPy has no bfloat16.
        values = _basis_numpy(n) if name == "float64" else _basis_numpy(n).astype(np.float32)
        return paddle.to_tensor(values).astype(name)

    return _cache.get((n, name, str(paddle.framework._current_expected_place())), make)


def cosine_basis(n: int | Tensor, dtype: Any = "float32") -> Tensor:
    """The orthonormal DCT-II matrix.

    In dynamic graph mode, the last 128 matrices are kept per (size, dtype, device). They belong to no layer: they
    are in no state dict and no copy or pickle of a model carries them. In a static graph the matrix is computed by
    the graph.

    Args:
        n: number of samples, at least 1; in a static graph it may be a scalar integer tensor.
        dtype: floating-point dtype of the result.

    Returns:
        Tensor (n, n) whose row ``m`` is mode ``m``; ``basis @ x`` transforms, ``basis.T @ X`` inverts. It is the
        cached one: not to be written to.

    Raises:
        ValueError: if ``n`` is below 1 (a tensor in a static graph is not checked), or ``dtype`` is not a
            floating-point one.
    """
    name = dtype_name(dtype)
    if name not in _FLOATS:
        raise ValueError(f"cosine_basis: expected a floating-point dtype, got {name}")
    dynamic = paddle.in_dynamic_mode()
    if dynamic or isinstance(n, (int, np.integer)):
        n = int(n)
        if n < 1:
            raise ValueError(f"cosine_basis: the number of samples must be at least 1, got {n}")
    if not dynamic:
        return _basis_graph(n, name)
    return _cached_basis(n, name)


def known_size(x: Tensor, axis: int) -> int | None:
    """Length of an axis where it is known; None in a graph whose size is decided when it runs.

    While Paddle converts code to a static graph, an unknown length is -1 or a symbolic tensor, depending on
    how far the conversion reached.
    """
    length = x.shape[axis]
    return length if isinstance(length, int) and length >= 0 else None


def size_of(x: Tensor, axis: int) -> int | Tensor:
    """Length of an axis: an int where it is known, a scalar tensor in a graph of dynamic size."""
    known = known_size(x, axis)
    return paddle.shape(x)[axis] if known is None else known


def check_products(x: Tensor, caller: str) -> None:
    """Raise a ValueError for a dtype of which there are no matrix products on the device of ``x``."""
    name = dtype_name(x.dtype)
    if name not in _FLOATS:
        raise ValueError(f"{caller}: expected a floating-point input, got {name}")
    if name.endswith("float16") and paddle.in_dynamic_mode() and x.place.is_cpu_place():
        raise ValueError(f"{caller}: on a CPU expected float32 or float64, got {name}, of which it has no products")


def _check_axis(x: Tensor, axis: int, caller: str) -> None:
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{caller}: axis {axis} is out of range for an input of {x.ndim} axes {list(x.shape)}")
    check_products(x, caller)


def is_empty(x: Tensor) -> bool:
    """Whether the tensor is known to hold no values."""
    return any(known_size(x, axis) == 0 for axis in range(x.ndim))


def _transformed(x: Tensor, axis: int, caller: str, inverse: bool) -> Tensor:
    """Multiply ``x`` along one axis by the matrix (or its transpose)."""
    _check_axis(x, axis, caller)
    if is_empty(x):
        return x
    basis = cosine_basis(size_of(x, axis), x.dtype)
    return paddle.matmul(x.moveaxis(axis, -1), basis, transpose_y=not inverse).moveaxis(-1, axis)


def dct(x: Tensor, axis: int = -1) -> Tensor:
    """Orthonormal DCT-II along one axis: (..., N, ...) -> (..., N, ...), same dtype."""
    return _transformed(x, axis, "dct", inverse=False)


def idct(x: Tensor, axis: int = -1) -> Tensor:
    """Inverse of :func:`dct` (orthonormal DCT-III) along one axis."""
    return _transformed(x, axis, "idct", inverse=True)


def _two_axes(x: Tensor, axes: Sequence[int], caller: str) -> tuple[int, int]:
    if len(axes) != 2:
        raise ValueError(f"{caller}: expected two axes, got {tuple(axes)}")
    for axis in axes:
        _check_axis(x, axis, caller)
    first, second = axes[0] % x.ndim, axes[1] % x.ndim
    if first == second:
        raise ValueError(f"{caller}: the two axes must differ, got {tuple(axes)}")
    return first, second


def dct2(x: Tensor, axes: Sequence[int] = (-2, -1)) -> Tensor:
    """Orthonormal two-dimensional DCT-II over two axes; ``scipy.fft.dctn(x, axes=axes, norm="ortho")``."""
    first, second = _two_axes(x, axes, "dct2")
    return dct(dct(x, first), second)


def idct2(x: Tensor, axes: Sequence[int] = (-2, -1)) -> Tensor:
    """Inverse of :func:`dct2`."""
    first, second = _two_axes(x, axes, "idct2")
    return idct(idct(x, first), second)
