"""Adaptive pooling in a static graph, against Paddle's own and against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paddle_vheat._paddle import F, nn
from paddle_vheat.ops import adaptive_average_pool
from tests.conftest import paddle, relative_error

SIZES = [(1, 1), (1, 5), (2, 4), (7, 9), (16, 32), (33, 61)]


class Pool(nn.Layer):
    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x):
        return adaptive_average_pool(x, self.bins)


def in_graph(bins: int, shape: list):
    """The pooling as a static graph of maps of this shape; a layer, as Paddle 2.6 converts no closures."""
    spec = paddle.static.InputSpec(shape=shape, dtype="float32", name="x")
    return paddle.jit.to_static(Pool(bins), input_spec=[spec], full_graph=True)


def by_definition(x: np.ndarray, bins: int) -> np.ndarray:
    height, width = x.shape[2:]
    out = np.empty((*x.shape[:2], bins, bins))
    for i in range(bins):
        rows = slice(i * height // bins, math.ceil((i + 1) * height / bins))
        for j in range(bins):
            columns = slice(j * width // bins, math.ceil((j + 1) * width / bins))
            out[:, :, i, j] = x[:, :, rows, columns].astype(np.float64).mean(axis=(2, 3))
    return out


def maps(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_a_graph_of_dynamic_size(bins):
    pool = in_graph(bins, [None, 3, None, None])
    for size in SIZES:
        x = maps(size)
        ours = pool(paddle.to_tensor(x)).numpy()
        assert relative_error(ours, by_definition(x, bins)) < 1e-6
        assert relative_error(ours, F.adaptive_avg_pool2d(paddle.to_tensor(x), bins).numpy()) < 1e-6


@pytest.mark.parametrize("size", [(1, 5), (7, 9), (16, 32)])
@pytest.mark.parametrize("batch", [2, None])
def test_a_graph_of_fixed_size(size, batch):
    x = maps(size)
    ours = in_graph(3, [batch, 3, *size])(paddle.to_tensor(x)).numpy()
    assert relative_error(ours, by_definition(x, 3)) < 1e-6


def test_eagerly_it_is_paddles_own():
    x = paddle.to_tensor(maps((7, 9)))
    np.testing.assert_array_equal(adaptive_average_pool(x, 6).numpy(), F.adaptive_avg_pool2d(x, 6).numpy())
